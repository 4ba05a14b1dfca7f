"""Similarity-preserving distillation: squared error between row-normalised similarities of a batch's images."""

from __future__ import annotations

import numpy as np
import pytest
from kdbench.methods.sp import SP

METHOD = SP


def similarities(map_: np.ndarray) -> np.ndarray:
    """Products of images entry by entry in float64, each row divided by the root of its sum of squares."""
    images = [image.ravel().astype(np.float64) for image in map_]
    table = np.array([[(a * b).sum() for b in images] for a in images])
    return np.array([row / np.sqrt((row**2).sum()) for row in table])


@pytest.mark.parametrize("grid", [(2, 4), (3, 5)])
def test_value_equals_a_loop_over_pairs_of_images_on_any_grid(grid: tuple[int, int], distil, random) -> None:
    student, teacher = random(5, 3, *grid), random(5, 7, 2, 4) + 1
    difference = similarities(student.numpy()) - similarities(teacher.numpy())
    assert distil(student, teacher).item() == pytest.approx(46.875 * (difference**2).sum() / 5, rel=1e-4)


def test_a_single_image_has_nothing_to_be_compared_with(distil, random) -> None:
    student = random(1, 3, 2, 3).requires_grad_()
    value = distil(student, random(1, 5, 2, 3))
    value.backward()
    assert value == 0
    assert student.grad.abs().max() < 1e-2
