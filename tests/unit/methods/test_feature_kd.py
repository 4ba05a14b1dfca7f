"""Feature distillation: squared error between the projected student map and the teacher's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench.methods.feature_kd import FeatureKD, FeatureKDConfig
from torch import Tensor

from kdbench.types import STUDENT, Part, Phase


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


@pytest.fixture
def distil(make_batch, fake):
    """The distillation term alone, of a method."""

    def run(method: FeatureKD, student: Tensor, teacher: Tensor) -> Tensor:
        logits = torch.zeros(len(student), 4, 2, 2)
        terms = method.loss(make_batch(len(student)), fake(logits, student), fake(None, teacher))
        assert set(terms) == {"task", "feature_kd"}
        return terms["feature_kd"]

    return run


def test_default_is_the_published_one() -> None:
    assert FeatureKDConfig().model_dump() == {"preset": "plain", "weight": 10.0}


def test_one_joint_stage_that_needs_no_teacher_decoder(make_pair) -> None:
    (joint,) = FeatureKD(FeatureKDConfig(), make_pair()).stages()
    assert (joint.name, joint.phase) == ("joint", Phase.TASK)
    assert joint.trains == STUDENT | {"projector"}
    assert joint.parts == STUDENT | {Part.TEACHER_ENCODER}
    assert joint.own_modules == {"projector"}
    assert not (joint.reset | joint.scratch)


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


def test_weight_multiplies_the_term(make_pair, distil, random) -> None:
    ten, two = (FeatureKD(FeatureKDConfig(weight=weight), make_pair()) for weight in (10, 2))
    two.load_state_dict(ten.state_dict())
    student, teacher = random(1, 3, 2, 2), random(1, 5, 2, 2)
    assert distil(ten, student, teacher).item() == pytest.approx(5 * distil(two, student, teacher).item(), rel=1e-6)


def test_a_target_that_the_projection_hits_costs_nothing(make_pair, distil, random) -> None:
    method = FeatureKD(FeatureKDConfig(), make_pair())
    student = random(2, 3, 2, 2)
    target = torch.from_numpy(project_position_by_position(method, student)).float()
    assert distil(method, student, target).item() == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("student_grid", [(2, 3), (8, 12)])
def test_the_student_is_resized_to_the_teachers_grid(
    student_grid: tuple[int, int], make_pair, distil, random, bilinear
) -> None:
    method = FeatureKD(FeatureKDConfig(), make_pair())
    student, teacher = random(1, 3, *student_grid), random(1, 5, 4, 6)
    error = bilinear(project_position_by_position(method, student), (4, 6)) - teacher.double().numpy()
    assert distil(method, student, teacher).item() == pytest.approx(10 * (error**2).mean(), rel=1e-4)


def test_gradient_reaches_student_and_projector(make_pair, distil, random) -> None:
    method = FeatureKD(FeatureKDConfig(), make_pair())
    student = random(1, 3, 2, 2).requires_grad_()
    distil(method, student, random(1, 5, 2, 2)).backward()
    assert student.grad.abs().sum() > 0
    assert all(parameter.grad.abs().sum() > 0 for parameter in method.projector.parameters())


@pytest.mark.parametrize("convolutional", [True, False])
@pytest.mark.parametrize("scale", [1, 1e4])
def test_all_pixels_ignored_leave_the_task_at_zero_and_all_terms_finite(
    scale: float, convolutional: bool, make_pair, make_batch, fake, random
) -> None:
    method = FeatureKD(FeatureKDConfig(), make_pair(convolutional=convolutional))
    student = fake(random(2, 4, 2, 2), (scale * random(2, 3, 2, 2)).requires_grad_())
    terms = method.loss(make_batch(label=255), student, fake(None, scale * random(2, 5, 2, 2)))
    terms["feature_kd"].backward()
    assert terms["task"] == 0
    assert torch.isfinite(terms["feature_kd"])
    assert all(torch.isfinite(tensor.grad).all() for tensor in (student.final, *method.parameters()))


def test_the_papers_recipe_adds_logit_distillation(make_pair, make_batch, fake, random) -> None:
    method = FeatureKD(FeatureKDConfig(preset="published"), make_pair(5, 5))
    assert [stage.phase for stage in method.stages()] == [Phase.FIT_TEACHER, Phase.TASK]
    ours, theirs = random(2, 4, 2, 2), random(2, 4, 2, 2)
    terms = method.loss(make_batch(), fake(ours, random(2, 5, 2, 2)), fake(theirs, random(2, 5, 2, 2)))
    p, q = theirs.double().softmax(1), ours.double().softmax(1)
    expected = (p * (p.log() - q.log())).sum(1).mean()
    assert terms["logit_kd"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert set(terms) == {"task", "feature_kd", "logit_kd"}
