"""Published numbers beside measured ones: what a paper reports, and whether the same cell gives it here.

The numbers are package data, one file a table: a line a method, a column for every benchmark, `benchmark/target` or
`benchmark+benchmark` (an average). `measured_as` names the method here that is the same as the paper's; a line without
one is shown and never compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from kdbench.errors import KdbenchError, unknown
from kdbench.metrics import mean_of
from kdbench.names import REAL
from kdbench.report.boards import Board
from kdbench.report.formats import dumps, frame_to_csv, records
from kdbench.report.statistics import deviation
from kdbench.report.tables import Table, numbers, scores, signed, signs, words

FOLDER = Path(str(files("kdbench.report") / "published"))
TOLERANCE = 1.0
"""Points of mIoU within which the mean over seeds reproduces a published number. A published number is one run, and
seeds alone move a run by about as much."""
Status = Literal["reported", "not run", "reproduced", "not reproduced"]
TEXT = ["paper", "where", "protocol", "pair", "method", "measured_as", "note"]
"""Columns of a file before its numbers."""
MEASURED = ["protocol_id", "measured", "deviation", "seeds", "gap", "status"]


def read_published(folder: Path = FOLDER) -> pd.DataFrame:
    """Return every number of every file, in the order of the papers' tables: TEXT, column, miou (percent)."""
    return pd.concat([_read(path) for path in sorted(folder.glob("*.csv"))], ignore_index=True)


