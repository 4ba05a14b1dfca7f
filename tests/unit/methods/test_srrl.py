"""SRRL: projected student levels match the teacher's in their means and in what the teacher's decoder makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from closed_forms import GRID, array, batch_norm, convolve, pooled, roughen
from kdbench.methods.srrl import SRRL, SRRLConfig
from torch import Tensor, nn

from kdbench.types import Features, SegOutput

METHOD = SRRL


@pytest.fixture
def make_teacher(fake, random):
    """A teacher whose frozen decoder sums a linear map of every level."""

    class Teacher(fake):
        def __init__(self, levels: list[Tensor]) -> None:
            super().__init__(final=levels[-1], levels=levels)
            self.weights = [random(4, level.shape[1]) for level in levels]

        def decode(self, features: Features) -> SegOutput:
            maps = zip(self.weights, features.levels, strict=True)
            return SegOutput(features, sum(torch.einsum("kc,bchw->bkhw", w, level) for w, level in maps))

    return Teacher


def expected(projected: list[np.ndarray], teacher: Any) -> tuple[float, float]:
    """Both terms of projected levels, unweighted."""
    differences = [a - array(b) for a, b in zip(projected, teacher.levels, strict=True)]
    judged = sum(np.einsum("kc,bchw->bkhw", array(w), d) for w, d in zip(teacher.weights, differences, strict=True))
    return float(np.mean([(d.mean((2, 3)) ** 2).mean() for d in differences])), float((judged**2).mean())


def test_the_plain_student_is_deployed(make_pair) -> None:
    student = nn.Identity()
    assert SRRL(SRRLConfig(), make_pair()).deploy(student, nn.Identity()) is student


def test_levels_are_pooled_projected_and_resized(
    student_grid, make_pair, distil, make_teacher, random, resized
) -> None:
    method = roughen(SRRL(SRRLConfig(feature_weight=3, logit_weight=7), make_pair(3, 6, levels=2)))
    student = [random(2, 3, *student_grid) for _ in range(2)]
    teacher = make_teacher([random(2, 6, *GRID) for _ in range(2)])
    maps = [pooled(map_, (2, 2)) if student_grid == (8, 12) else map_ for map_ in student]
    projectors = zip(method.projectors.each, maps, strict=True)
    projected = [resized(batch_norm(convolve(map_, conv), norm)) for (conv, norm), map_ in projectors]
    features, logits = expected(projected, teacher)
    terms = distil(method, student, teacher)
    assert terms["srrl_features"].item() == pytest.approx(3 * features, rel=1e-4)
    assert terms["srrl_logits"].item() == pytest.approx(7 * logits, rel=1e-4)
