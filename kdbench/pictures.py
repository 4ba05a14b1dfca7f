"""Draw label maps in colour, and pictures side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

Colour = tuple[int, int, int]
Picture = NDArray[np.uint8]

TILE, DPI = 240, 100
"""Pixels of a picture's width in a contact sheet, and of an inch."""


def colourise(label: Picture, palette: Sequence[Colour]) -> Picture:
    """Turn class indices (H, W) into colours (H, W, 3); indices without a colour, 255 among them, become black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = np.asarray(palette, np.uint8).reshape(-1, 3)
    table[255] = 0
    return table[label]


def to_css(colour: Colour) -> str:
    """Return a colour as #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Picture]]],
    columns: Sequence[str],
    *,
    legend: Sequence[tuple[str, Colour]] = (),
    title: str = "",
) -> Figure:
    """Draw rows of pictures (H, W, 3) or (H, W), each with a name, under the columns' names.

    A row may hold fewer pictures than there are columns.
    """
    height, width = np.max([picture.shape[:2] for _, pictures in rows for picture in pictures], axis=0)
    # A size at which hardly anything is left over; the layout finds the places.
    inches = 0.4 + 0.085 * max(len(name) for name, _ in rows) + len(columns) * (TILE / DPI + 0.06)
    across = max(1, int(inches / 1.5))
    lines = 2.5 * bool(title) + 1.5 * any(columns) + -(-len(legend) // across)
    tall = 0.2 + 0.2 * lines + len(rows) * (TILE / DPI * height / width + 0.06)
    figure = Figure(figsize=(inches, tall), dpi=DPI, layout="compressed")
    grid = figure.subplots(len(rows), len(columns), squeeze=False, gridspec_kw={"wspace": 0.02, "hspace": 0.02})
    for axes, name in zip(grid[0], columns, strict=True):
        axes.set_title(name, fontsize=10, color="0.35")
    for line, (name, pictures) in zip(grid, rows, strict=True):
        line[0].text(-0.03, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=10)
        for axes in line:
            axes.set_axis_off()
        for axes, picture in zip(line, pictures, strict=False):
            smooth = None if picture.shape[1] > TILE else "nearest"
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation=smooth)
    if legend:
        patches = [Patch(facecolor=to_css(colour), label=name) for name, colour in legend]
        figure.legend(handles=patches, loc="outside lower left", ncols=across, frameon=False, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, wrap=True)
    return figure
