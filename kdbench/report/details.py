"""What a board shows on request: pixels and classes, and what other rules of selection give."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kdbench.report.board import Board, ranked
from kdbench.report.rows import Row
from kdbench.report.selection import RULES, oracle_gap
from kdbench.report.table import Cell, Column, Table, label, make_table, number, plain, signed, spread

SHOWN_CLASSES = 2
METHODS_ACROSS = 7


def gains(board: Board) -> Table:
    """Right pixels, parameters, and the classes that gained and lost most against the undistilled student."""
    alone = next((row for row in board.rows if row.method == board.comparison.undistilled), None)

    def extremes(sign: int) -> Callable[[Row], str]:
        def text(row: Row) -> str:
            found = sorted(_class_changes(board, row, alone).items(), key=lambda change: -sign * change[1])
            return ", ".join(f"{name} {signed(change)}" for name, change in found[:SHOWN_CLASSES] if sign * change > 0)

        return text

    columns: list[Column[Row]] = [
        Column("method", label),
        plain("pixels right", lambda row: row.accuracy),
        Column[Row]("params", lambda row: "" if row.parameters is None else f"{row.parameters / 1e6:.2f} M"),
        *([Column("largest gains", extremes(1)), Column("largest losses", extremes(-1))] if alone else []),
    ]
    to = f"; gains and losses: of the IoU of classes, to {alone.method}, over the same seeds" if alone else ""
    return make_table(
        columns,
        board.rows,
        ranked(board.rows, board.comparison),
        title=f"{board.benchmark}: pixels and classes",
        conditions=board.conditions,
        about=f"In %, means over seeds and targets{to}",
    )


def _class_changes(board: Board, row: Row, alone: Row | None) -> dict[str, float]:
    if alone is None or row is alone or row.seeds != alone.seeds:
        return {}
    pairs = zip(board.classes, row.classes, alone.classes, strict=True)
    return {name: ours - theirs for name, ours, theirs in pairs if ours is not None and theirs is not None}


def classes(board: Board) -> Iterator[Table]:
    """A line a class, over several tables where there are many methods."""
    rows = [row for row in board.rows if row.mean is not None]
    for start in range(0, len(rows), METHODS_ACROSS):
        across = rows[start : start + METHODS_ACROSS]
        yield Table(
            title=f"{board.benchmark}: IoU by class",
            conditions=board.conditions,
            about="In %, means over seeds and over the targets whose labels show the class",
            header=("class", *(label(row) for row in across)),
            lines=tuple(
                (Cell(name), *(Cell(number(row.classes[index])) for row in across))
                for index, name in enumerate(board.classes)
            ),
        )


def selection(board: Board) -> Table:
    """The same runs under every rule that chooses one of their points."""

    def by(rule: str) -> Column[Row]:
        return Column(rule, lambda row: spread(found.mean, found.deviation) if (found := row.chosen.get(rule)) else "")

    columns: list[Column[Row]] = [
        Column("method", label),
        *map(by, RULES),
        Column[Row]("oracle's gap", lambda row: signed(oracle_gap(row.chosen))),
    ]
    return make_table(
        columns,
        board.rows,
        title=f"{board.benchmark}: rules of selection",
        conditions=board.conditions,
        about=(
            "Mean mIoU of the targets in %, of one of each run's kept points: the last, which boards use; the best on "
            "the source's validation images; the oracle, the best on the targets themselves: an upper bound. "
            "The oracle's gap: what it has over the last"
        ),
    )
