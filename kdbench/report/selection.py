"""Which of a run's kept points counts: the last, the best on the source's validation, or the best on the targets.

Boards use the last. The best on the targets looks at what no method may see: an upper bound, never a result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from kdbench.metrics import domains
from kdbench.records import Record
from kdbench.report.curves import curve
from kdbench.report.old_statistics import deviation

LAST: Final = "last"
SOURCE: Final = "best on the source"
ORACLE: Final = "oracle"
RULES = (LAST, SOURCE, ORACLE)


@dataclass(frozen=True)
class Chosen:
    """What a rule gives: mean mIoU of the targets in percent, its mean and deviation over seeds, and each seed's point,
    counted from 1."""

    mean: float
    deviation: float | None
    points: tuple[int, ...]


def choose(records: Sequence[Record]) -> dict[str, Chosen]:
    """Every rule over the seeds of one method, as far as all of them have what it needs."""
    picked = [_pick(record) for record in records]
    return {
        rule: _over_seeds([seed[rule] for seed in picked])
        for rule in RULES
        if picked and all(rule in seed for seed in picked)
    }


def oracle_gap(chosen: Mapping[str, Chosen]) -> float | None:
    """What a choice by the targets has over the last point, in percent."""
    return chosen[ORACLE].mean - chosen[LAST].mean if {ORACLE, LAST} <= chosen.keys() else None


def _over_seeds(seeds: list[tuple[int, float]]) -> Chosen:
    scores = [score for _, score in seeds]
    return Chosen(sum(scores) / len(scores), deviation(scores), tuple(point + 1 for point, _ in seeds))


def _pick(record: Record) -> dict[str, tuple[int, float]]:
    """Each rule's point and its score on the targets."""
    targets, sources = curve(domains(record, "target")), curve(domains(record, "source"))
    if targets is None:
        return {}
    curves: dict[str, np.ndarray | None] = {LAST: np.arange(len(targets))}
    if len(targets) > 1:  # of a single point there is nothing to choose
        curves |= {SOURCE: sources, ORACLE: targets}
    found = {rule: _latest_best(curve) for rule, curve in curves.items() if curve is not None}
    return {rule: (point, float(targets[point])) for rule, point in found.items()}


def _latest_best(curve: np.ndarray) -> int:
    """Of equal points the latest."""
    return len(curve) - 1 - int(np.argmax(curve[::-1]))
