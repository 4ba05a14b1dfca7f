"""Scores from counts against loops over pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kdbench.metrics import class_iou, domain_miou, domains, hits, miou, snapshots

IGNORE = 255


def masks(seed: int, present: int) -> tuple[np.ndarray, np.ndarray]:
    """A ground truth and a prediction that uses only the first classes, with some pixels ignored."""
    rng = np.random.default_rng(seed)
    truth, guess = rng.integers(0, present, (2, 6, 20, 30))
    guess = np.where(rng.random(truth.shape) < 0.6, truth, guess)
    truth[rng.random(truth.shape) < 0.1] = IGNORE
    return truth, guess


def confusion_of(truth: np.ndarray, guess: np.ndarray, classes: int) -> np.ndarray:
    """Rows ground truth, columns prediction, one pixel at a time."""
    matrix = np.zeros((classes, classes), dtype=np.int64)
    for t, g in zip(truth.ravel(), guess.ravel(), strict=True):
        if t != IGNORE:
            matrix[t, g] += 1
    return matrix


def iou_by_pixels(truth: np.ndarray, guess: np.ndarray, classes: int) -> list[float]:
    """IoU in percent of every class, nan where it is absent, from sets of pixels."""
    kept = [(t, g) for t, g in zip(truth.ravel().tolist(), guess.ravel().tolist(), strict=True) if t != IGNORE]
    ious = []
    for k in range(classes):
        union = sum(k in pixel for pixel in kept)
        ious.append(100 * sum(pixel == (k, k) for pixel in kept) / union if union else math.nan)
    return ious


@pytest.mark.parametrize(("classes", "present"), [(2, 2), (6, 4), (19, 13)])
def test_iou_equals_a_count_of_pixels(classes: int, present: int) -> None:
    truth, guess = masks(classes, present)
    expected = iou_by_pixels(truth, guess, classes)
    counts = hits(confusion_of(truth, guess, classes))
    np.testing.assert_allclose(class_iou(counts), expected)
    known = [value for value in expected if not math.isnan(value)]
    assert len(known) == present
    assert miou(counts) == pytest.approx(sum(known) / len(known))


def test_a_class_that_is_only_predicted_counts_as_zero() -> None:
    assert miou(hits(np.array([[6, 2, 0], [0, 0, 0], [0, 0, 0]]))) == pytest.approx((75 + 0) / 2)


def test_hits_are_true_positives_false_positives_and_false_negatives() -> None:
    np.testing.assert_array_equal(hits(np.array([[5, 2], [1, 4]])), [[5, 4], [1, 2], [2, 1]])
    stack = np.random.default_rng(0).integers(0, 9, (4, 3, 3))
    np.testing.assert_array_equal(hits(stack), np.stack([hits(matrix) for matrix in stack]))


def test_nothing_labelled_has_no_score() -> None:
    nothing = np.zeros((3, 3), dtype=np.int64)
    assert math.isnan(miou(hits(nothing)))


def test_domains_by_role(make_record, make_domain) -> None:
    rough, fine = np.array([[50, 50], [0, 100]]), np.array([[100, 0], [0, 100]])
    record = make_record(domains=[make_domain("a", "target", rough), make_domain("b", "source", fine)])
    assert [domain.domain for domain in domains(record, "target")] == ["a"]
    assert [domain_miou(domain) for domain in domains(record, "source")] == [100.0]
    assert domain_miou(domains(record, "target")[0]) == pytest.approx((50 + 100 * 100 / 150) / 2)
    assert domains(make_record(error="stopped"), "target") == []


def test_the_snapshots_of_a_record_are_whole_again(make_domain) -> None:
    """A file keeps no false negatives of the earlier snapshots: they follow from the ground truth."""
    confusion = np.array([[7, 2, 1], [0, 5, 5], [3, 3, 4]])
    found = snapshots(make_domain("d", "target", confusion))
    assert found.shape == (4, 3, 3)
    assert np.array_equal(found[-1], hits(confusion))
    assert np.array_equal(found[0], hits(np.roll(confusion, 3, axis=1)))
    assert np.array_equal(found[2], hits(np.roll(confusion, 1, axis=1)))
