"""Logit distillation: KL over the classes of each pixel, averaged over pixels."""

from __future__ import annotations

import pytest
from closed_forms import divergence
from kdbench.methods.logit_kd import LogitKD

METHOD = LogitKD


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("teacher_grid", [(4, 6), (2, 3)])
def test_value_is_the_mean_divergence_on_the_finer_grid(
    temperature: float, teacher_grid: tuple[int, int], student_grid, distil, random, resized
) -> None:
    student, teacher = 3 * random(2, 4, *student_grid), 3 * random(2, 4, *teacher_grid)
    finer = max(student_grid, teacher_grid)
    expected = divergence(resized(student, finer), resized(teacher, finer), temperature, axis=1).mean()
    assert distil(student, teacher, temperature=temperature).item() == pytest.approx(expected, rel=1e-5)
