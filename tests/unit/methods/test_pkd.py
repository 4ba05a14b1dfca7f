"""PKD: half the squared difference of channels that are standardised over the positions of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench.methods.pkd import PKD, PKDConfig
from pydantic import ValidationError
from torch import Tensor, nn

from kdbench.types import STUDENT, Part, Phase


def correlations(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each channel over all positions of all images, in float64."""
    return np.array(
        [
            np.corrcoef(student[:, c].astype(np.float64).ravel(), teacher[:, c].astype(np.float64).ravel())[0, 1]
            for c in range(student.shape[1])
        ]
    )


@pytest.fixture
def distil(make_batch, fake):
    """The distillation term alone, of a method."""

    def run(method: PKD, student: Tensor, teacher: Tensor, label: int = 0) -> Tensor:
        logits = torch.zeros(len(student), 4, 2, 2)
        terms = method.loss(make_batch(len(student), label), fake(logits, student), fake(None, teacher))
        assert set(terms) == {"task", "pkd"}
        return terms["pkd"]

    return run


@pytest.fixture
def even(make_pair) -> PKD:
    """For networks of one width."""
    return PKD(PKDConfig(), make_pair(5, 5))


def test_default_is_the_published_one() -> None:
    assert PKDConfig().model_dump() == {"weight": 10.0}


def test_the_weight_cannot_be_negative() -> None:
    with pytest.raises(ValidationError):
        PKDConfig(weight=-1)


def test_one_joint_stage_that_needs_no_teacher_decoder(make_pair) -> None:
    (joint,) = PKD(PKDConfig(), make_pair()).stages()
    assert (joint.phase, joint.trains) == (Phase.TASK, STUDENT | {"projector"})
    assert joint.parts == STUDENT | {Part.TEACHER_ENCODER}


def test_equal_widths_need_no_projector(even: PKD) -> None:
    assert isinstance(even.projector, nn.Identity)
    assert even.stages()[0].trains == STUDENT


def test_value_is_one_minus_the_mean_correlation(even: PKD, distil, random) -> None:
    student, teacher = random(2, 5, 3, 4), random(2, 5, 3, 4)
    n = 2 * 3 * 4
    expected = 10 * (n - 1) / n * (1 - correlations(student.numpy(), teacher.numpy()).mean())
    assert distil(even, student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_a_channel_computed_by_hand(make_pair, distil) -> None:
    # (0, 1) has mean 1/2 and unbiased deviation 1/sqrt 2: standardised -1/sqrt 2 and 1/sqrt 2. Against its reverse
    # both squared differences are 2, half of their mean is 1.
    student = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    method = PKD(PKDConfig(weight=1), make_pair(1, 1))
    assert distil(method, student, student.flip(-1)).item() == pytest.approx(1, rel=1e-5)


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


@pytest.mark.parametrize("scale", [1, 1e4])
def test_gradient_reaches_student_and_projector(scale: float, make_pair, distil, random) -> None:
    method = PKD(PKDConfig(), make_pair())
    student = (scale * random(2, 3, 4, 8)).requires_grad_()
    distil(method, student, scale * random(2, 5, 4, 8), label=255).backward()
    for tensor in (student, *method.projector.parameters()):
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.abs().sum() > 0
