"""Pictures for people: colourised label maps and contact sheets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Picture = NDArray[np.uint8]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

GAP, MARGIN, SWATCH = 6, 16, 14
_INK, _MUTED, _FRAME = (25, 25, 28), (90, 90, 96), (205, 205, 210)


def colourise(label: Picture, palette: Sequence[Colour]) -> Picture:
    """Class indices (H, W) to colours (H, W, 3); whatever the palette lacks, 255 among it, is black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = np.asarray(palette, np.uint8).reshape(-1, 3)
    table[255] = 0
    return table[label]


@lru_cache(maxsize=8)
def _font(size: int) -> Font:
    return ImageFont.load_default(size=size)


def _width(text: str, size: int) -> int:
    return round(_font(size).getlength(text))


def _fitted(picture: Picture, tile: tuple[int, int]) -> Image.Image:
    """Scaled to fit (H, W): by whole factors where it is smaller, smoothly where it is larger."""
    image = Image.fromarray(np.ascontiguousarray(picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, 2)))
    factor = min(tile[0] / image.height, tile[1] / image.width)
    if factor >= 1:
        size = (image.width * int(factor), image.height * int(factor))
        return image.resize(size, Image.Resampling.NEAREST)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _default_tile(rows: Sequence[tuple[str, Sequence[Picture]]]) -> tuple[int, int]:
    """The largest picture, enlarged by a whole factor to some 240 pixels of width."""
    shapes = [picture.shape for _, pictures in rows for picture in pictures] or [(64, 128)]
    high, wide = max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)
    factor = max(1, round(240 / wide))
    return high * factor, wide * factor


def _legend_lines(legend: Sequence[tuple[str, Colour]], width: int) -> list[list[tuple[int, str, Colour]]]:
    """Entries with their x offset, wrapped to the width."""
    lines: list[list[tuple[int, str, Colour]]] = [[]]
    x = 0
    for name, colour in legend:
        step = SWATCH + 6 + _width(name, 13) + 18
        if x and x + step > width:
            lines.append([])
            x = 0
        lines[-1].append((x, name, colour))
        x += step
    return lines if legend else []


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Picture]]],
    columns: Sequence[str],
    *,
    legend: Sequence[tuple[str, Colour]] = (),
    title: str = "",
    tile: tuple[int, int] | None = None,
) -> Image.Image:
    """A labelled grid: rows of pictures (H, W, 3) or (H, W) with a title each, under column titles.

    tile is (H, W) in pixels. A row may hold fewer pictures than there are columns; its last cells stay white.
    """
    tile = tile or _default_tile(rows)
    count = max([len(columns), *(len(pictures) for _, pictures in rows)], default=0)
    left = MARGIN + max((_width(name, 15) for name, _ in rows), default=0) + (10 if rows else 0)
    cells = [max(tile[1], _width(name, 14) + 4) for name in [*columns, *[""] * (count - len(columns))]]
    starts = [left + sum(cells[:k]) + GAP * k for k in range(count)]
    right = starts[-1] + cells[-1] if count else left
    width = max(right, MARGIN + _width(title, 20)) + MARGIN
    lines = _legend_lines(legend, width - 2 * MARGIN)
    top = MARGIN + (32 if title else 0) + (24 if any(columns) else 0)
    bottom = top + len(rows) * (tile[0] + GAP)
    sheet = Image.new("RGB", (width, bottom + MARGIN + len(lines) * (SWATCH + 8)), "white")
    pen = ImageDraw.Draw(sheet)
    if title:
        pen.text((MARGIN, MARGIN), title, _INK, _font(20))
    for name, start, cell in zip(columns, starts, cells, strict=False):
        pen.text((start + cell / 2, top - 8), name, _MUTED, _font(14), anchor="ms")
    for r, (name, pictures) in enumerate(rows):
        y = top + r * (tile[0] + GAP)
        pen.text((left - 10, y + tile[0] / 2), name, _INK, _font(15), anchor="rm")
        for start, cell, picture in zip(starts, cells, pictures, strict=False):
            image = _fitted(picture, tile)
            sheet.paste(image, (start + (cell - image.width) // 2, y + (tile[0] - image.height) // 2))
    for k, line in enumerate(lines):
        y = bottom + 8 + k * (SWATCH + 8)
        for x, name, colour in line:
            pen.rectangle((MARGIN + x, y, MARGIN + x + SWATCH, y + SWATCH), colour, _FRAME)
            pen.text((MARGIN + x + SWATCH + 6, y + SWATCH / 2 + 1), name, _INK, _font(13), anchor="lm")
    return sheet
