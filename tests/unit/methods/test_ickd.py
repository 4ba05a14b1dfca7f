"""ICKD: squared distance of the unit rows of the matrices of inner products between channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench.methods.ickd import ICKD, ICKDConfig
from pydantic import ValidationError
from torch import Tensor, nn

from kdbench.types import STUDENT, Part, Phase


def correlations(image: np.ndarray) -> np.ndarray:
    """(C, C): inner products of channels, rows of unit length."""
    matrix = np.array([[float(a.ravel() @ b.ravel()) for b in image] for a in image])
    return np.array([row / np.sqrt((row**2).sum()) for row in matrix])


def distance(student: np.ndarray, teacher: np.ndarray) -> float:
    """Squared distance, mean over rows and images, in float64."""
    total = 0.0
    for ours, theirs in zip(student.astype(np.float64), teacher.astype(np.float64), strict=True):
        for row, goal in zip(correlations(ours), correlations(theirs), strict=True):
            total += ((row - goal) ** 2).sum()
    return total / (len(teacher) * teacher.shape[1])


def adapt(method: ICKD, student: Tensor) -> np.ndarray:
    """The convolution position by position, then the statistics of each channel, in float64."""
    convolution, norm = method.adapter
    weight, gain, shift = (p.detach().double().numpy() for p in (convolution.weight, norm.weight, norm.bias))
    padded = np.pad(student.detach().double().numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros((len(student), len(weight), *student.shape[2:]))
    for y in range(student.shape[2]):
        for x in range(student.shape[3]):
            out[:, :, y, x] = np.einsum("oikl,bikl->bo", weight, padded[:, :, y : y + 3, x : x + 3])
    centred = out - out.mean((0, 2, 3), keepdims=True)
    unit = centred / np.sqrt((centred**2).mean((0, 2, 3), keepdims=True) + 1e-5)
    return unit * gain[:, None, None] + shift[:, None, None]


@pytest.fixture
def make(make_pair, random):
    """A method whose normalisation is away from its start."""

    def make(student: int = 3, teacher: int = 5, **config: float) -> ICKD:
        method = ICKD(ICKDConfig(**config), make_pair(student, teacher))
        with torch.no_grad():
            for parameter in method.adapter[1].parameters():
                parameter.add_(0.5 * random(*parameter.shape))
        return method

    return make


@pytest.fixture
def distil(make_batch, fake):
    """The distillation term alone, of a method."""

    def run(method: ICKD, student: Tensor, teacher: Tensor, label: int = 0) -> Tensor:
        logits = torch.zeros(len(student), 4, 2, 2)
        terms = method.loss(make_batch(len(student), label), fake(logits, student), fake(None, teacher))
        assert set(terms) == {"task", "ickd"}
        return terms["ickd"]

    return run


def test_default_is_the_published_one_on_the_mean() -> None:
    assert ICKDConfig().model_dump() == {"weight": 500 / 256}


def test_the_weight_cannot_be_negative() -> None:
    with pytest.raises(ValidationError):
        ICKDConfig(weight=-1)


@pytest.mark.parametrize("widths", [(3, 5), (4, 4)])
def test_one_joint_stage_with_the_adapter_and_without_the_teachers_decoder(widths, make) -> None:
    method = make(*widths)
    (joint,) = method.stages()
    assert (joint.phase, joint.trains) == (Phase.TASK, STUDENT | {"adapter"})
    assert joint.parts == STUDENT | {Part.TEACHER_ENCODER}
    # No bias before the norm, which would take it out.
    assert {name for name, _ in method.adapter.named_parameters()} == {"0.weight", "1.weight", "1.bias"}


@pytest.mark.parametrize("widths", [(3, 5), (4, 4)])
def test_value_equals_a_loop_over_pairs_of_channels(widths: tuple[int, int], make, distil, random) -> None:
    method = make(*widths, weight=2)
    student, teacher = random(2, widths[0], 3, 4), random(2, widths[1], 3, 4)
    expected = 2 * distance(adapt(method, student), teacher.numpy())
    assert distil(method, student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_matrices_computed_by_hand(make_pair, distil) -> None:
    # Student: two equal channels, rows (1, 1) / sqrt 2. Teacher: two apart, rows (1, 0) and (0, 1).
    # The squared distance of each row is 2 - sqrt 2.
    method = ICKD(ICKDConfig(weight=1), make_pair(2, 2))
    method.adapter = nn.Identity()
    student, teacher = torch.ones(1, 2, 1, 2), torch.eye(2).view(1, 2, 1, 2)
    assert distil(method, student, teacher).item() == pytest.approx(2 - 2**0.5, rel=1e-6)


def test_a_batch_costs_the_mean_of_its_images(make_pair, distil, random) -> None:
    method = ICKD(ICKDConfig(), make_pair(4, 4))
    method.adapter = nn.Identity()
    student, teacher = random(3, 4, 3, 4), random(3, 4, 3, 4)
    alone = [distil(method, student[i : i + 1], teacher[i : i + 1]).item() for i in range(3)]
    assert distil(method, student, teacher).item() == pytest.approx(sum(alone) / 3, rel=1e-5)


def test_the_scale_of_either_map_changes_nothing(make, distil, random) -> None:
    method, student, teacher = make(), random(2, 3, 4, 8), random(2, 5, 4, 8)
    expected = distil(method, student, teacher).item()
    assert distil(method, 30 * student, 0.2 * teacher).item() == pytest.approx(expected, rel=1e-3)


def test_the_student_may_have_another_grid(make, distil, random) -> None:
    method, student, teacher = make(weight=1), random(2, 3, 2, 3), random(2, 5, 4, 6)
    expected = distance(adapt(method, student), teacher.numpy())
    assert distil(method, student, teacher).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scale", [1, 1e4])
def test_gradient_reaches_the_student_and_all_of_the_adapter(scale: float, make, distil, random) -> None:
    method, student = make(), (scale * random(2, 3, 4, 8)).requires_grad_()
    distil(method, student, scale * random(2, 5, 4, 8), label=255).backward()
    for tensor in (student, *method.adapter.parameters()):
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.abs().sum() > 0


def test_half_precision_around_the_matrices_changes_nothing(make_pair, distil, random) -> None:
    method = ICKD(ICKDConfig(), make_pair(5, 5))
    method.adapter = nn.Identity()
    student, teacher = random(2, 5, 4, 8), random(2, 5, 4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        inside = distil(method, student, teacher)
    assert inside.item() == distil(method, student, teacher).item()
