"""NKD: the teacher's probability of the label's class, and the normalised other classes, over labelled pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kdbench.methods.nkd import NKD, NKDConfig
from torch import Tensor

from kdbench.types import Batch

CLASSES = 4


def parts(student: np.ndarray, teacher: np.ndarray, label: np.ndarray, temperature: float) -> tuple[float, float]:
    """Means over labelled pixels of both cross-entropies, from plain probabilities in float64."""
    target, rest, count = 0.0, 0.0, 0
    for b, y, x in np.ndindex(label.shape):
        place = label[b, y, x]
        if place == 255:
            continue
        hits, others = [], []
        for logits in (teacher, student):
            values = [float(value) for value in logits[b, :, y, x]]
            hits.append(math.exp(values[place]) / sum(math.exp(value) for value in values))
            odds = [math.exp(value / temperature) for c, value in enumerate(values) if c != place]
            others.append([value / sum(odds) for value in odds])
        target -= hits[0] * math.log(hits[1])
        rest -= temperature**2 * sum(p * math.log(q) for p, q in zip(*others, strict=True))
        count += 1
    return target / count, rest / count


@pytest.fixture
def distil(make_pair, fake):
    """Both parts, of labels on the logits' grid or a finer one."""

    def run(student: Tensor, teacher: Tensor, label: Tensor, **config: float) -> tuple[Tensor, Tensor]:
        batch = Batch(torch.zeros(len(label), 3, 8, 8), label, ("here",) * len(label), torch.arange(len(label)))
        terms = NKD(NKDConfig(**config), make_pair()).loss(batch, fake(logits=student), fake(logits=teacher))
        assert set(terms) == {"task", "nkd_target", "nkd_rest"}
        return terms["nkd_target"], terms["nkd_rest"]

    return run


@pytest.fixture
def case(random) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of both, and labels of which a third is ignored."""
    label = random(2, 3, 5).mul(100).long() % CLASSES
    return 2 * random(2, CLASSES, 3, 5), 2 * random(2, CLASSES, 3, 5), label.where(random(2, 3, 5) < 0.5, 255)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_values_equal_a_loop_over_labelled_pixels(temperature: float, distil, case) -> None:
    target, rest = distil(*case, gamma=2.5, temperature=temperature)
    expected = parts(*(tensor.numpy() for tensor in case), temperature)
    assert target.item() == pytest.approx(expected[0], rel=1e-5)
    assert rest.item() == pytest.approx(2.5 * expected[1], rel=1e-5)


def test_a_teacher_that_is_certain_of_the_label_gives_the_cross_entropy(distil, case) -> None:
    student, _, label = case
    certain = 100 * F.one_hot(label % 255, CLASSES).movedim(-1, 1).float()
    expected = F.cross_entropy(student.double(), label, ignore_index=255)
    assert distil(student, certain, label)[0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_ignored_pixels_do_not_count(distil, case) -> None:
    student, teacher, label = case
    elsewhere = student + 5 * (label == 255)[:, None] * torch.arange(CLASSES).view(1, -1, 1, 1)
    assert distil(elsewhere, teacher, label) == distil(*case)
