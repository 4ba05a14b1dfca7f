"""Scenes from above: label maps without cos and sin, wings and roofs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kdbench.synthetic import aerial
from kdbench.synthetic.canvas import Rng
from kdbench.synthetic.vocabulary import AUTO, TREE

SIZE = (64, 128)


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
        for x0, y0, x1, y1 in aerial._wing(1.0, 2.0, 13.0, 11.0, bool(key & 1), bool(key & 2), bool(key & 4)):
            assert 1 <= x0 < x1 <= 13
            assert 2 <= y0 < y1 <= 11
