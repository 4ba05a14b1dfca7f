"""Logit distillation: KL over the classes of each pixel, averaged over pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from kdbench.methods.logit_kd import LogitKD

METHOD = LogitKD

CLASSES = 4


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    exponentials = [math.exp(value - top) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def divergence(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """T^2 times the mean over pixels of KL(teacher || student) over classes, pixel by pixel in float64."""
    batch, _, height, width = student.shape
    total = 0.0
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                p = softmax([float(value) / temperature for value in teacher[b, :, y, x]])
                q = softmax([float(value) / temperature for value in student[b, :, y, x]])
                total += sum(pc * (math.log(pc) - math.log(qc)) for pc, qc in zip(p, q, strict=True))
    return temperature**2 * total / (batch * height * width)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_value_equals_a_loop_over_pixels(temperature: float, distil, random) -> None:
    student, teacher = 3 * random(2, CLASSES, 3, 5), 3 * random(2, CLASSES, 3, 5)
    expected = divergence(student.numpy(), teacher.numpy(), temperature)
    assert expected > 0.1
    assert distil(student, teacher, temperature=temperature).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("finer", ["student", "teacher"])
def test_the_coarser_logits_are_brought_to_the_finer_grid(finer: str, distil, random, bilinear) -> None:
    coarse, fine = 3 * random(2, CLASSES, 2, 3), 3 * random(2, CLASSES, 4, 6)
    resized = bilinear(coarse.numpy(), (4, 6))
    student, teacher = (fine, coarse) if finer == "student" else (coarse, fine)
    pair = (fine.numpy(), resized) if finer == "student" else (resized, fine.numpy())
    assert distil(student, teacher).item() == pytest.approx(divergence(*pair, 1.0), rel=1e-5)
