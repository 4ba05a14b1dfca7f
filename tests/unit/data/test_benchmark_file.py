"""Benchmarks on a user's own images: what a file says, which files it finds, and a run from end to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import kdbench
from kdbench.api import run_command
from kdbench.benchmark import PROXY
from kdbench.cli import app
from kdbench.data.sources import adapter_for
from kdbench.engine.grid import Done
from kdbench.errors import KdbenchError
from kdbench.plugins import load_benchmark
from kdbench.records import record_files

TEXT = """
title: A hall, by day and by night
classes: [floor, wall, robot]
values: {1: floor, 2: wall, 7: robot, 8: robot}
ignored: [0, 255]
sources:
  day: {images: "hall/{split}/**/*_image.jpg", labels: "hall/{split}-masks/**/*_mask.png"}
targets:
  night: {images: "dark/pictures/*.png", labels: "dark/masks/*.png", size: [20, 40]}
"""
STORED = {"floor": 1, "wall": 2, "robot": 8}


@pytest.fixture
def hall(tmp_path: Path) -> Path:
    """A data root with images, labels, and files that are near them and do not count."""
    root, noise = tmp_path / "data", np.random.default_rng(0)
    label = np.tile(np.repeat(np.array([0, 1, 2, 8], dtype=np.uint8), 20), (40, 1))
    for split in ("train", "val"):
        for name in ("a/1", "a/2", "b/deep/1"):
            _save(root / f"hall/{split}/{name}_image.jpg", noise.integers(0, 256, (40, 80, 3), dtype=np.uint8))
            _save(root / f"hall/{split}-masks/{name}_mask.png", label)
    _save(root / "hall/train/a/thumbnail.jpg", noise.integers(0, 256, (40, 80, 3), dtype=np.uint8))
    for name in ("x", "y"):
        _save(root / f"dark/pictures/{name}.png", noise.integers(0, 64, (40, 80, 3), dtype=np.uint8))
        _save(root / f"dark/masks/{name}.png", label)
    return root


def _save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write a benchmark's file, with changes to its text; return its path."""

    def make(*changes: tuple[str, str]) -> str:
        text = TEXT
        for before, after in changes:
            assert before in text
            text = text.replace(before, after)
        path = tmp_path / "hall.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return make


def test_a_file_is_a_benchmark(write: Callable[..., str]) -> None:
    found = load_benchmark(write())
    assert (found.name, found.title, found.proxy) == ("hall", "A hall, by day and by night", PROXY)
    assert found.labels.classes == ("floor", "wall", "robot")
    assert len(set(found.labels.palette)) == 3
    (day,), (night,) = found.sources, found.targets
    assert (day.name, day.real.train, day.real.val) == ("day", ("train",), ("val",))
    assert (night.name, night.real.train, night.real.val) == ("night", (), ("all",))
    size = night.real.under_protocol("paper").size
    assert (size.height, size.width) == (20, 40)
    coloured = load_benchmark(write(("[floor, wall, robot]", "{floor: [1, 2, 3], wall: [4, 5, 6], robot: [7, 8, 9]}")))
    assert coloured.labels.palette == ((1, 2, 3), (4, 5, 6), (7, 8, 9))


def test_wildcards_pair_images_with_labels(write: Callable[..., str], hall: Path) -> None:
    benchmark = load_benchmark(write())
    scans = [adapter_for(domain, domain.real).scan(hall) for domain in (*benchmark.sources, *benchmark.targets)]
    pairs = [(pair.part, pair.image.name, pair.label and pair.label.name) for scan in scans for pair in scan.pairs]
    assert sorted(pairs) == [
        ("all", "pictures/x.png", "masks/x.png"),
        ("all", "pictures/y.png", "masks/y.png"),
        *[
            (split, f"{split}/{name}_image.jpg", f"{split}-masks/{name}_mask.png")
            for split in ("train", "val")
            for name in ("a/1", "a/2", "b/deep/1")
        ],
    ]


