"""The table of a board's differences: to the undistilled student with both intervals, and to the best."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from kdbench.report.board import Scored
from kdbench.report.comparison import Comparison, Difference
from kdbench.report.old_statistics import ENOUGH, LEVEL, POWER, Interval
from kdbench.report.table import Column, Table, label, make_table, signed

COVERED = f"{100 * (1 - LEVEL):.0f} %"


class _Line(NamedTuple):
    """A student's differences."""

    method: str
    label: str
    alone: Difference | None
    best: Difference | None


def differences(
    name: str,
    conditions: str,
    rows: Sequence[Scored],
    found: Comparison,
    over_images: Mapping[str, Interval] = MappingProxyType({}),
    faults: Sequence[str] = (),
) -> Iterator[Table]:
    """A line a student that is compared with another; no table where there is none."""
    held = [
        _Line(row.method, label(row), found.to_undistilled.get(row.method), found.to_best.get(row.method))
        for row in rows
        if row.method in found.to_undistilled or row.method in found.to_best
    ]
    if not held:
        return
    to = f"{found.undistilled}, the undistilled student" if found.undistilled else "the best"
    columns = [
        Column[_Line]("method", lambda line: line.label),
        *_to_undistilled(held, over_images),
        *(_to_best(held) if found.to_best else []),
        *([_retained(found.retention)] if found.retention else []),
    ]
    yield make_table(
        columns,
        held,
        title=f"{name}: differences to {to}",
        conditions=conditions,
        about=_about(found, bool(over_images)),
        notes=(*_notes(held, found, rows), *_damage(faults)),
    )


def _to_undistilled(held: Sequence[_Line], over_images: Mapping[str, Interval]) -> Iterator[Column[_Line]]:
    there = [line.alone for line in held if line.alone]
    if there:
        yield Column("difference", lambda line: signed(line.alone.value) if line.alone else "")
        yield from _over_seeds(there, lambda line: line.alone)
    if over_images:
        yield Column(f"{COVERED} over images", lambda line: _interval(over_images.get(line.method)))
    yield from _tested(there, lambda line: line.alone)


def _to_best(held: Sequence[_Line]) -> Iterator[Column[_Line]]:
    yield Column("to the best", lambda line: signed(line.best.value) if line.best else "")
    yield from _tested([line.best for line in held if line.best], lambda line: line.best)


def _over_seeds(there: Sequence[Difference], which: Callable[[_Line], Difference | None]) -> Iterator[Column[_Line]]:
    def text(line: _Line) -> str:
        found = which(line)
        test = found.over_seeds if found else None
        return f"{_interval(test.interval)} ({test.df})" if test else ""

    if any(each.over_seeds for each in there):
        yield Column(f"{COVERED} over seeds (df)", text)


def _tested(there: Sequence[Difference], which: Callable[[_Line], Difference | None]) -> Iterator[Column[_Line]]:
    """p and verdict, where any difference has one."""
    if any(each.p is not None for each in there):
        yield Column("p", lambda line: _p(which(line)))
    if any(each.verdict != "not resolvable" for each in there):
        yield Column("verdict", lambda line: found.verdict if (found := which(line)) else "")


def _retained(retention: Mapping[str, float]) -> Column[_Line]:
    return Column("retained", lambda line: f"{retention[line.method]:z.0f} %" if line.method in retention else "")


def _interval(interval: Interval | None) -> str:
    return f"{signed(interval.low)} to {signed(interval.high)}" if interval else ""


def _p(difference: Difference | None) -> str:
    if difference is None or difference.p is None:
        return ""
    return "<0.001" if difference.p < 0.001 else f"{difference.p:.3f}"


def _about(found: Comparison, images: bool) -> str:
    parts = ["Points of mIoU, paired by seed"]
    if any(each.over_seeds for each in found.to_undistilled.values()):
        parts.append("over seeds: Student's t with its degrees of freedom")
    if images:
        parts.append("over images: bootstrap, for these trained models")
    if any(each.p is not None for each in (*found.to_undistilled.values(), *found.to_best.values())):
        parts.append(
            "p: two-sided, corrected by Holm" + ", to the best by Bonferroni over all pairs" * bool(found.to_best)
        )
    if found.to_best:
        parts.append(f"the best: {found.best}")
    if found.retention:
        parts.append("retained: share of the teacher's advantage")
    return "; ".join(parts)


def _notes(held: Sequence[_Line], found: Comparison, rows: Sequence[Scored]) -> Iterator[str]:
    there = [each for line in held for each in (line.alone, line.best) if each]
    resolved = any(each.verdict != "not resolvable" for each in there)
    if not resolved:
        yield f"Not resolvable: a verdict needs {ENOUGH} paired seeds."
    if found.reach:
        difference, seeds, compared = found.reach
        yield (
            f"{seeds} paired seeds with this scatter {'resolve' if resolved else 'would resolve'} differences to "
            f"{found.undistilled} of {difference:.1f} points and more (power {POWER:.0%}, level {LEVEL:.0%}, "
            f"Holm's worst case of {compared} comparisons)."
        )
    if found.undistilled and not found.retention and any(row.role == "teacher" and row.scores for row in rows):
        yield f"Nothing to retain: the teacher is not found ahead of {found.undistilled}."


def _damage(faults: Sequence[str]) -> Iterator[str]:
    if faults:
        yield f"{len(faults)} of the files of counts by image cannot be used; the first: {faults[0]}"
