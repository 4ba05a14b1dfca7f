"""Predictions that are kept are those that were scored; a later run adds its own and repeats nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdbench.engine import pictures
from kdbench.engine.grid import expand, make_context, run_grid
from kdbench.engine.plan import Cell, RunContext
from kdbench.pictures import SAMPLES, Samples, predictions_file, read_predictions, read_samples
from kdbench.progress import Silent
from kdbench.records import SIDE_FILE, read_record, record_files
from kdbench.spec import RunSpec


@pytest.fixture
def draw(make_spec: Callable[..., RunSpec]) -> Callable[..., list[Path]]:
    """Runs a request with pictures."""

    def drawn(**fields: object) -> list[Path]:
        spec = make_spec(benchmarks=("p2r",), **fields)
        context = make_context(spec, Silent())
        cells = expand(spec, context)
        assert all(done.record.status == "done" for done in run_grid(spec, context, cells))
        return list(pictures.write_pictures(context, cells, spec))

    return drawn


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cells whose networks are made to predict, as it happens."""
    found: list[str] = []
    deployed = pictures.deployed

    def noted(context: RunContext, cell: Cell) -> object:
        found.append(cell.id.method)
        return deployed(context, cell)

    monkeypatch.setattr(pictures, "deployed", noted)
    return found


def samples_of(sheet: Path) -> Samples:
    samples = read_samples(sheet.parents[1])
    assert samples is not None
    return samples


def test_predictions_are_those_that_were_scored(draw: Callable[..., list[Path]]) -> None:
    (sheet,) = draw(methods=("logit_kd",), references=True)
    samples = samples_of(sheet)
    assert [scene.domain for scene in samples.scenes] == ["potsdam-irrg"] * 2 + ["vaihingen-irrg"] * 2
    assert len({scene.name for scene in samples.scenes}) == 4
    files = list(record_files(sheet.parents[1]))
    assert len(files) == 3
    for path in files:
        maps = read_predictions(path, read_record(path), samples)
        assert maps is not None
        with np.load(path.with_name(path.stem + SIDE_FILE)) as counts:
            for scene, classes in zip(samples.scenes, maps, strict=True):
                known = scene.label != 255
                for k, scored in enumerate(counts[scene.domain][scene.index].T.tolist()):
                    truth, seen = (scene.label == k) & known, (classes == k) & known
                    assert scored == [(truth & seen).sum(), (seen & ~truth).sum(), (truth & ~seen).sum()]


def test_a_later_run_adds_its_methods_and_repeats_nothing(
    draw: Callable[..., list[Path]], predicted: list[str]
) -> None:
    (sheet,) = draw(methods=("baseline",))
    with Image.open(sheet) as image:
        narrow = image.width
    first = (sheet.parents[1] / SAMPLES).stat().st_ino
    assert predicted == ["baseline"]
    assert draw(methods=("logit_kd",), references=True) == [sheet]
    assert sorted(predicted) == ["baseline", "logit_kd", "teacher"]
    assert (sheet.parents[1] / SAMPLES).stat().st_ino == first
    with Image.open(sheet) as image:
        assert image.width > narrow * 1.2
    assert draw(methods=("baseline", "logit_kd"), references=True) == [sheet]
    assert len(predicted) == 3


def test_what_is_damaged_stale_or_asked_for_afresh_is_predicted_again(
    draw: Callable[..., list[Path]], predicted: list[str]
) -> None:
    (sheet,) = draw(methods=("baseline",))
    (record,) = record_files(sheet.parents[1])
    whole = predictions_file(record).read_bytes()
    predictions_file(record).write_bytes(whole[:100])
    draw(methods=("baseline",))
    assert predictions_file(record).read_bytes() == whole
    draw(methods=("baseline",), fresh=True)
    assert len(predicted) == 3


def test_large_pictures_are_kept_smaller_and_fit_each_other(
    draw: Callable[..., list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (sheet,) = draw(methods=("baseline",))
    large = samples_of(sheet)
    (record,) = record_files(sheet.parents[1])
    before = read_predictions(record, read_record(record), large)
    assert before is not None
    height, width = large.scenes[0].label.shape
    monkeypatch.setattr(pictures, "WIDTH", width // 2)
    draw(methods=("baseline",))
    small = samples_of(sheet)
    after = read_predictions(record, read_record(record), small)
    assert after is not None
    assert small.scenes[0].image.shape == (height // 2, width // 2, 3)
    # The pixel in the middle of each two by two, as nearest-exact has it.
    assert [s.label.tolist() for s in small.scenes] == [s.label[1::2, 1::2].tolist() for s in large.scenes]
    assert [maps.tolist() for maps in after] == [maps[1::2, 1::2].tolist() for maps in before]
