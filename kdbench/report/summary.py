"""A summary: one pair over several benchmarks, and the averages of a family of pairs.

Benchmarks with the same source domain come from one training: a method that trains well on it does so on all of them.
So they are averaged first, and each source counts once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from kdbench.metrics import mean_of
from kdbench.names import REAL
from kdbench.report.board import MODELS, Board, compare_rows
from kdbench.report.comparison import Comparison
from kdbench.report.old_statistics import deviation
from kdbench.report.rows import Row


@dataclass(frozen=True)
class SummaryRow:
    """A method over all benchmarks, in percent; None where it lacks one.

    scores: by seed, over the seeds that all its benchmarks have, the mean over sources. sources: the means by source.
    ranks: mean of the boards' ranks, over sources as well.
    """

    method: str
    role: str
    scores: Mapping[int, float]
    sources: tuple[float | None, ...]
    mean: float | None
    deviation: float | None
    ranks: float | None
    reference: bool

    @property
    def seeds(self) -> tuple[int, ...]:
        """In order."""
        return tuple(self.scores)


@dataclass(frozen=True)
class OldSummary:
    """One pair's boards under one protocol, all real or all built in. sources: as displayed, with their benchmarks."""

    boards: tuple[Board, ...]
    sources: Mapping[str, tuple[str, ...]]
    rows: tuple[SummaryRow, ...]
    comparison: Comparison

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """By name."""
        return tuple(board.benchmark for board in self.boards)

    @property
    def common(self) -> Board:
        """The first board, for what all have in common; its world names every version that they were run in."""
        return replace(self.boards[0], data_source=" and ".join(sorted({board.data_source for board in self.boards})))


Summary = OldSummary


@dataclass(frozen=True)
class FamilyRow:
    """A method's mean over the pairs of each family, and its mean gain on the undistilled student; in percent."""

    method: str
    role: str
    means: tuple[float | None, ...]
    gains: tuple[float | None, ...]


@dataclass(frozen=True)
class Families:
    """Pairs that were tested on the same benchmarks. families: with their pairs as displayed."""

    summaries: tuple[Summary, ...]
    families: Mapping[str, tuple[str, ...]]
    rows: tuple[FamilyRow, ...]


def summaries(boards: Iterable[Board]) -> list[Summary]:
    """One for every protocol id and pair with several benchmarks, real ones apart from the built-in world's.

    A benchmark with domains of another world than its own is left out; of one that was run in several versions of the
    built-in world the last counts.
    """
    groups: dict[tuple[object, ...], dict[str, Board]] = defaultdict(dict)
    for board in boards:
        if set(board.data_sources.values()) == {board.data_source} and ":" in board.pair:
            key = (board.protocol_id, board.data_source == REAL, board.label_fraction, board.pair)
            groups[key][board.benchmark] = board
    return [_summary(list(group.values())) for group in groups.values() if len(group) > 1]


def families(found: Iterable[Summary]) -> list[Families]:
    """One for every protocol id and set of benchmarks with several pairs."""
    groups: dict[tuple[object, ...], list[Summary]] = defaultdict(list)
    for summary in found:
        board = summary.common
        key = (board.protocol_id, board.data_source, board.label_fraction, summary.benchmarks)
        groups[key].append(summary)
    return [_families(group) for group in groups.values() if len(group) > 1]


def _summary(boards: list[Board]) -> Summary:
    by_source: dict[str, list[Board]] = defaultdict(list)
    for board in boards:
        by_source[", ".join(board.sources)].append(board)
    roles = {row.method: row.role for board in boards for row in board.rows}
    rows = [_row(method, role, list(by_source.values())) for method, role in roles.items()]
    rows.sort(key=lambda row: (MODELS.index(row.role), row.mean is None, -(row.mean or 0.0), row.method))
    sources = {name: tuple(board.benchmark for board in group) for name, group in by_source.items()}
    return Summary(tuple(boards), sources, tuple(rows), compare_rows(rows))


def _row(method: str, role: str, sources: list[list[Board]]) -> SummaryRow:
    rows = [[_find(board, method) for board in group] for group in sources]
    there = [row for group in rows for row in group if row]
    held = [[row.scores if row else {} for row in group] for group in rows]
    kept = [set(row.scores) for row in there if row.scores]
    seeds = sorted(set.intersection(*kept)) if kept else []
    means = [{seed: mean_of(scores.get(seed) for scores in group) for seed in seeds} for group in held]
    scores = {seed: mean for seed in seeds if (mean := mean_of(group[seed] for group in means)) is not None}
    return SummaryRow(
        method=method,
        role=role,
        scores=scores,
        sources=tuple(mean_of(group.values()) for group in means),
        mean=mean_of(scores.values()),
        deviation=deviation(list(scores.values())),
        ranks=mean_of(mean_of(board.comparison.ranks.get(method) for board in group) for group in sources),
        reference=all(row.reference for row in there),
    )


def _find(board: Board, method: str) -> Row | None:
    return next((row for row in board.rows if row.method == method), None)


def _families(group: Sequence[Summary]) -> Families:
    members: dict[str, list[Summary]] = defaultdict(list)
    for summary in group:
        members[summary.boards[0].family or "other"].append(summary)
    roles = {row.method: row.role for summary in group for row in summary.rows if row.role != "teacher"}
    rows = [
        FamilyRow(
            method,
            role,
            tuple(mean_of(_mean(summary, method) for summary in pairs) for pairs in members.values()),
            tuple(mean_of(_gain(summary, method) for summary in pairs) for pairs in members.values()),
        )
        for method, role in roles.items()
    ]
    rows.sort(key=lambda row: (MODELS.index(row.role), -(mean_of(row.means) or 0.0), row.method))
    pairs = {name: tuple(" -> ".join(s.boards[0].models) for s in held) for name, held in members.items()}
    return Families(tuple(group), pairs, tuple(rows))


def _mean(summary: Summary, method: str) -> float | None:
    return next((row.mean for row in summary.rows if row.method == method), None)


def _gain(summary: Summary, method: str) -> float | None:
    difference = summary.comparison.to_undistilled.get(method)
    return difference.value if difference else None