def _read(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    try:
        wide = table.set_index(TEXT)
        wide.columns.name = "column"
        return wide.where(wide != "").stack().dropna().astype(float).rename("miou").reset_index()
    except (KeyError, ValueError) as error:
        raise KdbenchError(f"{path}: {error}. Columns: {', '.join(TEXT)}, then numbers.") from error


def benchmarks_of(column: str) -> list[str]:
    """Name the benchmarks whose targets a column of a file covers; several where its number is their average."""
    return column.partition("/")[0].split("+")


def choose(
    published: pd.DataFrame,
    protocol: str | None = None,
    benchmarks: Sequence[str] | None = None,
    pairs: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Select the numbers of a protocol's name, some benchmarks and pairs; a name that no number has is an error."""
    covered, compared = published.column.map(benchmarks_of), published.pair != ""
    _check("protocol", [protocol] if protocol else [], published.protocol[compared])
    _check("benchmark", benchmarks or [], covered[compared].explode())
    _check("pair", pairs or [], published.pair[compared])
    wanted = pd.Series(True, published.index)
    if protocol is not None:
        wanted &= published.protocol == protocol
    if benchmarks is not None:
        wanted &= covered.map(set(benchmarks).issuperset)
    if pairs is not None:
        wanted &= published.pair.isin(pairs)
    return published[wanted]


def _check(kind: str, asked: Iterable[str], held: pd.Series) -> None:
    for name in asked:
        if name not in set(held):
            raise unknown(kind, name, set(held), where="among the published numbers")


def match(published: pd.DataFrame, boards: Sequence[Board]) -> pd.DataFrame:
    """Set each number beside the measured row of its pair, method and protocol on real images: MEASURED.

    One row for every protocol id. measured: mean over the seeds that all its benchmarks have; gap: measured minus
    published. reproduced: the gap is within TOLERANCE; reported: there is nothing here to compare with.
    """
    rows = [dict(number) | measured for number in records(published) for measured in _measured(number, boards)]
    found = pd.DataFrame(rows, columns=[*published.columns, *MEASURED[:-2]])
    gap = found.measured.astype(float) - found.miou
    status = [_status(as_, each) for as_, each in zip(found.measured_as, gap, strict=True)]
    return found.assign(gap=gap, status=status)


def _status(measured_as: str, gap: float) -> Status:
    if not measured_as:
        return "reported"
    if gap != gap:
        return "not run"
    return "reproduced" if abs(gap) <= TOLERANCE else "not reproduced"


def _measured(number: dict[str, Any], boards: Sequence[Board]) -> list[dict[str, Any]]:
    comparable = [board for board in boards if _comparable(number, board)]
    found = []
    for protocol_id in sorted({board.protocol_id for board in comparable}):
        held = {board.benchmark: _scores(number, board) for board in comparable if board.protocol_id == protocol_id}
        each = [held.get(name, {}) for name in benchmarks_of(number["column"])]
        seeds = sorted(set.intersection(*map(set, each)))
        means = [sum(values[seed] for values in each) / len(each) for seed in seeds]
        if means:
            values = {"measured": mean_of(means), "deviation": deviation(means), "seeds": tuple(seeds)}
            found.append({"protocol_id": protocol_id} | values)
    return found or [{"protocol_id": None, "measured": None, "deviation": None, "seeds": ()}]


def _comparable(number: dict[str, Any], board: Board) -> bool:
    """On real images under the paper's protocol. A teacher's own row stands on the boards of all its students."""
    method, pair = number["measured_as"], number["pair"]
    if not method or method not in board.rows.index:
        return False
    teacher = board.rows.role[method] == "teacher" and pair.partition(":")[0] == board.pair.partition(":")[0]
    return (
        (_name(board), board.data_source, board.label_fraction) == (number["protocol"], REAL, "1")
        and board.benchmark in benchmarks_of(number["column"])
        and (teacher or board.pair == pair)
    )


def is_settled(board: Board) -> bool:
    """Return whether the protocol is a shipped version without further choices."""
    return re.fullmatch(rf"{re.escape(board.protocol)}-v\d+", board.protocol_id) is not None


def _name(board: Board) -> str:
    return board.protocol if is_settled(board) else board.protocol_id


def _scores(number: dict[str, Any], board: Board) -> dict[int, float]:
    """Return the measured numbers by seed, of the one target or the mean over all."""
    target = number["column"].partition("/")[2]
    if not target:
        return dict(board.scores.loc[number["measured_as"]].dropna())
    known = target in board.by_seed
    return dict(board.by_seed.loc[number["measured_as"], target].dropna()) if known else {}


def published_tables(matches: pd.DataFrame) -> list[Table]:
    """Make one for every table of a paper and pair; the numbers of targets are in the exports alone."""
    shown = matches[~matches.column.str.contains("/")]
    return [_table(held) for _, held in shown.groupby(["paper", "where", "pair"], sort=False)]


def _table(held: pd.DataFrame) -> Table:
    order = {column: place for place, column in enumerate(held.column.unique())}
    held = held.sort_values("column", key=lambda columns: columns.map(order), kind="stable").reset_index(drop=True)
    first, marks = held.iloc[0], signs(held.note)
    ids = sorted(set(held.protocol_id.dropna()))
    measured = held.measured.astype(float)
    columns = [
        *([words("protocol", held.protocol_id.fillna(""))] if len(ids) > 1 else []),
        words("benchmark", held.column.str.replace("+", ", ")),
        words("method", held.method + held.note.map(lambda note: marks.get(note, ""))),
        numbers("published", held.miou),
        *(_measured_columns(held, measured) if measured.notna().any() else []),
        words("status", held.status),
    ]
    return Table(
        f"{first['where']} of {first.paper}" + f": {first.pair.replace(':', ' -> ')}" * bool(first.pair),
        "Published under the paper's own conditions; measured under "
        f"protocol {first.protocol}: {', '.join(ids) or 'nothing yet'}",
        f"mIoU in %, means of targets; gap: measured minus published; reproduced: a gap of at most {TOLERANCE} points",
        tuple(columns),
        tuple(f"{sign} {note}" for note, sign in marks.items()),
    )


def _measured_columns(held: pd.DataFrame, measured: pd.Series) -> Iterator[Any]:
    yield scores("measured", measured, pd.Series(False, held.index), held.deviation)
    yield numbers("seeds", held.seeds.map(lambda seeds: len(seeds) or None), lambda count: f"{count:.0f}")
    yield numbers("gap", held.gap, signed)


def to_json(matches: pd.DataFrame) -> str:
    """Write a list of all numbers."""
    return dumps(records(matches))


EXPORTS = {"csv": frame_to_csv, "json": to_json}
