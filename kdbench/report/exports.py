"""Boards for programs: every number unrounded, as JSON and as CSV."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kdbench.report.board import Board, Scored
from kdbench.report.comparison import Comparison, Difference
from kdbench.report.old_statistics import Interval
from kdbench.report.rows import Row
from kdbench.report.selection import oracle_gap
from kdbench.report.summary import Families, Summary, SummaryRow, families, summaries

Values = dict[str, Any]


def to_json(boards: Sequence[Board]) -> str:
    """An object of boards, summaries and families; null where there is nothing."""
    return dumps(_all(boards))


def to_csv(boards: Sequence[Board]) -> str:
    """A line for every row of every board, then of the summaries and families; nested names are joined by a colon."""
    groups = [group for held in _all(boards).values() for group in held]
    return lines_to_csv([_conditions_of(group) | row for group in groups for row in group["rows"]])


def dumps(content: Any) -> str:
    """Readable JSON, without the numbers that JSON does not have."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def lines_to_csv(lines: Iterable[Values]) -> str:
    """A column for every name in any line."""
    from pandas import json_normalize

    table = json_normalize(list(lines), sep=": ").astype(object)
    joined = table.map(lambda value: " ".join(map(str, value)) if isinstance(value, list) else value)
    return str(joined.to_csv(index=False))


def _all(boards: Sequence[Board]) -> dict[str, list[Values]]:
    found = summaries(boards)
    return {
        "boards": [_board(board) for board in boards],
        "summaries": [_summary(summary) for summary in found],
        "families": [values for each in families(found) for values in _families(each)],
    }


def _conditions_of(group: Values) -> Values:
    return {name: value for name, value in group.items() if not isinstance(value, dict | list)}


def _setting(board: Board) -> Values:
    named = ("protocol_id", "protocol", "decoder", "model_set", "data_source", "label_fraction")
    return {name: getattr(board, name) for name in named}


def _conditions(board: Board) -> Values:
    return _setting(board) | {"pair": " -> ".join(board.models), "family": board.family}


def _board(board: Board) -> Values:
    return (
        _conditions(board)
        | {"benchmark": board.benchmark, "title": board.title, "source_domain": ", ".join(board.validated)}
        | {"data_sources": dict(board.data_sources), "found": _found(board.comparison), "faults": list(board.faults)}
        | {"rows": [_row(board, row) for row in board.rows]}
    )


def _found(found: Comparison) -> Values:
    """What holds for a board as a whole."""
    resolvable = found.reach._asdict() if found.reach else None
    return {
        "seeds": list(found.seeds), "undistilled": found.undistilled, "best": found.best, "resolvable": resolvable,
    }  # fmt: skip


def _row(board: Board, row: Row) -> Values:
    plain = ("mean", "deviation", "worst", "source", "gap", "accuracy", "parameters", "reference", "footnote")
    return (
        _compared(row, board.comparison, board.over_images.get(row.method))
        | {name: getattr(row, name) for name in plain}
        | {
            "targets": _named(board.columns, row.targets),
            "by_seed": {str(seed): _named(board.columns, values) for seed, values in row.by_seed.items()},
            "classes": _named(board.classes, row.classes),
            "selection": {
                rule: asdict(chosen) | {"points": list(chosen.points)} for rule, chosen in row.chosen.items()
            },
            "oracle_gap": oracle_gap(row.chosen),
            "cost": asdict(row.cost),
            "pareto": row.method in board.front,
            "points": {name: list(values) if values else None for name, values in asdict(row.points).items()},
        }
    )


def _named(names: Sequence[str], values: Sequence[float | None]) -> dict[str, float | None]:
    return dict(zip(names, values, strict=True))


def _compared(row: Scored, found: Comparison, over_images: Interval | None = None) -> Values:
    """Who it is, and what the board found about it."""
    return {
        "method": row.method,
        "role": row.role,
        "seeds": list(row.seeds),
        "rank": found.ranks.get(row.method),
        "retention": found.retention.get(row.method),
        "to_undistilled": _difference(found.to_undistilled, row.method, over_images),
        "to_best": _difference(found.to_best, row.method),
    }


def _difference(found: Mapping[str, Difference], method: str, over_images: Interval | None = None) -> Values | None:
    difference = found.get(method)
    if difference is None:
        return None
    test = difference.over_seeds
    return {
        "difference": difference.value,
        "seeds": list(difference.seeds),
        "over_seeds": test.interval._asdict() | {"df": test.df} if test else None,
        "over_images": over_images._asdict() if over_images else None,
        "p": difference.p,
        "verdict": difference.verdict,
    }


def _summary(summary: Summary) -> Values:
    return (
        _conditions(summary.common)
        | {"benchmark": " ".join(summary.benchmarks), "title": "average over sources"}
        | {"sources": {name: list(benchmarks) for name, benchmarks in summary.sources.items()}}
        | {"found": _found(summary.comparison), "rows": [_summary_row(summary, row) for row in summary.rows]}
    )


def _summary_row(summary: Summary, row: SummaryRow) -> Values:
    return _compared(row, summary.comparison) | {
        "mean": row.mean,
        "deviation": row.deviation,
        "mean_rank": row.ranks,
        "sources": _named(list(summary.sources), row.sources),
    }


def _families(found: Families) -> list[Values]:
    """One for every family."""
    summary = found.summaries[0]
    return [
        _setting(summary.common)
        | {"pair": ", ".join(pairs), "family": name}
        | {"benchmark": " ".join(summary.benchmarks), "title": "average over sources and pairs"}
        | {
            "rows": [
                {"method": row.method, "role": row.role, "mean": row.means[index], "gain": row.gains[index]}
                for row in found.rows
            ]
        }
        for index, (name, pairs) in enumerate(found.families.items())
    ]


EXPORTS = {"csv": to_csv, "json": to_json}