def test_stored_values_become_classes(write: Callable[..., str], hall: Path, make_spec: Any) -> None:
    from kdbench.engine.grid import make_context
    from kdbench.progress import Silent

    context = make_context(make_spec(data_root=hall), Silent())
    _, label = context.data_sources.val(load_benchmark(write()).targets[0]).read(0)
    assert [label[0, 20 * k].item() for k in range(4)] == [255, 0, 1, 2]


def test_a_run_ends_in_a_board_of_its_own_and_a_student(
    write: Callable[..., str], hall: Path, run_cells: Callable[..., list[Done]], shared_store: Path, tmp_path: Path
) -> None:
    path = write()
    (done,) = run_cells(methods=("logit_kd",), benchmarks=(path,), data_root=hall)
    assert done.record.status == "done", done.record.error
    (file,) = record_files(tmp_path / "results")
    assert [domain.domain for domain in done.record.result.domains] == ["night", "day"]
    board = CliRunner().invoke(app, ["leaderboard", "--results", str(tmp_path / "results"), "--benchmark", "hall"])
    assert "hall: A hall, by day and by night" in board.output
    assert kdbench.load_student(file, store=shared_store).classes == ("floor", "wall", "robot")
    assert f"--benchmark {path} " in run_command(done.record, [0])


def test_the_data_commands_take_a_file(write: Callable[..., str], hall: Path, tmp_path: Path) -> None:
    path, root = write(), ["--data-root", str(hall)]
    whole = CliRunner().invoke(app, ["data", "verify", path, *root])
    assert whole.exit_code == 0, whole.output
    assert whole.output.count("  healthy") == 2
    drawn = CliRunner().invoke(app, ["data", "preview", path, *root, "--protocol", "smoke", "--output", str(tmp_path)])
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "hall.png").is_file()
    (hall / "dark/masks/y.png").unlink()
    broken = CliRunner().invoke(app, ["data", "verify", path, *root])
    assert broken.exit_code == 1
    assert "1 images without a label" in broken.output


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("[floor, wall, robot]", "[floor]", "classes: two to 255"),
        ("[floor, wall, robot]", "[floor, wall, wall]", "of different names"),
        ("7: robot", "7: robbot", "unknown class 'robbot' in values"),
        ("[0, 255]", "[0, 1]", "none of those ignored"),
        ("7: robot", "300: robot", "a stored value is 0 to 255"),
        ("labels: \"dark/masks/*.png\", ", "", "domain 'night' needs labels"),
        ("dark/masks/*.png", "dark/masks/x.png", "the same wildcards"),
        ("size: [20, 40]", "val: [x]", "images has no {split}"),
        ("size: [20, 40]", "sise: [20, 40]", "targets.night.sise cannot be [20, 40]: there is no such field"),
        ("size: [20, 40]", "size: [20, 0]", "targets.night.size.1 cannot be 0"),
        ("  night:", "  ni/ght:", "domain 'ni/ght': a name has"),
        ("title:", "proxy: {images: \"p/*\", labels: \"q/*\"}\ntitle:", "is a proxy, which has no labels"),
        ("sources:", "sources: [", "cannot be read"),
    ],
)  # fmt: skip
def test_a_file_with_a_fault_is_told_where_it_is(
    write: Callable[..., str], before: str, after: str, message: str
) -> None:
    with pytest.raises(KdbenchError) as told:
        load_benchmark(write((before, after)))
    assert message in str(told.value)


def test_a_target_of_the_sources_files_is_refused(write: Callable[..., str]) -> None:
    same = 'images: "hall/{split}/**/*_image.jpg", labels: "hall/{split}-masks/**/*_mask.png", val: train'
    with pytest.raises(KdbenchError, match="target 'night' shares images with what is trained on"):
        load_benchmark(write(('images: "dark/pictures/*.png", labels: "dark/masks/*.png", size: [20, 40]', same)))


def test_a_shipped_benchmarks_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c2a.yaml").write_text(TEXT, encoding="utf-8")
    with pytest.raises(KdbenchError, match="has the name of a benchmark that kdbench has"):
        load_benchmark(str(tmp_path / "c2a.yaml"))
    with pytest.raises(KdbenchError, match=r"none\.yaml cannot be read"):
        load_benchmark(str(tmp_path / "none.yaml"))
