"""Scores from counts, in percent. A class that is in neither the ground truth nor the prediction does not count."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite, nan

import numpy as np

from kdbench.records import DomainResult, Record


def hits(confusion: np.ndarray) -> np.ndarray:
    """Return true positives, false positives and false negatives (..., 3, K) of confusion matrices (..., K, K)."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    return np.stack([right, confusion.sum(-2) - right, confusion.sum(-1) - right], axis=-2)


def snapshots(domain: DomainResult) -> np.ndarray:
    """Return hits (P, 3, K) of every snapshot of a domain, the last one last."""
    truth = domain.confusion.sum(1)
    missed = truth - domain.earlier[:, 0]
    earlier = np.concatenate([domain.earlier, missed[:, None]], axis=1)
    return np.concatenate([earlier, hits(domain.confusion)[None]])


def class_iou(counts: np.ndarray) -> np.ndarray:
    """Return IoU (..., K) in percent from hits (..., 3, K); nan for an absent class."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(100.0 * counts[..., 0, :] / counts.sum(-2))


def known_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Return the mean over what is not nan; nan where all is (numpy's nanmean would warn)."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0.0).sum(axis) / known.sum(axis))


def mious(counts: np.ndarray) -> np.ndarray:
    """Return mean IoU (...) in percent from hits (..., 3, K); nan where nothing was labelled or predicted."""
    return known_mean(class_iou(counts), axis=-1)


def miou(counts: np.ndarray) -> float:
    """Return the mean IoU in percent from hits (3, K)."""
    return float(mious(counts))


def domain_miou(domain: DomainResult) -> float:
    """Return the mIoU of a domain in percent at the last snapshot."""
    return miou(hits(domain.confusion))


def domains(record: Record, role: str) -> list[DomainResult]:
    """Return a record's target or source domains, in the benchmark's order."""
    return [domain for domain in record.result.domains if domain.role == role] if record.result else []


def role_miou(record: Record, role: str) -> float:
    """Return the mean mIoU of a record's targets or sources in percent; nan where one has no score."""
    scores = [domain_miou(domain) for domain in domains(record, role)]
    return sum(scores) / len(scores) if scores else nan


def mean_of(values: Iterable[float | None]) -> float | None:
    """Return the mean; None where a value is missing."""
    there = list(values)
    known = [value for value in there if value is not None and isfinite(value)]
    return sum(known) / len(known) if known and len(known) == len(there) else None
