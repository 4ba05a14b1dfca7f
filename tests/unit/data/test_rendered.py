"""Drawn domains are kept memory-mapped and shared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdbench import synthetic
from kdbench.data import rendered
from kdbench.data.rendered import RenderedSet
from kdbench.errors import KdbenchError


def test_what_is_read_is_what_is_drawn_and_it_is_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = RenderedSet("my-gtav", "gtav", "val", 3, (32, 64), tmp_path)
    image, label = samples.read(2)
    scene = synthetic.draw("gtav", "val", 2, (32, 64))
    assert np.array_equal(image.permute(1, 2, 0).numpy(), scene.image)
    assert np.array_equal(label.numpy(), scene.label)
    assert isinstance(samples.arrays["image"], np.memmap)
    monkeypatch.setattr(rendered.synthetic, "draw", lambda *a: pytest.fail("drawn again"))
    again = RenderedSet("other-name", "gtav", "val", 3, (32, 64), tmp_path)
    assert np.array_equal(again.read(2)[0].numpy(), image.numpy())


def test_a_full_disk_is_an_error_with_a_repair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = RenderedSet("d", "gtav", "val", 2, (32, 64), tmp_path)
    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, mode="r", **fields: real(Path("/dev/full") if path.suffix == ".npy" else path, mode)
    )
    with pytest.raises(KdbenchError, match=r"no space left to write .*gtav-val-.*--store"):
        samples.read(0)
    assert not samples.drawn


def test_a_partial_folder_of_a_killed_process_is_no_set(tmp_path: Path) -> None:
    samples = RenderedSet("d", "gtav", "val", 2, (32, 64), tmp_path)
    left = samples._target.with_name(f"{samples._target.name}.partial-1")
    left.mkdir()
    (left / "image.npy").write_bytes(b"half")
    assert not samples.drawn
    assert len(samples.arrays["image"]) == 2
    assert not left.exists()
