"""The reference network's matrix, on sets of a few pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdbench.engine.evaluation import confusion
from kdbench.progress import Silent
from kdbench.tools import distances
from kdbench.tools.distances import Distances


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Distances:
    monkeypatch.setitem(distances.IMAGES, "train", 8)
    monkeypatch.setitem(distances.IMAGES, "val", 3)
    monkeypatch.setattr(distances, "RECIPE", distances.RECIPE.model_copy(update={"steps": 3, "batch": 4}))
    return Distances(tmp_path, "cpu", Silent())


def test_rows_are_trained_on_and_columns_tested_on(measured: Distances) -> None:
    matrix = measured.matrix("aerial")
    assert list(matrix.index) == list(matrix.columns) == ["potsdam-rgb", "potsdam-irrg", "vaihingen-irrg"]
    model = measured._trained("potsdam-irrg").eval()
    counts = np.zeros((6, 6))
    for index in range(3):
        image, label = measured._samples("vaihingen-irrg", "val").read(index)
        logits = model(image[None].float() / 255).logits
        shown = distances.torch.nn.functional.interpolate(logits, label.shape, mode="bilinear").argmax(1)
        counts += confusion(shown, label[None].long(), 6)[0].numpy()
    right, union = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
    assert matrix.loc["potsdam-irrg", "vaihingen-irrg"] == pytest.approx(100 * np.nanmean(right / union), abs=1e-6)


def test_a_second_call_trains_nothing(measured: Distances, monkeypatch: pytest.MonkeyPatch) -> None:
    first = measured.matrix("aerial")
    monkeypatch.setattr(distances, "train", lambda *a: pytest.fail("trained again"))
    assert measured.matrix("aerial").equals(first)
