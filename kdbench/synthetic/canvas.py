"""Seeded random numbers, and one packed canvas for thing, material, depth and tone, with a shadow canvas."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from kdbench.synthetic.vocabulary import FLAT, MATERIAL

Fill = tuple[int, int, int, int]
Point = tuple[float, float]
T = TypeVar("T")


class Rng:
    """Random numbers of one purpose, seeded by a stable hash of its key."""

    def __init__(self, *key: object) -> None:
        digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
        self._rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
        self._pool: list[float] = []

    def u(self, low: float = 0.0, high: float = 1.0) -> float:
        """Uniform in [low, high)."""
        # A pool, because a scalar call into a numpy Generator costs as much as drawing a shape.
        if not self._pool:
            self._pool = self._rng.random(1024).tolist()
        return low + (high - low) * self._pool.pop()

    def i(self, count: int) -> int:
        """Integer in 0..count-1."""
        return int(self.u() * count)

    def p(self, chance: float) -> bool:
        """True with the given chance."""
        return self.u() < chance

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[int(self.u() * len(options))]

    def normal(self, *shape: int) -> NDArray[np.float32]:
        """Standard normal array of the given shape."""
        return self._rng.standard_normal(shape, np.float32)


def fill_of(thing: int, material: str, depth: int, variant: int = 8, shade: int = 10) -> Fill:
    """Pack what a shape is; shade 0..15, where 10 leaves the colour as it is."""
    return thing, MATERIAL[material], depth, (variant & 15) << 4 | max(0, min(15, shade))


def shaded(colour: Fill, shade: int) -> Fill:
    """The same fill in another shade."""
    return *colour[:3], (colour[3] & 240) | max(0, min(15, shade))


@dataclass(frozen=True)
class SceneLayout:
    """A scene before appearance; every array is (H, W) uint8."""

    thing: NDArray[np.uint8]
    material: NDArray[np.uint8]
    depth: NDArray[np.uint8]
    tone: NDArray[np.uint8]  # variant in the high four bits, shade in the low
    shadow: NDArray[np.uint8]
    lights: tuple[tuple[float, float, float, str], ...]  # x, y, radius in pixels, kind
    horizon: int | None  # row; None seen from above
    object: int = -1


def _pixel(value: float) -> int:
    return floor(value + 0.5)


def _grid(points: Sequence[Point]) -> list[int]:
    # Whole coordinates, so that no machine's arithmetic moves a label over a pixel's edge inside Pillow.
    return [floor(value + 0.5) for point in points for value in point]


def _bounds(x: float, y: float, rx: float, ry: float) -> tuple[int, int, int, int]:
    left, top = _pixel(x - rx), _pixel(y - ry)
    return left, top, max(left, _pixel(x + rx) - 1), max(top, _pixel(y + ry) - 1)


class Canvas:
    """Shapes in pixel coordinates; later shapes cover earlier ones."""

    def __init__(self, height: int, width: int, fill: Fill) -> None:
        self.h, self.w = height, width
        self._image = Image.new("RGBA", (width, height), fill)
        self._shadow = Image.new("L", (width, height))
        self._pen = ImageDraw.Draw(self._image)
        self._shadow_pen = ImageDraw.Draw(self._shadow)
        self.lights: list[tuple[float, float, float, str]] = []

    def poly(self, points: Sequence[Point], fill: Fill) -> None:
        """A filled polygon."""
        self._pen.polygon(_grid(points), fill)

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: Fill) -> None:
        """A filled rectangle, at least one pixel wide and high; x0 <= x1 and y0 <= y1."""
        left, top = floor(x0 + 0.5), floor(y0 + 0.5)
        right, bottom = floor(x1 + 0.5) - 1, floor(y1 + 0.5) - 1
        self._pen.rectangle((left, top, right if right > left else left, bottom if bottom > top else top), fill)

    def disc(self, x: float, y: float, rx: float, ry: float, fill: Fill) -> None:
        """A filled ellipse."""
        self._pen.ellipse(_bounds(x, y, rx, ry), fill)

    def ring(self, x: float, y: float, rx: float, ry: float, fill: Fill, width: float) -> None:
        """The outline of an ellipse."""
        self._pen.ellipse(_bounds(x, y, rx, ry), None, fill, max(1, _pixel(width)))

    def line(self, points: Sequence[Point], fill: Fill, width: float) -> None:
        """An open line, at least one pixel wide."""
        self._pen.line(_grid(points), fill, max(1, _pixel(width)))

    def shade_disc(self, x: float, y: float, rx: float, ry: float, strength: int = 255) -> None:
        """An elliptic shadow on whatever is flat there."""
        self._shadow_pen.ellipse(_bounds(x, y, rx, ry), strength)

    def shade_poly(self, points: Sequence[Point], strength: int = 255) -> None:
        """A polygonal shadow on whatever is flat there."""
        self._shadow_pen.polygon(_grid(points), strength)

    def layout(
        self, horizon: int | None, ground_depth: NDArray[np.uint8] | None = None, subject: int = -1
    ) -> SceneLayout:
        """Close the drawing; ground_depth (H,) replaces the depth of flat things."""
        packed = np.asarray(self._image)
        thing, material, depth, tone = (np.ascontiguousarray(packed[..., channel]) for channel in range(4))
        if ground_depth is not None:
            depth = np.where(FLAT[thing] > 0, ground_depth[:, None], depth)
        return SceneLayout(thing, material, depth, tone, np.asarray(self._shadow), tuple(self.lights), horizon, subject)
