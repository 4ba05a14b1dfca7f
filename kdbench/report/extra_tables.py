"""What a board shows on request: pixels and classes, what other rules of selection give, and costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta

from kdbench.report.board import Board, ranked
from kdbench.report.rows import Row
from kdbench.report.selection import RULES, oracle_gap
from kdbench.report.table import Cell, Column, Table, label, make_table, number, plain, signed, spread
from kdbench.units import amount

SHOWN_CLASSES = 2
METHODS_ACROSS = 7


def _gains(board: Board) -> Table:
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
    """Pixels and gains, then a line a class, over several tables where there are many methods."""
    yield _gains(board)
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


def selection(board: Board) -> Iterator[Table]:
    """The same runs under every rule that chooses one of their points."""

    def by(rule: str) -> Column[Row]:
        return Column(rule, lambda row: spread(found.mean, found.deviation) if (found := row.chosen.get(rule)) else "")

    columns: list[Column[Row]] = [
        Column("method", label),
        *map(by, RULES),
        Column[Row]("oracle's gap", lambda row: signed(oracle_gap(row.chosen))),
    ]
    yield make_table(
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


def costs(board: Board) -> Iterator[Table]:
    """What training and inference take, and whom nobody beats in score and training at once."""

    def cost(title: str, measure: Callable[[Row], float | None], unit: str) -> Column[Row]:
        return Column(title, lambda row: "" if (value := measure(row)) is None else amount(value, unit))

    front = board.front
    columns: list[Column[Row]] = [
        Column("method", label),
        plain("mean", lambda row: row.mean),
        Column[Row]("Pareto", lambda row: "yes" if row.method in front else ""),
        cost("student passes", lambda row: row.cost.passes, ""),
        cost("training", lambda row: row.cost.flops, "FLOP"),
        Column[Row]("time", lambda row: _time(row.cost.seconds)),
        cost("memory", lambda row: _bytes(row.cost.memory_mb), "B"),
        cost("params", lambda row: row.parameters, ""),
        cost("inference", lambda row: row.cost.inference_flops, "FLOP"),
        cost("latency", lambda row: _seconds(row.cost.latency_ms), "s"),
    ]
    yield make_table(
        [column for column in columns if any(column.text(row) for row in board.rows)],
        board.rows,
        title=f"{board.benchmark}: costs",
        conditions=board.conditions,
        about=(
            "Mean mIoU of the targets in %; means over seeds of all stages together, wherever they were computed; "
            "Pareto: no other ranked student is as good in mean and training and better in one of them. Inference: an "
            "image through what is deployed. Operations: a product with its sum counts as two. What no record tells is "
            "left out"
        ),
    )


def _bytes(megabytes: float | None) -> float | None:
    return None if megabytes is None else megabytes * 2**20


def _time(seconds: float | None) -> str:
    return "" if seconds is None else str(timedelta(seconds=round(seconds)))


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


DETAILS: dict[str, Callable[[Board], Iterator[Table]]] = {"classes": classes, "selection": selection, "costs": costs}
"""What can be asked for."""
