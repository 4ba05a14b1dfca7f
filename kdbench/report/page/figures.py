"""A board's figures: differences with their intervals, and what the scores cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdbench.report.board import Board, ranked
from kdbench.report.costs import Cost
from kdbench.report.page.labels import inches, log_ticks, put_labels, short
from kdbench.report.page.looks import BLUE, VERMILION, Look
from kdbench.report.page.svg import INK, PAPER, STYLE
from kdbench.report.rows import Row
from kdbench.units import amount

WIDTH = 5.2
"""Inches of a figure that another stands beside."""
LINE = 0.19
"""Inches of a method's line."""
VERDICTS = {"better": BLUE, "worse": VERMILION, "tie": INK, "not resolvable": INK}


@rc_context(STYLE)
def differences(board: Board) -> Figure:
    """Each student minus the undistilled one: a dot with both intervals, the best on top."""
    found = board.comparison.to_undistilled
    order = sorted(found, key=lambda method: found[method].value)
    figure, axes = _lines(order, 0.9)
    for y, method in enumerate(order):
        each, images = found[method], board.over_images.get(method)
        colour = VERDICTS[each.verdict]
        if each.over_seeds:
            axes.hlines(y, *each.over_seeds.interval, colour, linewidth=6, alpha=0.5)
        if images:
            axes.hlines(y, *images, colour, linewidth=1.2)
        axes.plot(each.value, y, **_dot(each.verdict))
        axes.annotate(str(len(each.seeds)), (1, y), (5, 0), ("axes fraction", "data"), "offset points", va="center")
    axes.annotate("seeds", (1, 1), (8, 4), "axes fraction", "offset points", ha="center", alpha=0.7)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_xlabel(f"mIoU, points more than {board.comparison.undistilled}")
    figure.legend(handles=_legend(board), loc="lower left", ncols=4, handlelength=1.6, columnspacing=1.2)
    return figure


def _dot(verdict: str) -> dict[str, Any]:
    """Hollow without a verdict."""
    colour = VERDICTS[verdict]
    face = PAPER if verdict == "not resolvable" else colour
    return {"color": colour, "markerfacecolor": face, "marker": "o", "markersize": 5, "linestyle": ""}


def _legend(board: Board) -> list[Line2D]:
    """Of what is there."""
    found = board.comparison.to_undistilled.values()
    handles = []
    if any(each.over_seeds for each in found):
        handles.append(Line2D([], [], color=INK, linewidth=6, alpha=0.5, label="95 % over seeds"))
    if board.over_images:
        handles.append(Line2D([], [], color=INK, linewidth=1.2, label="95 % over images"))
    there = [verdict for verdict in VERDICTS if any(each.verdict == verdict for each in found)]
    return handles + [Line2D([], [], label=verdict, **_dot(verdict)) for verdict in there]


@rc_context(STYLE)
def means(board: Board) -> Figure:
    """Bars of the mean mIoU with the deviation over seeds, for boards without an undistilled student."""
    rows = [row for row in reversed(board.rows) if row.mean is not None]
    figure, axes = _lines([row.method for row in rows], 0.5)
    axes.barh(range(len(rows)), [row.mean or 0.0 for row in rows], color=BLUE, height=0.7)
    for y, row in enumerate(rows):
        if row.mean is not None and row.deviation is not None:
            axes.hlines(y, row.mean - row.deviation, row.mean + row.deviation, INK, linewidth=1.2)
    axes.set_xlabel("mIoU in %, mean ± standard deviation over seeds")
    return figure


def _lines(names: Sequence[str], below: float) -> tuple[Figure, Any]:
    """Axes with a line for every name; below: inches for what stands there."""
    height = below + 0.25 + LINE * max(len(names), 2)
    figure = Figure(figsize=(WIDTH, height))
    left = inches(names) / WIDTH
    axes = figure.add_axes((left, below / height, 0.94 - left, LINE * max(len(names), 2) / height))
    axes.set(yticks=range(len(names)), yticklabels=map(short, names), ylim=(-0.6, len(names) - 0.4))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    return figure, axes


MEASURES = {"flops": "operations of the training (logarithmic)", "passes": "images through the student (logarithmic)"}
UNITS = {"flops": "FLOP", "passes": ""}


def measure(board: Board) -> str:
    """What most students have: the operations of their training if they were counted, else their image passes."""
    return max(MEASURES, key=lambda name: len(priced(board, name)))


def priced(board: Board, name: str) -> list[Row]:
    """The students whose mean and cost are known."""
    students = [row for row in board.rows if row.role != "teacher" and row.mean is not None]
    return [row for row in students if getattr(row.cost, name)]


@rc_context(STYLE)
def costs(board: Board, looks: Mapping[str, Look]) -> Figure:
    """Mean mIoU against the cost of the training, with the front of those whom nobody beats in both."""
    name = measure(board)
    spots = {row.method: (float(getattr(row.cost, name)), row.mean or 0.0) for row in priced(board, name)}
    height = min(7.6, max(3.4, 0.55 + 0.17 * len(spots)))
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0.11, 0.5 / height, 0.86, 1 - 0.65 / height))
    competing, ahead = ranked(board.rows, board.comparison), sorted(spots[method] for method in _front(board, name))
    axes.step([x for x, _ in ahead], [y for _, y in ahead], where="post", color=INK, linewidth=0.8)
    for method, (x, y) in spots.items():
        face = looks[method].colour if method in competing else PAPER
        style: dict[str, Any] = {"color": looks[method].colour, "markerfacecolor": face, "markersize": 5.5, "zorder": 3}
        axes.plot(x, y, looks[method].marker, **style)
    for row in board.rows:
        if row.role == "teacher" and row.mean is not None:
            axes.axhline(row.mean, color=INK, linewidth=0.8, linestyle=(0, (5, 3)))
            axes.annotate(row.method, (1, row.mean), (0, 3), ("axes fraction", "data"), "offset points", ha="right")
    _logarithmic(axes, [x for x, _ in spots.values()], UNITS[name])
    axes.set(xlabel=MEASURES[name], ylabel="mean mIoU of the targets in %")
    axes.grid()
    put_labels(axes, spots)
    return figure


def _front(board: Board, name: str) -> set[str]:
    """The board's front, with this measure as what is paid."""
    rows = tuple(replace(row, cost=Cost(flops=getattr(row.cost, name))) for row in board.rows)
    return replace(board, rows=rows).front


def _logarithmic(axes: Any, values: Sequence[float], unit: str) -> None:
    """An x axis from well below to well above the values."""
    low, high = min(values), max(values)
    room = max((high / low) ** 0.3, 1.5)
    axes.set(xscale="log", xlim=(low / room, high * room))
    axes.set_xticks(log_ticks(low / room, high * room, most=5))
    axes.xaxis.set_major_formatter(lambda value, _: amount(value, unit))
    axes.minorticks_off()
