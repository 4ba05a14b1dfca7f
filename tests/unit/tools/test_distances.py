"""The reference network's matrix, on sets of a few pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kdbench.engine.distributed import make_fabric
from kdbench.engine.evaluation import confusion
from kdbench.engine.store import Store
from kdbench.progress import Silent
from kdbench.tools import distances
from kdbench.tools.distances import Distances, write_distances


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Distances:
    monkeypatch.setitem(distances.IMAGES, "train", 8)
    monkeypatch.setitem(distances.IMAGES, "val", 3)
    monkeypatch.setattr(distances, "RECIPE", distances.RECIPE.model_copy(update={"steps": 3, "batch": 4}))
    return Distances(Store(tmp_path), make_fabric("cpu", 1, "32-true"), Silent())


def test_rows_are_trained_on_and_columns_tested_on(measured: Distances) -> None:
    matrix = measured.matrix("aerial")
    assert list(matrix.index) == list(matrix.columns) == ["potsdam-rgb", "potsdam-irrg", "vaihingen-irrg"]
    model = measured.trained("potsdam-irrg").eval()
    counts = np.zeros((6, 6))
    for index in range(3):
        image, label = measured.samples("vaihingen-irrg", "val").read(index)
        logits = model(image[None].float() / 255).logits
        shown = distances.torch.nn.functional.interpolate(logits, label.shape, mode="bilinear").argmax(1)
        counts += confusion(shown, label[None].long(), 6)[0].numpy()
    right, union = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
    assert matrix.loc["potsdam-irrg", "vaihingen-irrg"] == pytest.approx(100 * np.nanmean(right / union), abs=1e-6)


def test_matrices_and_pictures_are_written_and_nothing_is_trained_twice(
    measured: Distances, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distances.synthetic, "WORLDS", {"aerial": "synthetic-v1"})
    first = measured.matrix("aerial")
    monkeypatch.setattr(distances, "train", lambda *_: pytest.fail("trained again"))
    write_distances(tmp_path / "out", tmp_path, "cpu")
    written = pd.read_csv(tmp_path / "out" / "distances-aerial.csv", index_col=0)
    assert np.allclose(written.to_numpy(), first.round(1).to_numpy(), atol=1e-9)
    assert written.columns[0] == "potsdam-rgb-like"
    assert (tmp_path / "out" / "distances-aerial.png").read_bytes().startswith(b"\x89PNG")
