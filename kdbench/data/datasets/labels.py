"""How data sets store labels, and how stored values become classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from kdbench.benchmark import Colour
from kdbench.data.datasets.files import DataFile, open_image, unreadable
from kdbench.types import IGNORE

Table = np.ndarray
"""256 entries: stored value -> class, 255 = ignore."""
STRIP = 256
"""Rows of a coloured label that are decoded at a time: the numbers in between take twenty times its own memory."""


def table(classes: Mapping[int, int]) -> Table:
    """Return the table of a mapping; every other value is ignored."""
    made = np.full(256, IGNORE, dtype=np.uint8)
    made[list(classes)] = list(classes.values())
    return made


def identity(count: int) -> Table:
    """Return the table in which stored values 0 to count - 1 are classes; every other value is ignored."""
    return table({value: value for value in range(count)})


def indices(file: DataFile) -> np.ndarray:
    """Return (H, W) uint8 of a picture in grey or with a palette: its stored values, never its colours."""
    picture = open_image(file)
    if picture.mode not in ("L", "P"):
        raise unreadable(file, f"a label of one channel was expected, this is a picture in mode {picture.mode}")
    return np.asarray(picture)


def palette_of(file: DataFile) -> dict[int, Colour]:
    """Return a picture's palette, index -> colour; empty where it has none."""
    flat = open_image(file).getpalette("RGB") or []
    return dict(enumerate(zip(*[iter(flat)] * 3, strict=True)))


def first_channel(file: DataFile) -> np.ndarray:
    """Return (H, W) uint8: the first of three channels of 16 bits."""
    # Pillow keeps one byte of the two: the first as it is, the second where it takes the file to be of the other order.
    high, low = (np.asarray(open_image(file, rawmode))[..., 0] for rawmode in ("RGB;16B", "RGB;16L"))
    if high.any():
        raise unreadable(file, "a class beyond 255")
    return low


class ByColour:
    """Decodes labels stored as colours: matched exactly, every other colour becomes the value OFF."""

    OFF = 254

    def __init__(self, palette: Iterable[Colour]) -> None:
        self.palette = tuple(palette)
        codes = _code(np.array(self.palette))
        order = np.argsort(codes)
        self._codes, self._values = codes[order], order.astype(np.uint8)

    def __call__(self, file: DataFile) -> np.ndarray:
        """Return (H, W) uint8: indices into the palette."""
        picture = open_image(file)
        if picture.mode not in ("RGB", "RGBA", "P"):
            raise unreadable(file, f"a label in colours was expected, this is a picture in mode {picture.mode}")
        return self.index(np.asarray(picture.convert("RGB")))

    def index(self, picture: np.ndarray) -> np.ndarray:
        """Return (H, W) uint8 of colours (H, W, 3)."""
        return np.concatenate([self._index(picture[row : row + STRIP]) for row in range(0, len(picture), STRIP)])

    def _index(self, picture: np.ndarray) -> np.ndarray:
        codes = _code(picture)
        place = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        return np.where(self._codes[place] == codes, self._values[place], self.OFF).astype(np.uint8)


def _code(colours: np.ndarray) -> np.ndarray:
    """Return one number a colour, (...) of (..., 3)."""
    return colours.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
