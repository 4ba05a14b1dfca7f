"""Pair-wise structured distillation: squared error between the cosines of an image's pooled positions."""

from __future__ import annotations

import numpy as np
import pytest
from closed_forms import array, unit
from kdbench.methods.skd import SKD

METHOD = SKD


def affinities(map_: np.ndarray, pool: int) -> np.ndarray:
    """Cosines (B, N, N) between all nodes, each the channel-wise maximum of a block, smaller ones at the border."""
    _, _, height, width = map_.shape
    corners = [(y, x) for y in range(0, height, pool) for x in range(0, width, pool)]
    nodes = unit(np.stack([map_[:, :, y : y + pool, x : x + pool].max((2, 3)) for y, x in corners], 1))
    return nodes @ nodes.swapaxes(1, 2)


@pytest.mark.parametrize("pool", [1, 2, 3])
@pytest.mark.parametrize("grid", [(4, 6), (3, 5), (1, 1)])
def test_value_is_the_squared_error_of_the_cosines(grid, pool, student_grid, distil, random, resized) -> None:
    student, teacher = random(2, 3, *student_grid), random(2, 5, *grid)
    difference = affinities(resized(student, grid), pool) - affinities(array(teacher), pool)
    expected = 10 * (difference**2).mean()
    assert distil(student, teacher, pool=pool).item() == pytest.approx(expected, rel=1e-4, abs=1e-10)
