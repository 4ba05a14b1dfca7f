"""PKD: half the squared difference of channels that are standardised over the positions of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench.methods.pkd import PKD, PKDConfig

METHOD = PKD


def correlations(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each channel over all positions of all images, in float64."""
    return np.array(
        [
            np.corrcoef(student[:, c].astype(np.float64).ravel(), teacher[:, c].astype(np.float64).ravel())[0, 1]
            for c in range(student.shape[1])
        ]
    )


@pytest.fixture
def even(make_pair) -> PKD:
    """For networks of one width."""
    return PKD(PKDConfig(), make_pair(5, 5))


def test_value_is_one_minus_the_mean_correlation(even: PKD, distil, random) -> None:
    student, teacher = random(2, 5, 3, 4), random(2, 5, 3, 4)
    n = 2 * 3 * 4
    expected = 10 * (n - 1) / n * (1 - correlations(student.numpy(), teacher.numpy()).mean())
    assert distil(even, student, teacher).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("side", [0, 1])
def test_constant_channels_are_left_out(side: int, make_pair, even: PKD, distil, random) -> None:
    maps = [random(2, 5, 3, 4), random(2, 5, 3, 4)]
    maps[side][:, 2] = 7
    kept = [map_[:, [0, 1, 3, 4]] for map_ in maps]
    expected = distil(PKD(PKDConfig(), make_pair(4, 4)), *kept)
    maps[0].requires_grad_()
    value = distil(even, *maps)
    value.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert maps[0].grad[:, 2].abs().sum() == 0
    assert torch.isfinite(maps[0].grad).all()


@pytest.mark.parametrize("convolutional", [True, False])
@pytest.mark.parametrize("grid", [(2, 3), (8, 12)])
def test_the_student_is_projected_then_resized_to_the_teachers_grid(
    grid: tuple[int, int], convolutional: bool, make_pair, distil, random, bilinear
) -> None:
    method = PKD(PKDConfig(), make_pair(3, 5, convolutional=convolutional))
    student, teacher = random(2, 3, *grid), random(2, 5, 4, 6)
    weight = method.projector.weight.detach().double().numpy()[:, :, 0, 0]
    projected = bilinear(np.einsum("ts,bshw->bthw", weight, student.double().numpy()), (4, 6))
    expected = 10 * 47 / 48 * (1 - correlations(projected, teacher.numpy()).mean())
    assert distil(method, student, teacher).item() == pytest.approx(expected, rel=1e-4)
