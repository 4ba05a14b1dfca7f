"""Feature distillation: squared error between the projected student map and the teacher's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench.methods.feature_kd import FeatureKD, FeatureKDConfig
from torch import Tensor

METHOD = FeatureKD


def project_position_by_position(method: FeatureKD, student: Tensor, convolutional: bool = False) -> np.ndarray:
    """(B, C_t, h, w) in float64: a LayerNorm and an affine map for tokens, a linear map alone for convolutions."""
    weight = method.projector.linear.weight.detach().double().numpy()
    batch, _, height, width = student.shape
    projected = np.zeros((batch, len(weight), height, width))
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                vector = student[b, :, y, x].double().numpy()
                if not convolutional:
                    norm = method.projector.norm
                    vector = (vector - vector.mean()) / np.sqrt(((vector - vector.mean()) ** 2).mean() + 1e-5)
                    vector = vector * norm.weight.detach().double().numpy() + norm.bias.detach().double().numpy()
                projected[b, :, y, x] = weight @ vector
                if not convolutional:
                    projected[b, :, y, x] += method.projector.linear.bias.detach().double().numpy()
    return projected


@pytest.mark.parametrize("convolutional", [True, False])
@pytest.mark.parametrize("widths", [(3, 5), (4, 4)])
def test_value_equals_an_explicit_projection(
    convolutional: bool, widths: tuple[int, int], make_pair, distil, random
) -> None:
    method = FeatureKD(FeatureKDConfig(), make_pair(*widths, convolutional=convolutional))
    with torch.no_grad():  # An affine LayerNorm starts as the plain one, which would hide its weight and bias.
        for parameter in method.projector.parameters():
            parameter.add_(0.3 * random(*parameter.shape))
    student, teacher = random(2, widths[0], 3, 4), random(2, widths[1], 3, 4)
    error = project_position_by_position(method, student, convolutional) - teacher.double().numpy()
    expected = 10 * (error**2).sum() / error.size
    assert distil(method, student, teacher).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("student_grid", [(2, 3), (8, 12)])
def test_the_student_is_resized_to_the_teachers_grid(
    student_grid: tuple[int, int], make_pair, distil, random, bilinear
) -> None:
    method = FeatureKD(FeatureKDConfig(), make_pair())
    student, teacher = random(1, 3, *student_grid), random(1, 5, 4, 6)
    error = bilinear(project_position_by_position(method, student), (4, 6)) - teacher.double().numpy()
    assert distil(method, student, teacher).item() == pytest.approx(10 * (error**2).mean(), rel=1e-4)
