"""NST: the maximum mean discrepancy of normalised channels under a squared inner product."""

from __future__ import annotations

import numpy as np
import pytest
from kdbench.methods.nst import NST

METHOD = NST


def discrepancy(student: np.ndarray, teacher: np.ndarray) -> float:
    """Mean over images of the three means of the kernel, pair of channels by pair in float64."""

    def mean_kernel(first: np.ndarray, second: np.ndarray) -> float:
        total = 0.0
        for a in first:
            for b in second:
                total += float(a.ravel() @ b.ravel() / np.linalg.norm(a) / np.linalg.norm(b)) ** 2
        return total / (len(first) * len(second))

    pairs = [(s.astype(np.float64), t.astype(np.float64)) for s, t in zip(student, teacher, strict=True)]
    return sum(mean_kernel(t, t) + mean_kernel(s, s) - 2 * mean_kernel(s, t) for s, t in pairs) / len(pairs)


@pytest.mark.parametrize("widths", [(3, 5), (5, 3), (4, 4)])
def test_value_equals_a_loop_over_pairs_of_channels(widths: tuple[int, int], distil, random) -> None:
    student, teacher = random(2, widths[0], 3, 4), random(2, widths[1], 3, 4)
    expected = 50 * discrepancy(student.numpy(), teacher.numpy())
    assert distil(student, teacher).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("grid", [(2, 3), (8, 12)])
def test_the_student_is_resized_to_the_teachers_grid(grid: tuple[int, int], distil, random, bilinear) -> None:
    student, teacher = random(2, 3, *grid), random(2, 5, 4, 6)
    expected = 50 * discrepancy(bilinear(student.numpy(), (4, 6)), teacher.numpy())
    assert distil(student, teacher).item() == pytest.approx(expected, rel=1e-4)
