"""Variational information distillation: negative log-likelihood of the teacher's levels under a trained Gaussian."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from closed_forms import GRID, array, convolve, roughen
from kdbench.methods.vid import VID, VIDConfig

METHOD = VID


@pytest.mark.parametrize("variance", [0.01, 5.0, 2000.0])
def test_variances_begin_at_the_given_value(variance: float, make_pair) -> None:
    (gaussian,) = VID(VIDConfig(variance=variance), make_pair(3, 5)).gaussians
    begun = torch.nn.functional.softplus(gaussian.scale.detach().double()) + 1e-5
    assert begun.tolist() == [pytest.approx(variance, rel=1e-5)] * 5


def test_value_is_the_likelihood_summed_over_levels(student_grid, make_pair, distil, random, resized) -> None:
    method = roughen(VID(VIDConfig(weight=3), make_pair(3, 5, levels=2)), 1.0)
    student, teacher = ([random(2, width, *grid) for _ in range(2)] for width, grid in ((3, student_grid), (5, GRID)))
    total = 0.0
    for gaussian, ours, theirs in zip(method.gaussians, student, teacher, strict=True):
        first, second, third = gaussian.mean[::2]
        mean = convolve(np.maximum(convolve(np.maximum(convolve(ours, first), 0), second), 0), third)
        variance = np.log1p(np.exp(array(gaussian.scale)))[:, None, None] + 1e-5
        total += 0.5 * ((resized(mean) - array(theirs)) ** 2 / variance + np.log(variance)).mean()
    assert distil(method, student, teacher).item() == pytest.approx(3 * total, rel=1e-5)
