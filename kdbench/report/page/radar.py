"""The radar of one pair over its benchmarks, as in Figure 2 of the GKD paper (Lv et al., CVPR 2026)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdbench.report.page.labels import short
from kdbench.report.page.looks import Look, leading
from kdbench.report.page.svg import INK, STYLE
from kdbench.report.summary import Summary

AXES = 3
"""Fewer span no area."""
INNER = 0.2
"""Where the lowest value stands: at the centre all axes would meet."""


def scores(summary: Summary) -> dict[str, tuple[float, ...]]:
    """Of whom the radar shows: mean mIoU by benchmark. Nobody who lacks a benchmark: such a row has no average."""
    means = [{row.method: row.mean for row in board.rows if row.mean is not None} for board in summary.boards]
    shown = leading(summary.rows, summary.comparison)
    return {method: tuple(held[method] for held in means) for method in shown}


@rc_context(STYLE)
def radar(summary: Summary, looks: Mapping[str, Look]) -> Figure:
    """A polygon a method; every axis from the lowest to the highest value on it."""
    held = scores(summary)
    values = np.array(list(held.values()))
    low, high = values.min(0), values.max(0)
    angles = np.pi / 2 - 2 * np.pi * np.arange(len(low)) / len(low)
    figure = Figure(figsize=(5.2, 4.8))
    axes = figure.add_axes((0.19, 0.26, 0.62, 0.67), projection="polar")
    for method, each in zip(held, values, strict=True):
        reach = INNER + (1 - INNER) * (each - low) / np.where(high > low, high - low, 1)
        axes.plot(np.append(angles, angles[0]), np.append(reach, reach[0]), clip_on=False, **_line(looks[method]))
    _frame(axes, angles)
    for angle, name, least, most in zip(angles, summary.benchmarks, low, high, strict=True):
        side = "center" if abs(np.cos(angle)) < 0.1 else ("left" if np.cos(angle) > 0 else "right")
        axes.annotate(f"{name}\n{least:.1f} to {most:.1f}", (angle, 1.1), ha=side, va="center", annotation_clip=False)
    handles = [Line2D([], [], label=short(method), **_line(looks[method])) for method in held]
    figure.legend(handles=handles, loc="lower center", ncols=2, columnspacing=3)
    return figure


def _frame(axes: Any, angles: np.ndarray) -> None:
    """Spokes and rings, without the angles and radii that polar axes come with."""
    axes.set_axis_off()
    axes.set_ylim(0, 1.05)
    for angle in angles:
        axes.plot((angle, angle), (0, 1), color=INK, linewidth=0.6, alpha=0.3, zorder=1)
    for ring in np.linspace(INNER, 1, 5):
        closed = np.append(angles, angles[0])
        axes.plot(closed, np.full(len(closed), ring), color=INK, linewidth=0.6, alpha=0.15, zorder=1)


def _line(look: Look) -> dict[str, Any]:
    return {"color": look.colour, "marker": look.marker, "linewidth": 1.6, "markersize": 5}
