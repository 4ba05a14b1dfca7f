"""Attention transfer: squared distance between the unit-norm energies of both networks' last maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench.methods.at import AT, ATConfig
from pydantic import ValidationError
from torch import Tensor

from kdbench.types import STUDENT, TEACHER, Part, Phase


def attention(map_: np.ndarray) -> np.ndarray:
    """One image's energies position by position, as a vector of norm one."""
    channels, height, width = map_.shape
    energy = [sum(map_[c, y, x] ** 2 for c in range(channels)) for y in range(height) for x in range(width)]
    return np.array(energy) / np.sqrt(sum(value**2 for value in energy))


def distance(student: np.ndarray, teacher: np.ndarray) -> float:
    """Squared distance of the attentions, image by image in float64, then their mean."""
    pairs = zip(student.astype(np.float64), teacher.astype(np.float64), strict=True)
    return float(np.mean([((attention(ours) - attention(theirs)) ** 2).sum() for ours, theirs in pairs]))


@pytest.fixture
def distil(make_pair, make_batch, fake):
    """The distillation term alone."""

    def run(student: Tensor, teacher: Tensor, **config: float) -> Tensor:
        method = AT(ATConfig(**config), make_pair())
        logits = torch.zeros(len(student), 4, 2, 2)
        terms = method.loss(make_batch(len(student)), fake(logits, student), fake(None, teacher))
        assert set(terms) == {"task", "at"}
        return terms["at"]

    return run


def test_default_is_the_published_weight_at_64_by_128_positions() -> None:
    assert ATConfig().model_dump() == {"preset": "plain", "mean_weight": pytest.approx(1.22, abs=0.001)}
    with pytest.raises(ValidationError):
        ATConfig(mean_weight=-1)


def test_one_joint_stage_without_adapters_or_teacher_decoder(make_pair) -> None:
    (joint,) = AT(ATConfig(), make_pair()).stages()
    assert (joint.name, joint.phase, joint.trains) == ("joint", Phase.TASK, STUDENT)
    assert joint.parts == STUDENT | {Part.TEACHER_ENCODER}


def test_value_equals_a_loop_over_positions(distil, random) -> None:
    student, teacher = random(3, 3, 4, 6), random(3, 5, 4, 6)
    expected = 1e4 / 8192 * distance(student.numpy(), teacher.numpy())
    assert distil(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_energies_at_different_places_are_at_distance_two(distil) -> None:
    student, teacher = torch.zeros(1, 3, 1, 2), torch.zeros(1, 5, 1, 2)
    student[..., 0], teacher[..., 1] = 7, -0.1
    assert distil(student, teacher, mean_weight=1).item() == pytest.approx(2, rel=1e-6)


def test_the_published_coefficient_holds_at_the_published_grid(distil, random) -> None:
    # 1e4 on the mean over images and positions, as CIRKD writes it.
    student, teacher = random(1, 3, 64, 128), random(1, 5, 64, 128)
    expected = 1e4 * distance(student.numpy(), teacher.numpy()) / (64 * 128)
    assert distil(student, teacher).item() == pytest.approx(expected, rel=1e-4)


def test_the_scale_of_a_map_does_not_matter(distil, random) -> None:
    student, teacher = random(2, 3, 4, 6), random(2, 5, 4, 6)
    before = distil(student, teacher).item()
    assert distil(50 * student, 0.01 * teacher).item() == pytest.approx(before, rel=1e-5)
    assert distil(student, -3 * student).item() == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("grid", [(2, 3), (8, 12)])
def test_the_student_is_resized_to_the_teachers_grid(grid: tuple[int, int], distil, random, bilinear) -> None:
    student, teacher = random(2, 3, *grid), random(2, 5, 4, 6)
    expected = 1e4 / 8192 * distance(bilinear(student.numpy(), (4, 6)), teacher.numpy())
    assert distil(student, teacher).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_silent_and_loud_maps_give_finite_gradients(scale: float, distil, random) -> None:
    student = (scale * random(2, 3, 4, 6)).requires_grad_()
    value = distil(student, 1e4 * random(2, 5, 4, 6))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()
    assert (student.grad.abs().sum() > 0) == (scale > 0)


def test_half_precision_maps_are_compared_in_single_precision(distil, random) -> None:
    # Squares above 65504 overflow in float16.
    student, teacher = (1e3 * random(2, width, 4, 6).half() for width in (3, 5))
    expected = 1e4 / 8192 * distance(student.numpy(), teacher.numpy())
    assert distil(student, teacher).item() == pytest.approx(expected, rel=1e-4)


def test_ignored_pixels_count(make_pair, make_batch, fake, random) -> None:
    method = AT(ATConfig(), make_pair())
    student, teacher = fake(random(2, 4, 2, 2), random(2, 3, 2, 2)), fake(None, random(2, 5, 2, 2))
    ignored, seen = (method.loss(make_batch(label=label), student, teacher) for label in (255, 0))
    assert ignored["task"] == 0
    assert ignored["at"] == seen["at"] > 0


def test_the_papers_recipe_adds_logit_distillation(make_pair, make_batch, fake, random) -> None:
    method = AT(ATConfig(preset="published"), make_pair())
    fit, joint = method.stages()
    assert (fit.phase, joint.parts) == (Phase.FIT_TEACHER, STUDENT | TEACHER)
    ours, theirs = random(2, 4, 2, 2), random(2, 4, 2, 2)
    terms = method.loss(make_batch(), fake(ours, random(2, 3, 2, 2)), fake(theirs, random(2, 5, 2, 2)))
    p, q = theirs.double().softmax(1), ours.double().softmax(1)
    assert terms["logit_kd"].item() == pytest.approx((p * (p.log() - q.log())).sum(1).mean().item(), rel=1e-5)
    assert set(terms) == {"task", "at", "logit_kd"}
