"""Charts: heat maps of matrices and curves over training steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

DPI = 110


def heat_map(matrix: pd.DataFrame, rows: str, columns: str, title: str) -> Figure:
    """A matrix of percentages as a heat map with its figures."""
    import seaborn

    figure, axes = _figure(1.9 + 0.85 * matrix.shape[1], 1.6 + 0.55 * matrix.shape[0])
    seaborn.heatmap(
        matrix, annot=True, fmt=".0f", cmap="cividis", vmin=0, vmax=100, square=False, cbar=False, linewidths=1, ax=axes
    )
    axes.set(xlabel=columns, ylabel=rows)
    axes.set_title(title, fontsize=11, loc="left")
    axes.tick_params(axis="x", rotation=35)
    axes.tick_params(axis="y", rotation=0)
    return figure


def curves(
    lines: Mapping[str, Sequence[tuple[float, float, float]]], title: str, marks: Mapping[str, float], over: str
) -> Figure:
    """Lines of (x, mean, deviation) with bands; marks are vertical lines at what was chosen."""
    import seaborn

    figure, axes = _figure(7.2, 4.0)
    colours = seaborn.color_palette("colorblind", len(lines))
    for colour, (name, points) in zip(colours, lines.items(), strict=True):
        x, mean, spread = (list(values) for values in zip(*points, strict=True))
        axes.plot(x, mean, marker="o", markersize=4, color=colour, label=name)
        low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    for name, chosen in marks.items():
        axes.axvline(chosen, color="0.4", linestyle=":", linewidth=1)
        axes.text(chosen, axes.get_ylim()[0], f" {name}", fontsize=8, color="0.3", rotation=90, va="bottom")
    axes.set(xlabel=over, ylabel="mIoU (%), mean of the targets")
    axes.set_title(title, fontsize=11, loc="left")
    axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.25)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots()
