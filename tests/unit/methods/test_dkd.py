"""DKD: the divergence of the label's class against the rest, and that among the rest, over labelled pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kdbench.methods.dkd import DKD, DKDConfig
from torch import Tensor

from kdbench.types import Batch

CLASSES = 4


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def parts(student: np.ndarray, teacher: np.ndarray, label: np.ndarray, temperature: float) -> tuple[float, float]:
    """Means over labelled pixels of both parts, from plain probabilities in float64."""
    target, rest, count = 0.0, 0.0, 0
    for b, y, x in np.ndindex(label.shape):
        if label[b, y, x] == 255:
            continue
        binary, others = [], []
        for logits in (teacher, student):
            odds = [math.exp(float(value) / temperature) for value in logits[b, :, y, x]]
            hit = odds.pop(label[b, y, x])
            binary.append([hit / (hit + sum(odds)), sum(odds) / (hit + sum(odds))])
            others.append([value / sum(odds) for value in odds])
        target += temperature**2 * divergence(*binary)
        rest += temperature**2 * divergence(*others)
        count += 1
    return target / count, rest / count


@pytest.fixture
def distil(make_pair, fake):
    """Both parts, of labels on the logits' grid or a finer one."""

    def run(
        student: Tensor, teacher: Tensor, label: Tensor, progress: float = 1.0, **config: float
    ) -> tuple[Tensor, Tensor]:
        count = len(label)
        batch = Batch(torch.zeros(count, 3, 8, 8), label, ("here",) * count, torch.arange(count), progress)
        terms = DKD(DKDConfig(**config), make_pair()).loss(batch, fake(logits=student), fake(logits=teacher))
        assert set(terms) == {"task", "dkd_target", "dkd_rest"}
        return terms["dkd_target"], terms["dkd_rest"]

    return run


@pytest.fixture
def case(random) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of both, and labels of which a third is ignored."""
    label = random(2, 3, 5).mul(100).long() % CLASSES
    return 2 * random(2, CLASSES, 3, 5), 2 * random(2, CLASSES, 3, 5), label.where(random(2, 3, 5) < 0.5, 255)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_values_equal_a_loop_over_labelled_pixels(temperature: float, distil, case) -> None:
    target, rest = distil(*case, alpha=2, beta=3, temperature=temperature)
    expected = parts(*(tensor.numpy() for tensor in case), temperature)
    assert target.item() == pytest.approx(2 * expected[0], rel=1e-5)
    assert rest.item() == pytest.approx(3 * expected[1], rel=1e-5)


def test_the_two_parts_make_up_the_divergence_of_logit_distillation(distil, random) -> None:
    student, teacher, label = random(1, CLASSES, 1, 1), random(1, CLASSES, 1, 1), torch.full((1, 1, 1), 2)
    p, q = (logits.double().flatten().div(3).softmax(0) for logits in (teacher, student))
    target, rest = distil(student, teacher, label, alpha=1, beta=1, temperature=3)
    whole = 9 * (p * (p / q).log()).sum()
    assert (target + (1 - p[2]) * rest).item() == pytest.approx(whole.item(), rel=1e-5)


def test_ignored_pixels_do_not_count(distil, case) -> None:
    student, teacher, label = case
    elsewhere = student + 5 * (label == 255)[:, None] * torch.arange(CLASSES).view(1, -1, 1, 1)
    assert distil(elsewhere, teacher, label) == distil(*case)


def test_labels_are_brought_to_the_logits_grid_by_nearest_neighbour(distil, case) -> None:
    student, teacher, label = case
    finer = label.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert distil(student, teacher, finer) == distil(student, teacher, label)


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.05), (0.025, 0.525), (0.05, 1.0), (0.9, 1.0)])
def test_the_weight_grows_from_a_twentieth_to_the_whole(progress: float, share: float, distil, case) -> None:
    for early, late in zip(distil(*case, progress=progress), distil(*case), strict=True):
        assert early.item() == pytest.approx(share * late.item(), rel=1e-5)


def test_without_a_warmup_the_first_step_counts_in_full(distil, case) -> None:
    assert distil(*case, progress=0.0, warmup=0) == distil(*case)
