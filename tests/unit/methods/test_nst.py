"""NST: the maximum mean discrepancy of normalised channels under a squared inner product."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench.methods.nst import NST, NSTConfig
from pydantic import ValidationError
from torch import Tensor

from kdbench.types import STUDENT, Part, Phase


def discrepancy(student: np.ndarray, teacher: np.ndarray) -> float:
    """Mean over images of the three means of the kernel, pair of channels by pair in float64."""

    def mean_kernel(first: np.ndarray, second: np.ndarray) -> float:
        total = 0.0
        for a in first:
            for b in second:
                total += float(a.ravel() @ b.ravel() / np.linalg.norm(a) / np.linalg.norm(b)) ** 2
        return total / (len(first) * len(second))

    pairs = [(s.astype(np.float64), t.astype(np.float64)) for s, t in zip(student, teacher, strict=True)]
    return sum(mean_kernel(t, t) + mean_kernel(s, s) - 2 * mean_kernel(s, t) for s, t in pairs) / len(pairs)


@pytest.fixture
def distil(make_pair, make_batch, fake):
    """The distillation term alone."""

    def run(student: Tensor, teacher: Tensor, label: int = 0, **config: float) -> Tensor:
        method = NST(NSTConfig(**config), make_pair())
        logits = torch.zeros(len(student), 4, 2, 2)
        terms = method.loss(make_batch(len(student), label), fake(logits, student), fake(None, teacher))
        assert set(terms) == {"task", "nst"}
        return terms["nst"]

    return run


def test_default_is_the_published_one() -> None:
    assert NSTConfig().model_dump() == {"weight": 50.0}


def test_the_weight_cannot_be_negative() -> None:
    with pytest.raises(ValidationError):
        NSTConfig(weight=-1)


def test_one_joint_stage_without_an_adapter_or_the_teachers_decoder(make_pair) -> None:
    (joint,) = NST(NSTConfig(), make_pair()).stages()
    assert (joint.phase, joint.trains) == (Phase.TASK, STUDENT)
    assert joint.parts == STUDENT | {Part.TEACHER_ENCODER}


@pytest.mark.parametrize("widths", [(3, 5), (5, 3), (4, 4)])
def test_value_equals_a_loop_over_pairs_of_channels(widths: tuple[int, int], distil, random) -> None:
    student, teacher = random(2, widths[0], 3, 4), random(2, widths[1], 3, 4)
    expected = 50 * discrepancy(student.numpy(), teacher.numpy())
    assert distil(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_channels_computed_by_hand(distil) -> None:
    # Each network has a single channel, on one of two positions: k is 1 with itself and 0 with the other.
    left = torch.tensor([2.0, 0.0]).view(1, 1, 1, 2)
    assert distil(left, left.flip(-1), weight=1).item() == pytest.approx(2, rel=1e-6)


def test_order_repetition_and_scale_of_channels_change_nothing(distil, random) -> None:
    teacher = random(2, 5, 3, 4)
    same_set = teacher[:, [4, 2, 0, 1, 3, 0, 1, 2, 3, 4]] * random(2, 10, 1, 1)
    assert distil(same_set, teacher).item() == pytest.approx(0, abs=1e-4)
    student = random(2, 3, 3, 4)
    assert distil(student * random(2, 3, 1, 1), teacher).item() == pytest.approx(
        distil(student, teacher).item(), rel=1e-4
    )


@pytest.mark.parametrize("grid", [(2, 3), (8, 12)])
def test_the_student_is_resized_to_the_teachers_grid(grid: tuple[int, int], distil, random, bilinear) -> None:
    student, teacher = random(2, 3, *grid), random(2, 5, 4, 6)
    expected = 50 * discrepancy(bilinear(student.numpy(), (4, 6)), teacher.numpy())
    assert distil(student, teacher).item() == pytest.approx(expected, rel=1e-4)


def test_half_precision_around_it_changes_nothing(distil, random) -> None:
    student, teacher = random(2, 3, 4, 8), random(2, 5, 4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        inside = distil(student, teacher)
    assert inside.item() == distil(student, teacher).item()


@pytest.mark.parametrize("scale", [0, 1, 1e4])
def test_term_and_gradient_are_finite_with_all_pixels_ignored(scale: float, distil, random) -> None:
    student = (scale * random(2, 3, 4, 8)).requires_grad_()
    term = distil(student, scale * random(2, 5, 4, 8), label=255)
    term.backward()
    assert torch.isfinite(term)
    assert torch.isfinite(student.grad).all()
    assert (student.grad.abs().sum() > 0) == (scale > 0)
