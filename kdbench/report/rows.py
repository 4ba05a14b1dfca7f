"""A row: what the seeds of one method, with one setting of its knobs, give together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.metrics import domain_miou, known_mean, labelled_iou, mean_of, pixel_accuracy
from kdbench.records import DomainResult
from kdbench.report.costs import Cost, mean_cost
from kdbench.report.curves import Losses, Points, losses_of, points_of
from kdbench.report.entries import Entry
from kdbench.report.old_statistics import deviation
from kdbench.report.selection import Chosen, choose

Domains = Mapping[str, DomainResult]


@dataclass(frozen=True)
class Row:
    """A method's values, in percent and as means over its seeds; None where one is missing.

    by_seed: each seed's targets. deviation: of the mean, over seeds. worst: the lowest target. gap: source minus mean.
    accuracy: pixels that are right, mean of the targets. classes: IoU of every class, mean of the targets whose labels
    show it. chosen: what other rules of selection give. paths: each seed's file, where it was read from one.
    """

    method: str
    role: str
    by_seed: Mapping[int, tuple[float | None, ...]]
    targets: tuple[float | None, ...]
    mean: float | None
    deviation: float | None
    worst: float | None
    source: float | None
    gap: float | None
    accuracy: float | None
    classes: tuple[float | None, ...]
    chosen: Mapping[str, Chosen]
    parameters: int | None
    cost: Cost
    points: Points
    losses: Losses
    paths: Mapping[int, Path]
    reference: bool
    footnote: str

    @property
    def seeds(self) -> tuple[int, ...]:
        """All that were run, in order."""
        return tuple(self.by_seed)

    @property
    def scores(self) -> dict[int, float]:
        """Every seed's mean over the targets; nothing where one of them is missing."""
        means = {seed: mean for seed, values in self.by_seed.items() if (mean := mean_of(values)) is not None}
        return means if len(means) == len(self.by_seed) else {}


def make_row(seeds: list[Entry], targets: list[str], sources: list[str], weights: Mapping[str, str]) -> Row:
    """The row of one method's records, one a seed, in the order of their seeds. weights: the board's, by model.

    It is blank where the seeds' domains or knobs differ, one of them failed or began with other weights: a mean over
    what is left would be that of another experiment.
    """
    strange = list(_strange(seeds, weights))
    whole = _alike(seeds) and not _options_differ(seeds) and not strange
    held: list[Domains] = [{domain.domain: domain for domain in entry.domains} if whole else {} for entry in seeds]
    by_seed = {
        entry.cell.seed: tuple(_value(domain_miou, domains, name) for name in targets)
        for entry, domains in zip(seeds, held, strict=True)
    }
    each = tuple(mean_of(values) for values in zip(*by_seed.values(), strict=True))
    scores = [mean_of(values) for values in by_seed.values()]
    mean = mean_of(scores)
    source = mean_of(_value(domain_miou, domains, name) for domains in held for name in sources)
    records = [entry.record for entry in seeds]
    parameters = {entry.record.result.parameters.get("deployed") for entry in seeds if entry.record.result}
    return Row(
        method=seeds[0].label,
        role=seeds[0].cell.role,
        by_seed=by_seed,
        targets=each,
        mean=mean,
        deviation=None if mean is None else deviation([score for score in scores if score is not None]),
        worst=None if mean is None else min(value for value in each if value is not None),
        source=source,
        gap=None if mean is None or source is None else source - mean,
        accuracy=mean_of(_value(_accuracy, domains, name) for domains in held for name in targets),
        classes=_classes(held, targets, len(seeds[0].cell.classes)),
        chosen=choose(records) if mean is not None else {},
        parameters=parameters.pop() if len(parameters) == 1 else None,
        cost=mean_cost(records) if mean is not None else Cost(),
        points=points_of(records) if mean is not None else Points(),
        losses=losses_of(records) if mean is not None else {},
        paths={entry.cell.seed: entry.path for entry in seeds if entry.path},
        reference=all(entry.reference for entry in seeds),
        footnote="; ".join(dict.fromkeys((*_footnotes(seeds), *strange))),
    )


def _value(measure: Callable[[DomainResult], float], domains: Domains, name: str) -> float | None:
    value = measure(domains[name]) if name in domains else None
    return value if value is not None and isfinite(value) else None


def _accuracy(domain: DomainResult) -> float:
    return pixel_accuracy(domain.confusion)


def _classes(held: list[Domains], targets: list[str], number: int) -> tuple[float | None, ...]:
    """Which targets show a class is the same for every seed: they have the same labels."""
    if not targets or any(name not in domains for domains in held for name in targets):
        return (None,) * number
    iou = known_mean(np.array([[labelled_iou(domains[name]) for name in targets] for domains in held]), axis=1).mean(0)
    return tuple(float(value) if isfinite(value) else None for value in iou)


def _alike(seeds: list[Entry]) -> bool:
    return len({frozenset(domain.domain for domain in entry.domains) for entry in seeds}) == 1


def _options_differ(seeds: list[Entry]) -> bool:
    # A knob that a record does not know is younger than it.
    known: dict[str, Any] = {}
    return any(known.setdefault(name, value) != value for entry in seeds for name, value in entry.cell.options.items())


def _strange(seeds: list[Entry], weights: Mapping[str, str]) -> Iterator[str]:
    for model, usual in weights.items():
        found = [str(entry.cell.seed) for entry in seeds if entry.cell.weights.get(model, usual) != usual]
        if found:
            yield (
                f"blank: seed{'s' * (len(found) > 1)} {', '.join(found)} began with other weights of {model} than most "
                "records of this board; run all with the same"
            )


def _footnotes(seeds: list[Entry]) -> Iterator[str]:
    yield from (entry.cell.footnote for entry in seeds if entry.cell.footnote)
    failed = [entry for entry in seeds if entry.record.status == "failed"]
    for entry in failed:
        reason = ((entry.record.error or "").strip().splitlines() or ["no reason recorded"])[0]
        yield f"{f'seed {entry.cell.seed} ' if len(seeds) > 1 else ''}failed: {reason}"
    if not failed and not _alike(seeds):
        yield "blank: its seeds were tested on different domains"
    if _options_differ(seeds):
        yield "blank: its seeds were run with different knobs"
    committed = [str(entry.cell.seed) for entry in seeds if entry.reference]
    if 0 < len(committed) < len(seeds):
        yield f"seed{'s' * (len(committed) > 1)} {', '.join(committed)}: reference"
