"""NST: the maximum mean discrepancy of normalised channels under a squared inner product."""

from __future__ import annotations

import numpy as np
import pytest
from closed_forms import GRID, rows, unit
from kdbench.methods.nst import NST

METHOD = NST


def mean_kernel(first: np.ndarray, second: np.ndarray) -> float:
    """Mean of (a . b)^2 over images and pairs of channels, of tokens (B, N, C)."""
    return float((np.einsum("bnc,bnd->bcd", unit(first, 1), unit(second, 1)) ** 2).mean())


@pytest.mark.parametrize("widths", [(3, 5), (5, 3)])
def test_value_is_the_discrepancy_of_the_channels(widths, student_grid, distil, random, resized) -> None:
    student, teacher = random(2, widths[0], *student_grid), random(2, widths[1], *GRID)
    s, t = rows(resized(student)), rows(teacher)
    expected = 50 * (mean_kernel(t, t) + mean_kernel(s, s) - 2 * mean_kernel(s, t))
    assert distil(student, teacher).item() == pytest.approx(expected, rel=1e-4)
