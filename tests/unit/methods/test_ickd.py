"""ICKD: squared distance of the unit rows of the matrices of inner products between channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench.methods.ickd import ICKD, ICKDConfig
from torch import Tensor

METHOD = ICKD


def correlations(image: np.ndarray) -> np.ndarray:
    """(C, C): inner products of channels, rows of unit length."""
    matrix = np.array([[float(a.ravel() @ b.ravel()) for b in image] for a in image])
    return np.array([row / np.sqrt((row**2).sum()) for row in matrix])


def distance(student: np.ndarray, teacher: np.ndarray) -> float:
    """Squared distance, mean over rows and images, in float64."""
    total = 0.0
    for ours, theirs in zip(student.astype(np.float64), teacher.astype(np.float64), strict=True):
        for row, goal in zip(correlations(ours), correlations(theirs), strict=True):
            total += ((row - goal) ** 2).sum()
    return total / (len(teacher) * teacher.shape[1])


def adapt(method: ICKD, student: Tensor) -> np.ndarray:
    """The convolution position by position, then the statistics of each channel, in float64."""
    convolution, norm = method.adapter
    weight, gain, shift = (p.detach().double().numpy() for p in (convolution.weight, norm.weight, norm.bias))
    padded = np.pad(student.detach().double().numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros((len(student), len(weight), *student.shape[2:]))
    for y in range(student.shape[2]):
        for x in range(student.shape[3]):
            out[:, :, y, x] = np.einsum("oikl,bikl->bo", weight, padded[:, :, y : y + 3, x : x + 3])
    centred = out - out.mean((0, 2, 3), keepdims=True)
    unit = centred / np.sqrt((centred**2).mean((0, 2, 3), keepdims=True) + 1e-5)
    return unit * gain[:, None, None] + shift[:, None, None]


@pytest.fixture
def make(make_pair, random):
    """A method whose normalisation is away from its start."""

    def make(student: int = 3, teacher: int = 5, **config: float) -> ICKD:
        method = ICKD(ICKDConfig(**config), make_pair(student, teacher))
        with torch.no_grad():
            for parameter in method.adapter[1].parameters():
                parameter.add_(0.5 * random(*parameter.shape))
        return method

    return make


@pytest.mark.parametrize("widths", [(3, 5), (4, 4)])
def test_value_equals_a_loop_over_pairs_of_channels(widths: tuple[int, int], make, distil, random) -> None:
    method = make(*widths, weight=2)
    student, teacher = random(2, widths[0], 3, 4), random(2, widths[1], 3, 4)
    expected = 2 * distance(adapt(method, student), teacher.numpy())
    assert distil(method, student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_the_student_may_have_another_grid(make, distil, random) -> None:
    method, student, teacher = make(weight=1), random(2, 3, 2, 3), random(2, 5, 4, 6)
    expected = distance(adapt(method, student), teacher.numpy())
    assert distil(method, student, teacher).item() == pytest.approx(expected, rel=1e-5)
