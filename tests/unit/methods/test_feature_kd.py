"""Feature distillation: squared error between the projected student map and the teacher's."""

from __future__ import annotations

import numpy as np
import pytest
from closed_forms import GRID, array, maps, norm_and_map, roughen, rows
from kdbench.methods.feature_kd import FeatureKD, FeatureKDConfig

METHOD = FeatureKD


@pytest.mark.parametrize("convolutional", [True, False])
@pytest.mark.parametrize("width", [3, 5])
def test_value_is_the_error_of_the_projected_map(
    convolutional: bool, width: int, student_grid, make_pair, distil, random, resized
) -> None:
    method = roughen(FeatureKD(FeatureKDConfig(), make_pair(width, 5, convolutional)))
    student, teacher = random(2, width, *student_grid), random(2, 5, *GRID)
    projector = method.projector
    if convolutional:
        projected = np.einsum("ts,bshw->bthw", array(projector.linear.weight), array(student))
    else:
        projected = maps(norm_and_map(rows(student), projector), student_grid)
    expected = 10 * ((resized(projected) - array(teacher)) ** 2).mean()
    assert distil(method, student, teacher).item() == pytest.approx(expected, rel=1e-4)
