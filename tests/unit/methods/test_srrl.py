"""SRRL: projected student levels match the teacher's in their means and in what the teacher's decoder makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from kdbench.methods.srrl import SRRL, SRRLConfig
from torch import Tensor, nn

from kdbench.types import Features, SegOutput

CLASSES = 4


@pytest.fixture
def make_teacher(fake, random):
    """A teacher whose frozen decoder sums a linear map of every level."""

    class Teacher(fake):
        def __init__(self, levels: list[Tensor]) -> None:
            super().__init__(levels=levels)
            self.weights = [random(CLASSES, level.shape[1]) for level in levels]

        def decode(self, features: Features) -> SegOutput:
            maps = zip(self.weights, features.levels, strict=True)
            return SegOutput(features, sum(torch.einsum("kc,bchw->bkhw", w, level) for w, level in maps))

    return Teacher


@pytest.fixture
def distil(make_batch, fake, random):
    """The two terms, of a method, a student's levels and a teacher."""

    def run(method: SRRL, student: list[Tensor], teacher: Any) -> dict[str, Tensor]:
        terms = method.loss(make_batch(len(student[0])), fake(random(2, CLASSES, 4, 4), levels=student), teacher)
        assert set(terms) == {"task", "srrl_features", "srrl_logits"}
        return {name: term for name, term in terms.items() if name != "task"}

    return run


def project(projector: nn.Sequential, map_: np.ndarray) -> np.ndarray:
    """A 1x1 convolution and a norm over the batch, in float64; no ReLU."""
    kernel, gain, shift = (p.detach().double().numpy() for p in projector.parameters())
    map_ = np.einsum("dc,bchw->bdhw", kernel[:, :, 0, 0], map_)
    normed = (map_ - map_.mean((0, 2, 3), keepdims=True)) / np.sqrt(map_.var((0, 2, 3), keepdims=True) + 1e-5)
    return normed * gain[:, None, None] + shift[:, None, None]


def expected(projected: list[np.ndarray], teacher: Any) -> tuple[float, float]:
    """Both terms of projected levels, unweighted."""
    goals = [level.double().numpy() for level in teacher.levels]
    means = [((a.mean((2, 3)) - b.mean((2, 3))) ** 2).mean() for a, b in zip(projected, goals, strict=True)]
    weights = [weight.double().numpy() for weight in teacher.weights]
    ours, theirs = (
        sum(np.einsum("kc,bchw->bkhw", w, level) for w, level in zip(weights, levels, strict=True))
        for levels in (projected, goals)
    )
    return sum(means) / len(means), ((ours - theirs) ** 2).mean()


def test_the_plain_student_is_deployed(make_pair) -> None:
    student = nn.Identity()
    assert SRRL(SRRLConfig(), make_pair()).deploy(student, nn.Identity()) is student


def test_value_equals_an_explicit_computation(make_pair, distil, make_teacher, random) -> None:
    method = SRRL(SRRLConfig(feature_weight=3, logit_weight=7), make_pair(3, 6, levels=2))
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.3 * random(*parameter.shape))
    student, teacher = [random(2, 3, 3, 4) for _ in range(2)], make_teacher([random(2, 6, 3, 4) for _ in range(2)])
    projected = [project(p, map_.double().numpy()) for p, map_ in zip(method.projectors.each, student, strict=True)]
    features, logits = expected(projected, teacher)
    terms = distil(method, student, teacher)
    assert terms["srrl_features"].item() == pytest.approx(3 * features, rel=1e-4)
    assert terms["srrl_logits"].item() == pytest.approx(7 * logits, rel=1e-4)


@pytest.mark.parametrize("grid", [(2, 3), (8, 12)])
def test_a_finer_level_is_pooled_before_its_projector_and_a_coarser_one_resized_after_it(
    grid, make_pair, distil, make_teacher, random, bilinear
) -> None:
    method = SRRL(SRRLConfig(), make_pair(3, 6))
    student, teacher = random(2, 3, *grid), make_teacher([random(2, 6, 4, 6)])
    coarse = student.double().numpy()
    if grid == (8, 12):
        coarse = coarse.reshape(2, 3, 4, 2, 6, 2).mean((3, 5))
    resized = bilinear(project(method.projectors.each[0], coarse), (4, 6))
    assert [term.item() for term in distil(method, [student], teacher).values()] == pytest.approx(
        expected([resized], teacher), rel=1e-4
    )
