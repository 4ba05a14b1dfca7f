"""Attention transfer: squared distance between the unit-norm energies of both networks' last maps."""

from __future__ import annotations

import numpy as np
import pytest
from kdbench.methods.at import AT

METHOD = AT


def attention(map_: np.ndarray) -> np.ndarray:
    """One image's energies position by position, as a vector of norm one."""
    channels, height, width = map_.shape
    energy = [sum(map_[c, y, x] ** 2 for c in range(channels)) for y in range(height) for x in range(width)]
    return np.array(energy) / np.sqrt(sum(value**2 for value in energy))


def distance(student: np.ndarray, teacher: np.ndarray) -> float:
    """Squared distance of the attentions, image by image in float64, then their mean."""
    pairs = zip(student.astype(np.float64), teacher.astype(np.float64), strict=True)
    return float(np.mean([((attention(ours) - attention(theirs)) ** 2).sum() for ours, theirs in pairs]))


def test_value_equals_a_loop_over_positions(distil, random) -> None:
    student, teacher = random(3, 3, 4, 6), random(3, 5, 4, 6)
    expected = 1e4 / 8192 * distance(student.numpy(), teacher.numpy())
    assert distil(student, teacher).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("grid", [(2, 3), (8, 12)])
def test_the_student_is_resized_to_the_teachers_grid(grid: tuple[int, int], distil, random, bilinear) -> None:
    student, teacher = random(2, 3, *grid), random(2, 5, 4, 6)
    expected = 1e4 / 8192 * distance(bilinear(student.numpy(), (4, 6)), teacher.numpy())
    assert distil(student, teacher).item() == pytest.approx(expected, rel=1e-4)
