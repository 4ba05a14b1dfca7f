"""Charts: heat maps of matrices and curves over training steps."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

DPI = 110


def heat_map(matrix: pd.DataFrame, rows: str, columns: str, title: str) -> Figure:
    """A matrix of percentages as a heat map with its figures."""
    import seaborn

    figure, axes = _figure(1.9 + 0.85 * matrix.shape[1], 1.6 + 0.55 * matrix.shape[0])
    seaborn.heatmap(
        matrix, annot=True, fmt=".0f", cmap="cividis", vmin=0, square=False, cbar=False, linewidths=1, ax=axes
    )
    axes.set(xlabel=columns, ylabel=rows)
    # Over the whole figure and in several lines where it must: a matrix of three is narrower than its title.
    figure.suptitle(title, fontsize=11, x=0.01, horizontalalignment="left", wrap=True)
    axes.tick_params(axis="x", rotation=35)
    axes.tick_params(axis="y", rotation=0)
    return figure


def budget_curves(table: pd.DataFrame, title: str, chosen: int) -> Figure:
    """mIoU on the targets against steps: a line a method and benchmark, with the deviation over seeds.

    table: columns method, benchmark, seed, steps, targets. chosen: the protocol's steps, a vertical line.
    """
    import seaborn

    lines = table.assign(line=table.method + ", " + table.benchmark)
    figure, axes = _figure(7.2, 4.0)
    seaborn.lineplot(
        lines, x="steps", y="targets", hue="line", errorbar="sd", marker="o", palette="colorblind", ax=axes
    )
    axes.axvline(chosen, color="0.4", linestyle=":", linewidth=1)
    axes.set(xscale="log", xlabel="steps (dotted: the protocol's)", ylabel="mIoU (%), mean of the targets")
    axes.set_xticks(sorted(table.steps.unique()), [str(steps) for steps in sorted(table.steps.unique())])
    axes.minorticks_off()
    axes.set_title(title, fontsize=11, loc="left")
    axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.25)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots()
