"""Intra-class variation: squared error between cosines of positions with the centres of their classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from closed_forms import GRID, array, unit
from kdbench.methods.ifvd import IFVD

METHOD = IFVD


def variation(map_: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Cosines (B, h, w), image by image and class by class; one where the label is 255."""
    cosines = np.ones(label.shape)
    for image, y, values in zip(map_, label, cosines, strict=True):
        for k in set(y.ravel()) - {255}:
            vectors = image[:, y == k]
            values[y == k] = unit(vectors.mean(1)) @ unit(vectors, 0)
    return cosines


def error(student: np.ndarray, teacher: np.ndarray, label: np.ndarray) -> float:
    return float(((variation(student, label) - variation(teacher, label)) ** 2).mean())


def test_value_is_the_squared_error_of_the_cosines(student_grid, distil, random, resized) -> None:
    # Every class, one of them at a single position, and ignored ones, which count in the mean.
    label = torch.randint(0, 3, (2, *GRID), generator=torch.Generator().manual_seed(1))
    label[0, 1, 2], label[:, 3, 1:3] = 3, 255
    student, teacher = random(2, 3, *student_grid), random(2, 5, *GRID)
    expected = 20 * error(resized(student), array(teacher), label.numpy())
    finer = label.repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert distil(student, teacher, label=finer).item() == pytest.approx(expected, rel=1e-4)


def test_gradient_flows_through_the_centres(distil, random) -> None:
    # With centres held fixed, a position's gradient would not depend on another position's target.
    student, label = random(1, 3, 1, 3).requires_grad_(), torch.zeros(1, 1, 3, dtype=torch.long)
    teacher = random(1, 5, 1, 3)
    (gradient,) = torch.autograd.grad(distil(student, teacher, label=label), student)
    step = 1e-2 * array(gradient / gradient.norm())
    up, down = (error(array(student) + s * step, array(teacher), label.numpy()) for s in (1, -1))
    assert gradient.norm().item() == pytest.approx(20 * (up - down) / 2e-2, rel=1e-2)
