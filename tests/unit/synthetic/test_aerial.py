"""Scenes from above: class shares, all six classes, and label maps without cos and sin."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

from kdbench.synthetic import DOMAINS, Scene, aerial, draw
from kdbench.synthetic.canvas import Rng
from kdbench.synthetic.vocabulary import AUTO, TREE

SIZE = (64, 128)
AERIAL = [name for name, spec in DOMAINS.items() if spec.kind == "aerial"]


@cache
def val(domain: str) -> tuple[Scene, ...]:
    return tuple(draw(domain, "val", index, SIZE) for index in range(48))


@pytest.mark.parametrize("domain", AERIAL)
def test_shares_are_those_of_european_towns(domain: str) -> None:
    labels = np.concatenate([scene.label.ravel() for scene in val(domain)])
    share = np.bincount(labels, minlength=6) / labels.size
    assert share.size == 6
    sealed, house, lawn, tree, car, clutter = share
    assert {0, 1} <= set(np.argsort(share)[-3:])
    assert sealed + house + lawn > 0.6
    assert 0.08 < tree < min(sealed, house) + 0.05
    assert 0.008 < car < 0.035
    assert 0.015 < clutter < 0.07


@pytest.mark.parametrize("domain", AERIAL)
def test_clutter_and_cars_show_in_most_images(domain: str) -> None:
    for label in (4, 5):
        assert sum(bool(np.any(scene.label == label)) for scene in val(domain)) > 30


def test_no_transcendental_function_decides_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: float) -> float:
        raise AssertionError("a transcendental function was called")

    for name in ("sin", "cos", "tan", "atan2", "exp", "log", "pow", "hypot"):
        monkeypatch.setattr(math, name, refuse)
    layout = aerial.aerial(Rng("rational"), aerial.AerialConfig(), 1, *SIZE)
    assert np.any(layout.thing == AUTO)
    assert np.any(layout.thing == TREE)


def test_an_l_shape_stays_within_its_footprint() -> None:
    for key in range(8):
        main, wing = aerial._wing(1.0, 2.0, 13.0, 11.0, bool(key & 1), bool(key & 2), bool(key & 4))
        for x0, y0, x1, y1 in (main, wing):
            assert 1 <= x0 < x1 <= 13
            assert 2 <= y0 < y1 <= 11


def test_roofs_are_flat_or_slope() -> None:
    tones = {config: set[int]() for config in (0.0, 1.0)}
    for flat in tones:
        for index in range(4):
            layout = aerial.aerial(Rng("roofs", index), aerial.AerialConfig(flat=flat, trees=0), index, *SIZE)
            tones[flat] |= set(np.unique(layout.tone[layout.thing == 21] & 15).tolist())
    assert len(tones[0.0]) > len(tones[1.0])
