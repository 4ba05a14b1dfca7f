"""ICKD: squared distance of the unit rows of the matrices of inner products between channels."""

from __future__ import annotations

import numpy as np
import pytest
from closed_forms import GRID, array, batch_norm, convolve, roughen, rows, unit
from kdbench.methods.ickd import ICKD, ICKDConfig

METHOD = ICKD


def correlations(map_: np.ndarray) -> np.ndarray:
    """(B, C, C): inner products of channels, rows of unit length."""
    return unit(np.einsum("bnc,bnd->bcd", rows(map_), rows(map_)))


@pytest.mark.parametrize("width", [3, 5])
def test_value_is_the_distance_of_rows_of_correlations(width: int, student_grid, make_pair, distil, random) -> None:
    method = roughen(ICKD(ICKDConfig(weight=2), make_pair(width, 5)))
    student, teacher = random(2, width, *student_grid), random(2, 5, *GRID)
    adapted = batch_norm(convolve(student, method.adapter[0]), method.adapter[1])
    difference = correlations(adapted) - correlations(array(teacher))
    assert distil(method, student, teacher).item() == pytest.approx(2 * (difference**2).sum(2).mean(), rel=1e-5)
