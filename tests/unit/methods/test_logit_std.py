"""Logit distillation of logits that are standardised over the classes of each pixel."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from kdbench.methods.logit_std import LogitStd

METHOD = LogitStd

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


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_value_equals_a_loop_over_pixels(temperature: float, distil, random) -> None:
    student, teacher = 3 * random(2, CLASSES, 3, 5), random(2, CLASSES, 3, 5)
    expected = 9 * divergence(student.numpy(), teacher.numpy(), temperature)
    assert distil(student, teacher, temperature=temperature).item() == pytest.approx(expected, rel=1e-5)
