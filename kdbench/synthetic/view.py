"""A perspective view on a street: metres in, shapes on a canvas out."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, sqrt

import numpy as np
from numpy.typing import NDArray

from kdbench.synthetic.canvas import Canvas, Fill, Point, SceneLayout, fill_of, shaded
from kdbench.synthetic.vocabulary import SKY

NEAR = 4.0  # metres at which depth saturates
FAR = 160.0
_FALL = 0.6  # compresses distance, so that far objects keep distinct depths


def depth_of(z: float) -> int:
    """Distance in metres -> 255 (near) .. 0."""
    return int(255 * (NEAR / max(z, NEAR)) ** _FALL)


def distance_table() -> NDArray[np.float32]:
    """Metres for each depth value, the inverse of depth_of; (256,)."""
    depth = np.maximum(np.arange(256, dtype=np.float32), 18.0)
    return (NEAR * (255.0 / depth) ** (1 / _FALL)).astype(np.float32)


@dataclass(frozen=True)
class Camera:
    """Where the camera stands and what it sees; x is metres to the right of the road's middle."""

    focal: float  # image heights
    horizon: float  # share of the height
    height: float  # metres
    x: float = 0.0
    yaw: float = 0.0  # share of the width
    curve: float = 0.0  # of the road, 1/m
    roll: float = 0.0  # pixels a pixel
    hill: float = 0.0  # of the ground, 1/m: a dip ahead above 0, a crest below


