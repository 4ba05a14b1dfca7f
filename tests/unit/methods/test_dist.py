"""DIST: correlation of probabilities over the classes of each pixel and over the pixels of each class."""

from __future__ import annotations

import numpy as np
import pytest
from closed_forms import rows
from kdbench.methods.dist import DIST
from scipy.special import softmax

METHOD = DIST


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """1 - the mean correlation of rows."""
    return 1 - float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(first, second, strict=True)]))


def test_values_are_correlations_of_rows_and_of_columns(distil, random) -> None:
    logits = random(2, 4, 3, 5), random(2, 4, 3, 5)
    ours, theirs = (softmax(rows(each).reshape(-1, 4), 1) for each in logits)
    terms = distil(*logits, inter=2, intra=3)
    assert terms["dist_inter"].item() == pytest.approx(2 * distance(ours, theirs), rel=1e-5)
    assert terms["dist_intra"].item() == pytest.approx(3 * distance(ours.T, theirs.T), rel=1e-5)
