"""How data sets store labels, and how stored values become classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from kdbench.benchmark import Colour
from kdbench.data.datasets.files import DataFile, open_image, unreadable
from kdbench.types import IGNORE

Table = np.ndarray
"""256 entries: stored value -> class, 255 = ignore."""


def table(classes: Mapping[int, int]) -> Table:
    """The table of a mapping; every other value is ignored."""
    made = np.full(256, IGNORE, dtype=np.uint8)
    made[list(classes)] = list(classes.values())
    return made


def identity(count: int) -> Table:
    """Stored values are classes 0 to count - 1; every other one is ignored."""
    return table({value: value for value in range(count)})


def indices(entry: DataFile) -> np.ndarray:
    """(H, W) uint8 of a picture in grey or with a palette: its stored values, never its colours."""
    picture = open_image(entry)
    if picture.mode not in ("L", "P"):
        raise unreadable(entry, f"a label of one channel was expected, this is a picture in mode {picture.mode}")
    return np.asarray(picture)


def palette_of(entry: DataFile) -> dict[int, Colour] | None:
    """Index -> colour of a picture with a palette."""
    flat = open_image(entry).getpalette("RGB")
    if flat is None:
        return None
    return {index: (r, g, b) for index, (r, g, b) in enumerate(zip(*[iter(flat)] * 3, strict=False))}


def first_channel(entry: DataFile) -> np.ndarray:
    """(H, W) uint8: the first of three channels of 16 bits."""
    # Pillow keeps one byte of the two: the first as it is, the second where it takes the file to be of the other order.
    high, low = (_sixteen(entry, order)[..., 0] for order in ("RGB;16B", "RGB;16L"))
    if high.any():
        raise unreadable(entry, "a class beyond 255")
    return low


def _sixteen(entry: DataFile, order: str) -> np.ndarray:
    return np.asarray(open_image(entry, order))


STRIP = 256


class ByColour:
    """Labels stored as colours: matched exactly, everything else becomes a value of its own, OFF."""

    OFF = 254

    def __init__(self, palette: Iterable[tuple[int, int, int]]) -> None:
        self.palette = tuple(palette)
        codes = [_code(np.array(colour)) for colour in self.palette]
        order = np.argsort(codes)
        self._codes, self._values = np.array(codes)[order], order.astype(np.uint8)

    def __call__(self, entry: DataFile) -> np.ndarray:
        """(H, W) uint8: indices into the palette."""
        picture = open_image(entry)
        if picture.mode not in ("RGB", "RGBA", "P"):
            raise unreadable(entry, f"a label in colours was expected, this is a picture in mode {picture.mode}")
        return self.index(np.asarray(picture.convert("RGB")))

    def index(self, picture: np.ndarray) -> np.ndarray:
        """(H, W) uint8 of colours (H, W, 3)."""
        # By strips: the numbers in between take twenty times a tile's own memory.
        return np.concatenate([self._index(picture[row : row + STRIP]) for row in range(0, len(picture), STRIP)])

    def _index(self, picture: np.ndarray) -> np.ndarray:
        codes = _code(picture)
        place = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        return np.where(self._codes[place] == codes, self._values[place], self.OFF).astype(np.uint8)


def _code(colours: np.ndarray) -> np.ndarray:
    wide = colours.astype(np.int32)
    return np.asarray((wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2])