class View:
    """Draws things that stand in the world; z is metres ahead of the camera, y metres above ground."""

    def __init__(self, height: int, width: int, camera: Camera) -> None:
        self.camera = camera
        # Plain attributes: at() runs thousands of times a scene.
        self._x, self._y, self._curve, self._roll = camera.x, camera.height, camera.curve, camera.roll
        self._hill = camera.hill
        # Beyond its crest a hill hides the ground.
        self.crest = min(FAR, sqrt(camera.height / -camera.hill)) if camera.hill < 0 else FAR
        self.f = camera.focal * height
        self.u0 = width * (0.5 + camera.yaw)
        self.v0 = height * camera.horizon
        self.sun = 0.0  # metres of shadow to the right for each metre of height
        self.canvas = Canvas(height, width, fill_of(SKY, "sky", 0))

    def at(self, x: float, y: float, z: float) -> Point:
        """Pixel of a point."""
        f = self.f
        du = f * ((x - self._x) / z + self._curve * z)
        return self.u0 + du, self.v0 + f * ((self._y - y) / z - self._hill * z) + self._roll * du

    def hidden(self, x: float, reach: float, z: float) -> bool:
        """Whether a thing of that reach to either side lies outside the picture or is too far to matter."""
        u, s = self.at(x, 0, z)[0], self.f / z * reach
        # In shares of the picture, so that one scene keeps its content at every size.
        return u + s < 0 or u - s > self.canvas.w or s < 0.005 * self.canvas.h

    def scale(self, z: float) -> float:
        """Pixels a metre."""
        return self.f / z

    def face(self, x0: float, x1: float, y0: float, y1: float, z: float, fill: Fill) -> None:
        """A rectangle that faces the camera."""
        u0, v0 = self.at(x0, y1, z)
        s = self.f / z
        self.canvas.rect(u0, v0, u0 + (x1 - x0) * s, v0 + (y1 - y0) * s, fill)

    def shape(self, points: list[Point], x: float, z: float, fill: Fill) -> None:
        """A polygon of (metres to the right of x, metres up) that faces the camera."""
        self.canvas.poly([self.at(x + dx, y, z) for dx, y in points], fill)

    def flank(self, x: float, y0: float, y1: float, z0: float, z1: float, fill: Fill) -> None:
        """A rectangle along the road."""
        (ua, va), (ub, vb) = self.at(x, y0, z0), self.at(x, y0, z1)
        # Much of a street lies outside the picture; half the corners tell.
        if (ua < -1 and ub < -1) or (ua > self.canvas.w and ub > self.canvas.w):
            return
        self.canvas.poly(((ua, va), self.at(x, y1, z0), self.at(x, y1, z1), (ub, vb)), fill)

    def strip(self, x0: float, x1: float, z0: float, z1: float, fill: Fill) -> None:
        """A piece of ground along the road, bent with it."""
        z1 = min(z1, self.crest)
        if z1 <= z0:
            return
        steps = [z0]
        if self._curve or self._hill:
            while steps[-1] * 1.35 < z1:
                steps.append(steps[-1] * 1.35)
        steps.append(z1)
        edge = [self.at(x0, 0, z) for z in steps] + [self.at(x1, 0, z) for z in reversed(steps)]
        self.canvas.poly(edge, fill)

    def ball(self, x: float, y: float, z: float, rx: float, ry: float, fill: Fill) -> None:
        """An ellipse that faces the camera."""
        u, v = self.at(x, y, z)
        s = self.f / z
        self.canvas.disc(u, v, rx * s, ry * s, fill)

    def hoop(self, x: float, y: float, z: float, r: float, fill: Fill, width: float) -> None:
        """A circle's outline that faces the camera; width in metres."""
        u, v = self.at(x, y, z)
        s = self.f / z
        self.canvas.ring(u, v, r * s, r * s, fill, width * s)

    def stroke(self, points: list[Point], x: float, z: float, fill: Fill, width: float) -> None:
        """A line through (metres to the right of x, metres up), width in metres."""
        self.canvas.line([self.at(x + dx, y, z) for dx, y in points], fill, width * self.f / z)

    def side(self, x0: float, x1: float, z0: float, z1: float) -> float | None:
        """Which side of a box shows: its x, or None where only the face does."""
        if self.at(x0, 0, z1)[0] < self.at(x0, 0, z0)[0]:
            return x0
        if self.at(x1, 0, z1)[0] > self.at(x1, 0, z0)[0]:
            return x1
        return None

    def box(self, x0: float, x1: float, y0: float, y1: float, z0: float, z1: float, fill: Fill) -> None:
        """A cuboid along the road: side in shade, top if seen, face."""
        side = self.side(x0, x1, z0, z1)
        shade = fill[3] & 15
        if self.camera.height > y1:
            corners = [self.at(x, y1, z) for x, z in ((x0, z0), (x1, z0), (x1, z1), (x0, z1))]
            self.canvas.poly(corners, shaded(fill, shade + 2))
        if side is not None:
            self.flank(side, y0, y1, z0, z1, shaded(fill, shade - 2))
        self.face(x0, x1, y0, y1, z0, fill)

    def shadow(self, x0: float, x1: float, z0: float, z1: float) -> None:
        """A shadow on the ground below a thing."""
        (ua, va), (ub, vb) = self.at(x0, 0, z0), self.at(x1, 0, z1)
        height = max(1.0, abs(va - vb) / 2, 0.12 * abs(ub - ua))
        self.canvas.shade_disc((ua + ub) / 2, (va + vb) / 2, abs(ub - ua) / 2 + 1, height)

    def cast(self, x: float, z0: float, z1: float, height: float) -> None:
        """The long shadow of something tall along the road, thrown sideways by the sun."""
        tip, skew = x + self.sun * height, 0.25 * height
        corners = ((x, z0), (x, z1), (tip, z1 + skew), (tip, z0 + skew))
        self.canvas.shade_poly([self.at(a, 0, max(b, 0.8)) for a, b in corners])

    def light(self, x: float, y: float, z: float, radius: float, kind: str) -> None:
        """A light that a night makes visible."""
        u, v = self.at(x, y, z)
        self.canvas.lights.append((u, v, radius * self.f / z, kind))

    def layout(self, subject: int = -1) -> SceneLayout:
        """Close the drawing."""
        h = self.canvas.h
        rise = (np.arange(h) + 0.5 - self.v0) / self.f
        root = np.sqrt(np.maximum(rise * rise + 4 * self._hill * self._y, 0.0))
        z = np.maximum(2 * self._y / np.maximum(rise + root, 2 * self._y / FAR), NEAR)
        ground = (255 * (NEAR / z) ** _FALL).astype(np.uint8)
        return self.canvas.layout(max(1, min(h - 2, floor(self.v0 + 0.5))), ground, subject)
