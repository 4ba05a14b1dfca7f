"""Words in figures: names beside axes, points and curves, as far as there is room, and ticks of logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression

from kdbench.report.page.svg import INK

LONGEST = 28
"""Characters of a name."""
SMALL = 7.5
"""Points of a label."""
GAP = 7
"""Points between a label and what it names."""


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """At 1, 2 and 5 of every decade from low to high, evenly left out where there are too many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [tick for power in powers for step in (1, 2, 5) if low <= (tick := step * 10.0**power) <= high]
    return ticks[:: -(-len(ticks) // most) or 1]


def short(name: str) -> str:
    """At most LONGEST characters of a name: its beginning and its end, where variants differ."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}…{name[1 - LONGEST // 2 :]}"


def inches(names: Iterable[str]) -> float:
    """What the longest of the names takes up beside an axis, estimated."""
    return 0.12 + 0.075 * max(map(len, map(short, names)), default=0)


def put_end_labels(
    axes: Any,
    ends: Mapping[str, tuple[float, float]],
    size: float = SMALL,
    colours: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """A name right of the end of each curve (data coordinates), in the order of the ends, as near as there is room."""
    names = sorted(ends, key=lambda name: ends[name][1])
    heights = axes.transData.transform([ends[name] for name in names])[:, 1] if names else np.zeros(0)
    room = 1.2 * size * np.arange(len(names))
    shifts = isotonic_regression(heights - room).x + room - heights if names else heights
    for name, shift in zip(names, shifts, strict=True):
        _annotate(axes, short(name), ends[name], 1, float(shift), size, colours.get(name, INK))


def put_labels(axes: Any, points: Mapping[str, tuple[float, float]]) -> None:
    """A name beside each point (data coordinates), moved up or down to the first free place, with a line to it.

    Axes have their limits and place, figures 72 dots an inch. Widths are estimated: the page writes in its own font.
    """
    spots = dict(zip(points, axes.transData.transform(list(points.values())), strict=True)) if points else {}
    taken = [_Box(x - 4, y - 4, x + 4, y + 4) for x, y in spots.values()]
    bounds = _Box(axes.bbox.x0, axes.bbox.y0, axes.figure.bbox.x1, axes.bbox.y1)
    for name, (x, y) in sorted(spots.items(), key=lambda spot: -spot[1][1]):
        for side, shift in MOVES:
            box = _box(short(name), x, y + shift, side)
            if box.within(bounds) and not any(box.meets(other) for other in taken):
                taken.append(box)
                _annotate(axes, short(name), points[name], side, shift)
                break


MOVES = [(side, step * sign * SMALL / 2) for step in range(60) for sign in (1, -1) for side in (1, -1)]
"""Side and shift, the nearest first; 1 is right of the point."""


class _Box(NamedTuple):
    """In points."""

    left: float
    low: float
    right: float
    high: float

    def meets(self, other: _Box) -> bool:
        return self.left < other.right and other.left < self.right and self.low < other.high and other.low < self.high

    def within(self, other: _Box) -> bool:
        return (
            self.left >= other.left and self.right <= other.right and self.low >= other.low and self.high <= other.high
        )


def _box(name: str, x: float, y: float, side: int) -> _Box:
    width = 0.6 * SMALL * len(name)
    near = x + side * GAP
    return _Box(min(near, near + side * width), y - 0.6 * SMALL, max(near, near + side * width), y + 0.6 * SMALL)


def _annotate(
    axes: Any, name: str, point: tuple[float, float], side: int, shift: float, size: float = SMALL, colour: str = INK
) -> None:
    line = {"arrowstyle": "-", "linewidth": 0.4, "alpha": 0.6, "shrinkA": 0, "shrinkB": 2, "color": colour}
    axes.annotate(
        name, point, (side * GAP, shift), textcoords="offset points", fontsize=size, color=colour, va="center",
        ha="left" if side > 0 else "right", arrowprops=line if abs(shift) > size / 2 else None, annotation_clip=False,
    )  # fmt: skip
