"""Logit distillation: KL over the classes of each pixel, averaged over pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kdbench.methods.logit_kd import LogitKD, LogitKDConfig
from pydantic import ValidationError
from torch import Tensor

from kdbench.types import ENCODERS, STUDENT, TEACHER, Part, Phase

CLASSES = 4


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    exponentials = [math.exp(value - top) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def divergence(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """T^2 times the mean over pixels of KL(teacher || student) over classes, pixel by pixel in float64."""
    batch, _, height, width = student.shape
    total = 0.0
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                p = softmax([float(value) / temperature for value in teacher[b, :, y, x]])
                q = softmax([float(value) / temperature for value in student[b, :, y, x]])
                total += sum(pc * (math.log(pc) - math.log(qc)) for pc, qc in zip(p, q, strict=True))
    return temperature**2 * total / (batch * height * width)


@pytest.fixture
def distil(make_pair, make_batch, fake):
    """The distillation term alone."""

    def run(student: Tensor, teacher: Tensor, **config: float) -> Tensor:
        method = LogitKD(LogitKDConfig(**config), make_pair())
        return method.loss(make_batch(len(student)), fake(logits=student), fake(logits=teacher))["logit_kd"]

    return run


def test_defaults_are_the_published_ones() -> None:
    assert LogitKDConfig().model_dump() == {"temperature": 1.0, "weight": 1.0}


def test_temperature_has_to_be_positive() -> None:
    with pytest.raises(ValidationError):
        LogitKDConfig(temperature=0)


def test_stages_fit_the_teacher_then_train_the_whole_student(make_pair) -> None:
    fit, joint = LogitKD(LogitKDConfig(), make_pair()).stages()
    assert (fit.name, fit.phase) == ("fit_teacher", Phase.FIT_TEACHER)
    assert fit.trains == {Part.TEACHER_DECODER}
    assert fit.parts == TEACHER
    assert (joint.name, joint.phase) == ("joint", Phase.TASK)
    assert joint.trains == STUDENT
    assert joint.parts == STUDENT | TEACHER
    assert joint.parts > ENCODERS
    assert not (fit.reset | fit.scratch | joint.reset | joint.scratch)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_value_equals_a_loop_over_pixels(temperature: float, distil, random) -> None:
    student, teacher = 3 * random(2, CLASSES, 3, 5), 3 * random(2, CLASSES, 3, 5)
    expected = divergence(student.numpy(), teacher.numpy(), temperature)
    assert expected > 0.1
    assert distil(student, teacher, temperature=temperature).item() == pytest.approx(expected, rel=1e-5)


def test_a_pixel_computed_by_hand(distil) -> None:
    # Teacher (3/4, 1/4), student (1/2, 1/2): KL = 3/4 log(3/2) + 1/4 log(1/2).
    teacher = torch.tensor([math.log(3.0), 0.0]).view(1, 2, 1, 1)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert distil(torch.zeros(1, 2, 1, 1), teacher).item() == pytest.approx(expected, rel=1e-6)


def test_temperature_squared_keeps_the_scale(distil, random) -> None:
    # T^2 KL(T a, T b at T) is T^2 KL(a, b at 1).
    student, teacher = random(1, CLASSES, 3, 3), random(1, CLASSES, 3, 3)
    cold, warm = distil(student, teacher), distil(3 * student, 3 * teacher, temperature=3.0)
    assert warm.item() == pytest.approx(9 * cold.item(), rel=1e-5)


def test_equals_torch_distillers_mean_over_elements_times_the_classes(distil, random) -> None:
    student, teacher = random(2, CLASSES, 4, 4), random(2, CLASSES, 4, 4)
    p, log_q = teacher.double().softmax(1), student.double().log_softmax(1)
    over_elements = (p * (p.log() - log_q)).mean()
    assert distil(student, teacher).item() == pytest.approx(CLASSES * over_elements.item(), rel=1e-5)


def test_weight_multiplies_the_term(distil, random) -> None:
    logits = random(1, CLASSES, 3, 3), random(1, CLASSES, 3, 3)
    assert distil(*logits, weight=2.5).item() == pytest.approx(2.5 * distil(*logits).item(), rel=1e-6)


def test_equal_logits_cost_nothing(distil, random) -> None:
    logits = random(2, CLASSES, 3, 3)
    assert distil(logits, logits.clone()).item() == pytest.approx(0, abs=1e-7)


def test_a_constant_on_all_classes_of_a_pixel_changes_nothing(distil, random) -> None:
    student, teacher = random(2, CLASSES, 3, 3), random(2, CLASSES, 3, 3)
    shifted = distil(student + 5 * random(2, 1, 3, 3), teacher + 5 * random(2, 1, 3, 3))
    assert shifted.item() == pytest.approx(distil(student, teacher).item(), rel=1e-5)
    # The classes are what is normalised: a constant on all pixels of one class does change it.
    assert abs(distil(student + random(1, CLASSES, 1, 1), teacher) - distil(student, teacher)) > 1e-2


@pytest.mark.parametrize("finer", ["student", "teacher"])
def test_the_coarser_logits_are_brought_to_the_finer_grid(finer: str, distil, random, bilinear) -> None:
    coarse, fine = 3 * random(2, CLASSES, 2, 3), 3 * random(2, CLASSES, 4, 6)
    resized = bilinear(coarse.numpy(), (4, 6))
    student, teacher = (fine, coarse) if finer == "student" else (coarse, fine)
    pair = (fine.numpy(), resized) if finer == "student" else (resized, fine.numpy())
    assert distil(student, teacher).item() == pytest.approx(divergence(*pair, 1.0), rel=1e-5)


def test_gradient_reaches_the_student(distil, random) -> None:
    student, teacher = random(1, CLASSES, 2, 2).requires_grad_(), random(1, CLASSES, 2, 2)
    distil(student, teacher, temperature=2.0).backward()
    # d/dz T^2 KL = T (q - p), over the number of pixels.
    expected = 2 * ((student.detach() / 2).double().softmax(1) - (teacher / 2).double().softmax(1)) / 4
    assert torch.allclose(student.grad.double(), expected, atol=1e-6)


@pytest.mark.parametrize("scale", [1, 1e4])
def test_all_pixels_ignored_leave_the_task_at_zero_and_all_terms_finite(
    scale: float, make_pair, make_batch, fake, random
) -> None:
    student = fake(logits=(scale * random(2, CLASSES, 4, 4)).requires_grad_())
    terms = LogitKD(LogitKDConfig(), make_pair()).loss(
        make_batch(label=255), student, fake(logits=scale * random(2, CLASSES, 4, 4))
    )
    sum(terms.values()).backward()
    assert terms["task"] == 0
    assert terms["logit_kd"] > 0
    assert torch.isfinite(terms["logit_kd"])
    assert torch.isfinite(student.logits.grad).all()


def test_the_task_loss_stands_beside_it(make_pair, make_batch, fake, random) -> None:
    logits = random(2, CLASSES, 8, 8)
    terms = LogitKD(LogitKDConfig(), make_pair()).loss(make_batch(label=3), fake(logits=logits), fake(logits=logits))
    assert set(terms) == {"task", "logit_kd"}
    expected = -torch.log_softmax(logits.double(), 1)[:, 3].mean()
    assert terms["task"].item() == pytest.approx(expected.item(), rel=1e-6)
