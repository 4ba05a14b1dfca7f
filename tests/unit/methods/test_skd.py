"""Pair-wise structured distillation: squared error between the cosines of an image's pooled positions."""

from __future__ import annotations

import numpy as np
import pytest
from kdbench.methods.skd import SKD

METHOD = SKD


def affinities(map_: np.ndarray, pool: int) -> np.ndarray:
    """One image's cosines between all pairs of nodes, each the channel-wise maximum of a block, in float64."""
    _, height, width = map_.shape
    corners = [(y, x) for y in range(0, height, pool) for x in range(0, width, pool)]
    nodes = [map_[:, y : y + pool, x : x + pool].astype(np.float64).max((1, 2)) for y, x in corners]
    return np.array([[(a @ b) / np.sqrt((a @ a) * (b @ b)) for b in nodes] for a in nodes])


def error(student: np.ndarray, teacher: np.ndarray, pool: int = 2) -> float:
    """Squared error of the cosines, mean over images and entries."""
    pairs = zip(student, teacher, strict=True)
    return float(np.mean([(affinities(ours, pool) - affinities(theirs, pool)) ** 2 for ours, theirs in pairs]))


@pytest.mark.parametrize("pool", [1, 2, 3])
@pytest.mark.parametrize("grid", [(4, 6), (3, 5), (1, 1)])
def test_value_equals_a_loop_over_pairs_of_nodes(grid: tuple[int, int], pool: int, distil, random) -> None:
    student, teacher = random(2, 3, *grid), random(2, 5, *grid)
    expected = 10 * error(student.numpy(), teacher.numpy(), pool)
    assert distil(student, teacher, pool=pool).item() == pytest.approx(expected, rel=1e-4, abs=1e-10)


@pytest.mark.parametrize("grid", [(2, 3), (8, 12)])
def test_the_student_is_resized_to_the_teachers_grid(grid: tuple[int, int], distil, random, bilinear) -> None:
    student, teacher = random(2, 3, *grid), random(2, 5, 4, 6)
    expected = 10 * error(bilinear(student.numpy(), (4, 6)), teacher.numpy())
    assert distil(student, teacher).item() == pytest.approx(expected, rel=1e-4)
