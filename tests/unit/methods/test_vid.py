"""Variational information distillation: negative log-likelihood of the teacher's levels under a trained Gaussian."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kdbench.methods.vid import VID, VIDConfig
from torch import Tensor


def likelihood(method: VID, number: int, student: np.ndarray, teacher: np.ndarray, resize=None) -> float:
    """Mean of ((mu - t)^2 / s + log s) / 2 of a level in float64, channel by channel."""
    gaussian = method.gaussians[number]
    for place in (0, 2, 4):
        weight = gaussian.mean[place].weight.detach().double().numpy()[:, :, 0, 0]
        student = np.einsum("oc,bchw->bohw", weight, student)
        student = np.maximum(student, 0) if place < 4 else student
    student = resize(student, teacher.shape[-2:]) if resize else student
    total = 0.0
    for c, scale in enumerate(gaussian.scale.tolist()):
        variance = math.log1p(math.exp(scale)) + 1e-5
        error = student[:, c] - teacher[:, c]
        total += (0.5 * (error**2 / variance + math.log(variance))).sum()
    return total / teacher.size


@pytest.fixture
def distil(make_batch, fake):
    """The distillation term alone, of a method and maps by level."""

    def run(method: VID, student: list[Tensor], teacher: list[Tensor], label: int = 0) -> Tensor:
        logits = torch.zeros(len(student[0]), 4, 2, 2)
        ours, theirs = (fake(logits, maps[-1], levels=maps) for maps in (student, teacher))
        terms = method.loss(make_batch(len(student[0]), label), ours, theirs)
        assert set(terms) == {"task", "vid"}
        return terms["vid"]

    return run


@pytest.mark.parametrize("variance", [0.01, 5.0, 2000.0])
def test_variances_begin_at_the_given_value(variance: float, make_pair) -> None:
    (gaussian,) = VID(VIDConfig(variance=variance), make_pair(3, 5)).gaussians
    scales = gaussian.scale.detach().double()
    begun = torch.nn.functional.softplus(scales) + 1e-5
    assert begun.tolist() == [pytest.approx(variance, rel=1e-5)] * 5


@pytest.mark.parametrize("student_grid", [(3, 4), (6, 8)])
def test_value_equals_a_sum_over_levels_and_channels(
    student_grid: tuple[int, int], make_pair, distil, random, bilinear
) -> None:
    method = VID(VIDConfig(weight=3), make_pair(3, 5, levels=2))
    with torch.no_grad():
        for gaussian in method.gaussians:
            gaussian.scale.copy_(random(5))
    student, teacher = [random(2, 3, *student_grid) for _ in range(2)], [random(2, 5, 3, 4) for _ in range(2)]
    expected = 3 * sum(
        likelihood(method, number, ours.double().numpy(), theirs.double().numpy(), bilinear)
        for number, (ours, theirs) in enumerate(zip(student, teacher, strict=True))
    )
    assert distil(method, student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_the_variance_of_a_channel_is_trained_towards_its_squared_error(make_pair, distil, random) -> None:
    method = VID(VIDConfig(), make_pair(3, 2))
    student = random(2, 3, 4, 8)
    target = method.gaussians[0].mean(student).detach()
    # Errors of 1 and 3 on a variance of 5: too large for the first channel, too small for the second.
    target[:, 0] += 1
    target[:, 1] += 3
    distil(method, [student], [target]).backward()
    narrower, wider = method.gaussians[0].scale.grad.tolist()
    assert narrower > 0 > wider
