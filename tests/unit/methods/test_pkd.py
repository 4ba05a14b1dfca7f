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


def test_scale_and_offset_of_a_channel_change_nothing(even: PKD, distil, random) -> None:
    student, teacher = random(2, 5, 3, 4), random(2, 5, 3, 4)
    rescaled = random(1, 5, 1, 1).exp() * student + 5 * random(1, 5, 1, 1)
    assert distil(even, rescaled, teacher).item() == pytest.approx(distil(even, student, teacher).item(), rel=1e-4)
    # The statistics are those of the batch: another scale for one image does matter.
    of_an_image = student * torch.tensor([3.0, 1.0]).view(2, 1, 1, 1)
    assert abs(distil(even, of_an_image, teacher) - distil(even, student, teacher)) > 1e-2


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


def test_constant_maps_cost_nothing(even: PKD, distil, random) -> None:
    student = torch.ones(2, 5, 3, 4, requires_grad=True)
    value = distil(even, student, random(2, 5, 3, 4))
    value.backward()
    assert value == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


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
