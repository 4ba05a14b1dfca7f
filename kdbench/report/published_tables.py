"""Published next to measured, as tables and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from kdbench.report.exports import dumps, lines_to_csv
from kdbench.report.published import TOLERANCE, Match
from kdbench.report.table import Column, Table, make_table, number, signed, signs, spread


def tables(matches: Sequence[Match]) -> list[Table]:
    """One for every table of a paper and pair; the numbers of targets are in the exports alone."""

    def group(match: Match) -> tuple[str, str, str]:
        return match.published.paper, match.published.where, match.published.pair

    shown = [match for match in matches if match.published.target is None]
    return [_table(list(held)) for _, held in groupby(shown, group)]


def _table(held: list[Match]) -> Table:
    order = list(dict.fromkeys(match.published.column for match in held))
    held = sorted(held, key=lambda match: order.index(match.published.column))
    first = held[0].published
    marks = signs(match.published.note for match in held)
    ids = sorted({match.protocol_id for match in held if match.protocol_id})
    under = f"protocol {first.protocol}: {', '.join(ids) or 'nothing yet'}"
    columns = [
        *([Column[Match]("protocol", lambda match: match.protocol_id or "")] if len(ids) > 1 else []),
        Column[Match]("benchmark", lambda match: match.published.column.replace("+", ", ")),
        Column[Match]("method", lambda match: match.method + marks.get(match.published.note, "")),
        Column[Match]("published", lambda match: number(match.published.miou)),
        *(_measured() if any(match.measured is not None for match in held) else []),
        Column[Match]("status", lambda match: match.status),
    ]
    return make_table(
        columns,
        held,
        title=f"{first.where} of {first.paper}" + f": {first.pair.replace(':', ' -> ')}" * bool(first.pair),
        conditions=f"Published under the paper's own conditions; measured under {under}",
        about=(
            "mIoU in %, means of targets; gap: measured minus published; "
            f"reproduced: a gap of at most {TOLERANCE} points"
        ),
        notes=(f"{sign} {note}" for note, sign in marks.items()),
    )


def _measured() -> Iterator[Column[Match]]:
    yield Column("measured", lambda match: spread(match.measured, match.deviation))
    yield Column("seeds", lambda match: str(len(match.seeds) or ""))
    yield Column("gap", lambda match: signed(match.gap))


def to_json(matches: Sequence[Match]) -> str:
    """A list of all numbers."""
    return dumps([_values(match) for match in matches])


def to_csv(matches: Sequence[Match]) -> str:
    """A line a number."""
    return lines_to_csv([_values(match) for match in matches])


def _values(match: Match) -> dict[str, Any]:
    return asdict(match.published) | {
        "protocol_id": match.protocol_id,
        "measured": match.measured,
        "deviation": match.deviation,
        "seeds": list(match.seeds),
        "gap": match.gap,
        "status": match.status,
    }


EXPORTS = {"csv": to_csv, "json": to_json}
