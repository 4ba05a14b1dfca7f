"""Published numbers beside measured ones: what a paper reports, and whether the same cell gives it here.

The numbers are package data, one file a table: a line a method, a column for every benchmark, `benchmark/target` or
`benchmark+benchmark` (an average). `measured_as` names the method here that is the same as the paper's; a line without
one is shown and never compared.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from kdbench.errors import KdbenchError, unknown
from kdbench.metrics import mean_of
from kdbench.names import REAL
from kdbench.report.board import Board
from kdbench.report.old_statistics import deviation
from kdbench.report.rows import Row

FOLDER = Path(str(files("kdbench.report") / "published"))
TOLERANCE = 1.0
"""Points of mIoU within which the mean over seeds reproduces a published number. A published number is one run, and
seeds alone move a run by about as much."""
Status = Literal["reported", "not run", "reproduced", "not reproduced"]


@dataclass(frozen=True)
class Published:
    """One number of a paper, mIoU in percent. pair: teacher:student. measured_as: the same method here, "" for none.

    column: the benchmark or its target as in the file. benchmarks: several where the number is their average.
    """

    paper: str
    where: str
    protocol: str
    pair: str
    method: str
    measured_as: str
    note: str
    column: str
    miou: float

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """Whose targets it covers."""
        return tuple(self.column.partition("/")[0].split("+"))

    @property
    def target(self) -> str | None:
        """Where it is the number of one target."""
        return self.column.partition("/")[2] or None


@dataclass(frozen=True)
class Match:
    """A published number with what was measured for it. measured: mean over the seeds, in percent."""

    published: Published
    protocol_id: str | None = None
    seeds: tuple[int, ...] = ()
    measured: float | None = None
    deviation: float | None = None

    @property
    def method(self) -> str:
        """As the paper calls it."""
        return self.published.method

    @property
    def gap(self) -> float | None:
        """Measured minus published."""
        return None if self.measured is None else self.measured - self.published.miou

    @property
    def status(self) -> Status:
        """reported: there is nothing here to compare with. reproduced: within TOLERANCE."""
        if not self.published.measured_as:
            return "reported"
        if self.gap is None:
            return "not run"
        return "reproduced" if abs(self.gap) <= TOLERANCE else "not reproduced"


def read_published(folder: Path = FOLDER) -> list[Published]:
    """Every number of every file, in the order of the papers' tables."""
    return [number for path in sorted(folder.glob("*.csv")) for number in _read(path)]


def choose(
    numbers: Sequence[Published],
    protocol: str | None = None,
    benchmarks: Sequence[str] | None = None,
    pairs: Sequence[str] | None = None,
) -> list[Published]:
    """The numbers of a protocol's name, some benchmarks and pairs; a name that no number has is an error."""
    compared = [each for each in numbers if each.pair]
    _check("protocol", [protocol] if protocol else [], {each.protocol for each in compared})
    _check("benchmark", benchmarks or [], {name for each in compared for name in each.benchmarks})
    _check("pair", pairs or [], {each.pair for each in compared})
    return [
        each
        for each in numbers
        if protocol in (None, each.protocol)
        and (benchmarks is None or set(each.benchmarks) <= set(benchmarks))
        and (pairs is None or each.pair in pairs)
    ]


def _check(kind: str, asked: Iterable[str], held: set[str]) -> None:
    for name in asked:
        if name not in held:
            raise unknown(f"{kind} (among the published numbers)", name, held)


def match(numbers: Iterable[Published], boards: Sequence[Board]) -> list[Match]:
    """Each number with the measured row of its pair, method and protocol on real images; one for every protocol id."""
    found = []
    for published in numbers:
        ids = sorted({board.protocol_id for board in boards if _comparable(published, board)})
        matches = [each for name in ids if (each := _matched(published, name, boards)).measured is not None]
        found += matches or [Match(published)]
    return found


def _read(path: Path) -> Iterator[Published]:
    text = ("paper", "where", "protocol", "pair", "method", "measured_as", "note")
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            try:
                named = {name: line.pop(name) for name in text}
                yield from (Published(**named, column=name, miou=float(value)) for name, value in line.items() if value)
            except (KeyError, ValueError, TypeError) as error:
                raise KdbenchError(
                    f"{path}: {error!r} in the line of '{line}'. Columns: {', '.join(text)}, then numbers."
                ) from error


def _comparable(published: Published, board: Board) -> bool:
    """On real images under the paper's protocol. A teacher's own row stands on the boards of all its students."""
    return (
        published.measured_as != ""
        and (_settled(board), board.data_source, board.label_fraction) == (published.protocol, REAL, "1")
        and board.benchmark in published.benchmarks
        and _row(published, board) is not None
    )


def _settled(board: Board) -> str:
    """The protocol's name where it is a shipped version without further choices; else its id."""
    return (
        board.protocol if re.fullmatch(rf"{re.escape(board.protocol)}-v\d+", board.protocol_id) else board.protocol_id
    )


def _row(published: Published, board: Board) -> Row | None:
    for row in board.rows:
        teacher = row.role == "teacher" and published.pair.partition(":")[0] == board.pair.partition(":")[0]
        if row.method == published.measured_as and (teacher or board.pair == published.pair):
            return row
    return None


def _matched(published: Published, protocol_id: str, boards: Sequence[Board]) -> Match:
    """Over the seeds that all of its benchmarks have."""
    held = {
        board.benchmark: _scores(published, board)
        for board in boards
        if board.protocol_id == protocol_id and _comparable(published, board)
    }
    scores = [held.get(name, {}) for name in published.benchmarks]
    seeds = sorted(set.intersection(*map(set, scores)))
    means = [sum(each[seed] for each in scores) / len(scores) for seed in seeds]
    return Match(published, protocol_id, tuple(seeds), mean_of(means), deviation(means))


def _scores(published: Published, board: Board) -> Mapping[int, float]:
    row = _row(published, board)
    if row is None or published.target is None:
        return row.scores if row else {}
    each = {
        seed: dict(zip(board.columns, values, strict=True)).get(published.target)
        for seed, values in row.by_seed.items()
    }
    return {seed: value for seed, value in each.items() if value is not None}
