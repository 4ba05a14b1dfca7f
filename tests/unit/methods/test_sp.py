"""Similarity-preserving distillation: squared error between row-normalised similarities of a batch's images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench.methods.sp import SP, SPConfig
from pydantic import ValidationError
from torch import Tensor

from kdbench.types import STUDENT, Part, Phase


def similarities(map_: np.ndarray) -> np.ndarray:
    """Products of images entry by entry in float64, each row divided by the root of its sum of squares."""
    images = [image.ravel().astype(np.float64) for image in map_]
    table = np.array([[(a * b).sum() for b in images] for a in images])
    return np.array([row / np.sqrt((row**2).sum()) for row in table])


@pytest.fixture
def distil(make_pair, make_batch, fake):
    """The distillation term alone."""

    def run(student: Tensor, teacher: Tensor, label: int = 0, **config: float) -> Tensor:
        method = SP(SPConfig(**config), make_pair())
        logits = torch.zeros(len(student), 4, 2, 2)
        terms = method.loss(make_batch(len(student), label), fake(logits, student), fake(None, teacher))
        assert set(terms) == {"task", "sp"}
        return terms["sp"]

    return run


def test_default_is_the_published_weight() -> None:
    assert SPConfig().model_dump() == {"row_weight": 46.875}
    with pytest.raises(ValidationError):
        SPConfig(row_weight=-1)


def test_one_joint_stage_without_adapters_or_teacher_decoder(make_pair) -> None:
    (joint,) = SP(SPConfig(), make_pair()).stages()
    assert (joint.name, joint.phase, joint.trains) == ("joint", Phase.TASK, STUDENT)
    assert joint.parts == STUDENT | {Part.TEACHER_ENCODER}


@pytest.mark.parametrize("grid", [(2, 4), (3, 5)])
def test_value_equals_a_loop_over_pairs_of_images_on_any_grid(grid: tuple[int, int], distil, random) -> None:
    student, teacher = random(5, 3, *grid), random(5, 7, 2, 4) + 1
    difference = similarities(student.numpy()) - similarities(teacher.numpy())
    assert distil(student, teacher).item() == pytest.approx(46.875 * (difference**2).sum() / 5, rel=1e-4)


def test_a_batch_of_two_computed_by_hand(distil) -> None:
    # Unlike images give the identity, equal ones rows of (1, 1) / sqrt(2).
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(2, 2, 1, 1)
    half = 0.5**0.5
    expected = (1 - half) ** 2 + half**2
    assert distil(student, torch.ones(2, 1, 1, 1), row_weight=1).item() == pytest.approx(expected, rel=1e-6)


def test_the_scale_of_a_map_does_not_matter(distil, random) -> None:
    student, teacher = random(4, 3, 2, 3), random(4, 5, 2, 3)
    before = distil(student, teacher).item()
    assert distil(50 * student, 0.01 * teacher).item() == pytest.approx(before, rel=1e-4)
    assert distil(student, 3 * student).item() == pytest.approx(0, abs=1e-8)


def test_a_single_image_has_nothing_to_be_compared_with(distil, random) -> None:
    student = random(1, 3, 2, 3).requires_grad_()
    value = distil(student, random(1, 5, 2, 3))
    value.backward()
    assert value == 0
    assert student.grad.abs().max() < 1e-2


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_silent_and_loud_maps_give_finite_gradients(scale: float, distil, random) -> None:
    student = (scale * random(4, 3, 4, 8)).requires_grad_()
    value = distil(student, 1e4 * random(4, 5, 4, 8), label=255)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()
    assert (student.grad.abs().sum() > 0) == (scale > 0)


def test_autocast_keeps_single_precision(distil, random) -> None:
    student, teacher = random(4, 3, 4, 8), random(4, 5, 4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        value = distil(student, teacher)
    assert value == distil(student, teacher)
