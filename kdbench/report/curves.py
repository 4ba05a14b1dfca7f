"""How a method's runs went: mIoU at the kept points and losses over the stages, as means over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kdbench.metrics import domains, mious, snapshots
from kdbench.records import DomainResult, Record, StageResult

Losses = Mapping[str, Mapping[str, tuple[float, ...]]]
"""Stage -> term -> its means over tenths of the stage."""


@dataclass(frozen=True)
class Points:
    """Mean mIoU in percent of the targets and of the sources at every kept point of the last stage, the last one last;
    None where a domain is missing."""

    targets: tuple[float, ...] | None = None
    source: tuple[float, ...] | None = None


def curve(held: Sequence[DomainResult]) -> np.ndarray | None:
    """Mean mIoU of one run's domains at every point (P,); None where there is none, or one was never tested."""
    mean = np.mean([mious(snapshots(domain)) for domain in held], axis=0) if held else None
    return None if mean is None or not np.isfinite(mean).all() else np.asarray(mean)


def points_of(records: Sequence[Record]) -> Points:
    """Of the seeds of one method, as far as all of them have the same number of points."""
    return Points(
        targets=_mean_curve(curve(domains(record, "target")) for record in records),
        source=_mean_curve(curve(domains(record, "source")) for record in records),
    )


def losses_of(records: Sequence[Record]) -> Losses:
    """Of the seeds of one method; a term that one of them lacks, or has at other tenths, is left out."""
    runs = [{stage.name: stage for stage in record.result.stages} if record.result else {} for record in records]
    first = runs[0] if runs else {}
    return {name: _mean_terms([run[name] for run in runs]) for name in first if all(name in run for run in runs)}


def _mean_terms(stages: Sequence[StageResult]) -> Mapping[str, tuple[float, ...]]:
    shared = [name for name in stages[0].losses if all(name in stage.losses for stage in stages)]
    means = {name: _mean_curve(np.array(stage.losses[name]) for stage in stages) for name in shared}
    return {name: values for name, values in means.items() if values}


def _mean_curve(curves: Iterable[np.ndarray | None]) -> tuple[float, ...] | None:
    held = list(curves)
    known = [each for each in held if each is not None]
    if not known or len(known) < len(held) or len({len(each) for each in known}) > 1:
        return None
    return tuple(np.mean(known, axis=0).tolist())
