"""DIST: correlation of probabilities over the classes of each pixel and over the pixels of each class."""

from __future__ import annotations

import math

import numpy as np
import pytest
from kdbench.methods.dist import DIST

METHOD = DIST

CLASSES = 4


def correlation(a: list[float], b: list[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    covariance = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    spread = math.sqrt(sum((x - mean_a) ** 2 for x in a)) * math.sqrt(sum((y - mean_b) ** 2 for y in b))
    return covariance / (spread + 1e-8)


def table(logits: np.ndarray) -> list[list[float]]:
    """Class probabilities, a row for each pixel of the batch."""
    rows = []
    for b in range(len(logits)):
        for y in range(logits.shape[2]):
            for x in range(logits.shape[3]):
                exponentials = [math.exp(float(value)) for value in logits[b, :, y, x]]
                rows.append([value / sum(exponentials) for value in exponentials])
    return rows


def distances(student: np.ndarray, teacher: np.ndarray) -> tuple[float, float]:
    """1 - the mean correlation of rows, and of columns."""
    ours, theirs = np.array(table(student)), np.array(table(teacher))
    rows = [correlation(list(a), list(b)) for a, b in zip(ours, theirs, strict=True)]
    columns = [correlation(list(a), list(b)) for a, b in zip(ours.T, theirs.T, strict=True)]
    return 1 - sum(rows) / len(rows), 1 - sum(columns) / len(columns)


def test_values_equal_a_loop_over_rows_and_columns(distil, random) -> None:
    student, teacher = random(2, CLASSES, 3, 5), random(2, CLASSES, 3, 5)
    inter, intra = distil(student, teacher, inter=2, intra=3)
    expected = distances(student.numpy(), teacher.numpy())
    assert inter.item() == pytest.approx(2 * expected[0], rel=1e-5)
    assert intra.item() == pytest.approx(3 * expected[1], rel=1e-5)
