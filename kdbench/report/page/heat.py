"""The heat map of a board: IoU of every class, and who has more of it than the undistilled student."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from kdbench.report.board import Board
from kdbench.report.page.labels import SMALL, inches, short
from kdbench.report.page.svg import PAPER, STYLE

LINE, CELL = 0.19, 0.42
"""Inches of a method's line and of a class's column."""


@rc_context(STYLE)
def heat_map(board: Board) -> Figure:
    """IoU of every class: the undistilled student's, and what the others have more; without it everybody's."""
    import seaborn

    rows = [row for row in board.rows if row.mean is not None]
    values = pd.DataFrame([row.classes for row in rows], [row.method for row in rows], board.classes, dtype=float)
    alone = next((row for row in rows if row.method == board.comparison.undistilled), None)
    figure, upper, lower = _grid(values, alone is not None)
    style: dict[str, Any] = {"annot": True, "annot_kws": {"size": SMALL}, "cbar": False, "linewidths": 0.5}
    style |= {"linecolor": PAPER, "yticklabels": True}
    if alone is None:
        seaborn.heatmap(values, fmt=".0f", cmap="cividis", vmin=0, vmax=100, ax=upper, **style)
        lower.remove()
    else:
        own, more = values.loc[[alone.method]], values.drop(alone.method) - values.loc[alone.method]
        other = {row.method for row in rows if row.seeds != alone.seeds}
        more = more.rename(lambda method: f"{short(method)} *" if method in other else short(method))
        seaborn.heatmap(own, fmt=".0f", cmap="Greys", vmin=0, vmax=250, ax=upper, **style)
        if more.empty:
            lower.remove()
        else:
            limit = colour_limit(board)
            style["annot"] = more.map(_change)
            seaborn.heatmap(more, fmt="", cmap="vlag_r", vmin=-limit, vmax=limit, ax=lower, **style)
            lower.tick_params(bottom=False, labelbottom=False)
            lower.tick_params(axis="y", length=0)
    upper.tick_params(axis="x", top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    upper.tick_params(axis="y", length=0, labelrotation=0)
    upper.set_xticklabels(board.classes, rotation=40, ha="left", rotation_mode="anchor")
    return figure


def _change(value: float) -> str:
    return "0" if abs(value) < 0.5 else f"{value:+.0f}"


def colour_limit(board: Board) -> float:
    """Where the colours of the classes' differences end, in points: few differences are larger."""
    alone = next(row.classes for row in board.rows if row.method == board.comparison.undistilled)
    held = np.array([row.classes for row in board.rows if row.mean is not None], float) - np.array(alone, float)
    return float(max(5, np.ceil(np.nanpercentile(np.abs(held), 98)))) if np.isfinite(held).any() else 5.0


def _grid(values: pd.DataFrame, parted: bool) -> tuple[Figure, Any, Any]:
    """Two axes, one above the other; the upper one has a line where they are parted, else all."""
    rows, columns = values.shape
    left, top, gap = inches(values.index) + 0.1, 0.85, 0.08 if parted else 0.0
    width, height = left + CELL * columns + 0.45, top + gap + 0.04 + LINE * rows
    figure = Figure(figsize=(width, height))

    def axes(first: int, lines: int, down: float) -> Any:
        low = height - top - down - LINE * (first + lines)
        return figure.add_axes((left / width, low / height, CELL * columns / width, LINE * max(lines, 1) / height))

    upper = 1 if parted else rows
    return figure, axes(0, upper, 0), axes(upper, rows - upper, gap)
