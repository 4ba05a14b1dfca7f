"""Figures of how methods learned: mIoU at the kept points, and losses over the stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from math import nan
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdbench.report.board import Board
from kdbench.report.curves import Losses
from kdbench.report.page.labels import log_ticks, put_end_labels, short
from kdbench.report.page.looks import COLOURS, Look, leading
from kdbench.report.page.svg import INK, STYLE
from kdbench.report.rows import Row

SIZE = (10.4, 4.2)
ACROSS = 5
PANEL = (2.08, 1.55)
"""Inches of a panel of losses."""


@rc_context(STYLE)
def points(board: Board, looks: Mapping[str, Look]) -> Figure:
    """Mean mIoU of the targets (solid) and of the sources (dashed) at the kept points of the last stage."""
    shown = leading(board.rows, board.comparison)
    figure = Figure(figsize=SIZE)
    for index, (name, style) in enumerate((("targets", "-"), ("source", "--"))):
        axes = figure.add_axes((0.055 + 0.5 * index, 0.12, 0.36, 0.78))
        curves = {row.method: curve for row in board.rows if (curve := getattr(row.points, name))}
        last = max(map(len, curves.values()), default=0)
        for method, curve in curves.items():
            _curve(axes, curve, last, style, looks[method] if method in shown else None)
        axes.set(xlabel="kept point of the last stage", ylabel="mIoU in %")
        axes.set_title(name, loc="left")
        axes.set_xticks(range(1, 1 + last))
        axes.grid(axis="y")
        ends = {method: (last, curve[-1]) for method, curve in curves.items() if method in shown}
        put_end_labels(axes, ends)
    return figure


def _curve(axes: Any, values: Sequence[float], last: int, style: str, look: Look | None) -> None:
    """Ends at the last point, also where fewer are kept. Without a look it stands back."""
    x = range(1 + last - len(values), 1 + last)
    if look is None:
        axes.plot(x, values, style, color=INK, alpha=0.18, linewidth=0.8)
    else:
        axes.plot(x, values, style, marker=look.marker, color=look.colour, linewidth=1.4, markersize=5, zorder=3)


@rc_context(STYLE)
def losses(board: Board) -> Figure:
    """A panel a method: the terms of its losses over tenths of its stages, one stage after the other."""
    rows = trained(board)
    down = -(-len(rows) // ACROSS)
    figure = Figure(figsize=(ACROSS * PANEL[0], down * PANEL[1]))
    for index, row in enumerate(rows):
        x, y = index % ACROSS, down - 1 - index // ACROSS
        axes = figure.add_axes(((x + 0.15) / ACROSS, (y + 0.1) / down, 0.52 / ACROSS, 0.72 / down))
        axes.set_title(short(row.method), loc="left", pad=3)
        _panel(axes, row.losses)
    return figure


def trained(board: Board) -> list[Row]:
    """Those whose losses are known."""
    return [row for row in board.rows if any(row.losses.values())]


def _positive(values: Sequence[float]) -> list[float]:
    """With gaps where a logarithm has nothing to show."""
    return [value if value > 0 else nan for value in values]


def _panel(axes: Any, losses: Losses) -> None:
    names = dict.fromkeys(term for terms in losses.values() for term in terms)
    colours = dict(zip(names, cycle(COLOURS), strict=False))
    start, ends = 0, {}
    for number, (stage, terms) in enumerate(losses.items()):
        for name, values in terms.items():
            axes.plot(range(start, start + len(values)), _positive(values), color=colours[name], linewidth=1.2)
            ends[name] = (start + len(values) - 0.5, values[-1])
        # Every second name stands lower: short stages are narrower than their names.
        below = (0, -2 - 7 * (number % 2))
        axes.annotate(stage, (start, 0), below, ("data", "axes fraction"), "offset points", fontsize=6, va="top")
        start += max(map(len, terms.values()), default=0)
        axes.axvline(start - 0.5, color=INK, linewidth=0.4, alpha=0.4)
    axes.set(yscale="log", xticks=[], xlim=(-0.5, start - 0.5))
    low, high = axes.get_ylim()
    # Within less than a decade a logarithm hardly bends, and its round ticks may all lie outside.
    axes.set_yticks(log_ticks(low, high, most=4) if high > 10 * low else MaxNLocator(4).tick_values(low, high)[1:-1])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.tick_params(axis="y", labelsize=6, length=2, pad=1)
    axes.minorticks_off()
    put_end_labels(axes, {name: end for name, end in ends.items() if end[1] > 0}, 6, colours)
