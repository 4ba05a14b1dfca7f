"""Logit distillation of logits that are standardised over the classes of each pixel."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch
from kdbench.methods.logit_std import LogitStd, LogitStdConfig
from pydantic import ValidationError
from torch import Tensor

from kdbench.types import STUDENT, TEACHER, Phase

CLASSES = 4


def log_softmax(values: list[float], temperature: float) -> list[float]:
    """Of standardised values, in float64."""
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    scores = [(value - mean) / (deviation + 1e-7) / temperature for value in values]
    return [score - math.log(sum(math.exp(s) for s in scores)) for score in scores]


def divergence(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """T^2 times the mean over pixels of KL(teacher || student), pixel by pixel."""
    total, pixels = 0.0, 0
    for b, y, x in np.ndindex(student.shape[0], *student.shape[2:]):
        p, q = (log_softmax([float(v) for v in logits[b, :, y, x]], temperature) for logits in (teacher, student))
        total += sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
        pixels += 1
    return temperature**2 * total / pixels


@pytest.fixture
def distil(make_pair, make_batch, fake):
    """The distillation term alone."""

    def run(student: Tensor, teacher: Tensor, label: int = 0, **config: float) -> Tensor:
        method = LogitStd(LogitStdConfig(**config), make_pair())
        terms = method.loss(make_batch(len(student), label), fake(logits=student), fake(logits=teacher))
        assert set(terms) == {"task", "logit_std"}
        return terms["logit_std"]

    return run


def test_defaults_are_the_published_ones() -> None:
    assert LogitStdConfig().model_dump() == {"temperature": 2.0, "weight": 9.0}


@pytest.mark.parametrize("config", [{"temperature": 0}, {"weight": -1}])
def test_knobs_are_held_to_their_limits(config: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        LogitStdConfig(**config)


def test_stages_fit_the_teacher_then_train_the_whole_student(make_pair) -> None:
    fit, joint = LogitStd(LogitStdConfig(), make_pair()).stages()
    assert fit.phase == Phase.FIT_TEACHER
    assert (joint.phase, joint.trains, joint.parts) == (Phase.TASK, STUDENT, STUDENT | TEACHER)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_value_equals_a_loop_over_pixels(temperature: float, distil, random) -> None:
    student, teacher = 3 * random(2, CLASSES, 3, 5), random(2, CLASSES, 3, 5)
    expected = 9 * divergence(student.numpy(), teacher.numpy(), temperature)
    assert distil(student, teacher, temperature=temperature).item() == pytest.approx(expected, rel=1e-5)


def test_scale_and_offset_of_the_classes_of_a_pixel_change_nothing(distil, random) -> None:
    student, teacher = random(2, CLASSES, 3, 5), random(2, CLASSES, 3, 5)
    rescaled = random(2, 1, 3, 5).exp() * student + random(2, 1, 3, 5)
    assert distil(rescaled, teacher).item() == pytest.approx(distil(student, teacher).item(), rel=1e-4)
    # The classes are what is standardised: the scale of one class over all pixels does matter.
    skewed = torch.tensor([3.0, 1, 1, 1]).view(1, -1, 1, 1) * student
    assert abs(distil(skewed, teacher) - distil(student, teacher)) > 1e-2


@pytest.mark.parametrize("grids", [((2, 3), (4, 6)), ((4, 6), (2, 3))])
def test_the_coarser_logits_are_brought_to_the_finer_grid(grids, distil, random, bilinear) -> None:
    student, teacher = (random(2, CLASSES, *grid) for grid in grids)
    expected = divergence(bilinear(student.numpy(), (4, 6)), bilinear(teacher.numpy(), (4, 6)), 2.0)
    assert distil(student, teacher, weight=1).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("scale", [0, 1, 1e4])
def test_term_and_gradient_are_finite_with_all_pixels_ignored(scale: float, distil, random) -> None:
    student = (scale * random(2, CLASSES, 4, 4)).requires_grad_()
    term = distil(student, max(scale, 1) * random(2, CLASSES, 4, 4), label=255)
    term.backward()
    assert term > 0
    assert torch.isfinite(term)
    assert torch.isfinite(student.grad).all()
    assert student.grad.abs().sum() > 0
