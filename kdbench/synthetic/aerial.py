"""Scenes from above: streets in a rotated grid, buildings with roofs and shadows, lawns, trees, cars and clutter."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kdbench.synthetic.canvas import Canvas, Fill, Point, Rng, SceneLayout, fill_of, shaded
from kdbench.synthetic.vocabulary import AUTO, CLUTTER, HOUSE, LAWN, SEALED, TREE


@dataclass(frozen=True)
class AerialConfig:
    """What towns of one family are like; lengths in metres."""

    extent: tuple[float, float] = (36, 46)  # of the picture's height
    lot: tuple[float, float] = (19, 26)
    footprint: tuple[float, float] = (0.6, 0.86)  # share of the lot's side
    roof: str = "roof"
    flat: float = 0.5
    trees: float = 4.6  # a lot
    yards: float = 0.14  # lots that are paved
    clutter: float = 0.5  # lots with some


_FEATURES = ("clutter", "cars", "clutter", "trees")
Box = tuple[float, float, float, float]  # x0, y0, x1, y1


def _turn(t: float) -> Point:
    """A unit vector; rational, so that no machine's cos or sin decides a pixel."""
    return (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)


class _Plan:
    """A plan in metres, rotated onto the canvas."""

    def __init__(self, rng: Rng, config: AerialConfig, height: int, width: int) -> None:
        self.rng, self.config = rng, config
        extent = rng.u(*config.extent)
        self.scale = height / extent
        self.cos, self.sin = _turn(rng.u(-0.25, 0.25))
        self.mid = (width / 2, height / 2)
        self.reach = extent * math.sqrt(1 + (width / height) ** 2) / 2 + 4
        lawn = fill_of(LAWN, "grass", 8, rng.i(16))
        self.canvas = Canvas(height, width, lawn)
        x, y = _turn(rng.u(-1, 1))
        length = rng.pick((-0.7, 0.7))
        self.sun = (x * length, y * length)  # shadow a metre of height, pointing away from the light
        self.trees: list[Point] = []

    def at(self, x: float, y: float) -> Point:
        """Pixel of a point."""
        s = self.scale
        return self.mid[0] + s * (x * self.cos - y * self.sin), self.mid[1] + s * (x * self.sin + y * self.cos)

    def sees(self, x: float, y: float, margin: float) -> bool:
        """Whether something of that size could show."""
        u, v = self.at(x, y)
        m = margin * self.scale
        return -m < u < 2 * self.mid[0] + m and -m < v < 2 * self.mid[1] + m

    def quad(self, x0: float, y0: float, x1: float, y1: float, fill: Fill) -> None:
        self.canvas.poly([self.at(x0, y0), self.at(x1, y0), self.at(x1, y1), self.at(x0, y1)], fill)

    def disc(self, x: float, y: float, r: float, fill: Fill) -> None:
        u, v = self.at(x, y)
        self.canvas.disc(u, v, r * self.scale, r * self.scale, fill)

    def cast(self, x0: float, y0: float, x1: float, y1: float, height: float) -> None:
        """The shadow of a box: its footprint swept along the light."""
        dx, dy = self.sun[0] * height * self.scale, self.sun[1] * height * self.scale
        corners = [self.at(x0, y0), self.at(x1, y0), self.at(x1, y1), self.at(x0, y1)]
        outline: list[Point] = []
        for (u0, v0), (u1, v1) in zip(corners, [*corners[1:], corners[0]], strict=True):
            # An edge that faces away from the light moves with the shadow, the others stay.
            away = (v1 - v0) * dx - (u1 - u0) * dy > 0
            outline += [(u0 + dx, v0 + dy), (u1 + dx, v1 + dy)] if away else [(u0, v0), (u1, v1)]
        self.canvas.shade_poly(outline)

    def facing(self, dx: float, dy: float) -> int:
        """Shade of a slope that looks along (dx, dy) in the plan."""
        u, v = dx * self.cos - dy * self.sin, dx * self.sin + dy * self.cos
        return round(10 - 4.5 * (u * self.sun[0] + v * self.sun[1]) / 0.7)


def _road(plan: _Plan, middle: float, half: float, along_x: bool) -> None:
    rng, reach = plan.rng, plan.reach
    asphalt, paving = fill_of(SEALED, "asphalt", 6, rng.i(16)), fill_of(SEALED, "paving", 8, rng.i(16))
    marking = fill_of(SEALED, "marking", 6)
    walk = half + rng.u(1.2, 2.0)

    def band(a: float, b: float, c: float, d: float, fill: Fill) -> None:
        plan.quad(*((c, a, d, b) if along_x else (a, c, b, d)), fill)

    band(middle - walk, middle + walk, -reach, reach, paving)
    band(middle - half, middle + half, -reach, reach, asphalt)
    z = -reach
    while z < reach:
        ends = ((z, middle), (z + 2.4, middle)) if along_x else ((middle, z), (middle, z + 2.4))
        if plan.sees(*ends[0], 3):
            # A line, not a polygon: a filled one swells to two pixels.
            plan.canvas.line([plan.at(*end) for end in ends], marking, 0.3 * plan.scale)
        z += 6
    for side in (-1, 1):
        z = -reach + rng.u(0, 8)
        while z < reach:
            if rng.p(0.14):
                offset = middle + side * (half - 1.2 if rng.p(0.6) else half * 0.42)
                _car(plan, *((z, offset) if along_x else (offset, z)), along_x)
            elif rng.p(0.25):
                plan.trees.append((z, middle + side * walk) if along_x else (middle + side * walk, z))
            z += rng.u(5.6, 10)


def _car(plan: _Plan, x: float, y: float, along_x: bool) -> None:
    rng = plan.rng
    paint, lorry = rng.i(16), rng.p(0.06)
    if not plan.sees(x, y, 5):
        return
    a, b = (3.2, 1.25) if lorry else (2.25, 0.98)

    dx, dy = (a, b) if along_x else (b, a)
    plan.cast(x - dx, y - dy, x + dx, y + dy, 1.5)
    plan.quad(x - dx, y - dy, x + dx, y + dy, fill_of(AUTO, "paint", 40, paint, 11))
    for offset in (0.4 * a, -0.65 * a):
        pane = ((offset, -b * 0.6), (offset, b * 0.6)) if along_x else ((-b * 0.6, offset), (b * 0.6, offset))
        line = [plan.at(x + u, y + v) for u, v in pane]
        plan.canvas.line(line, fill_of(AUTO, "glass", 44, 4), 0.45 * plan.scale)


def _flat_roof(plan: _Plan, x0: float, y0: float, x1: float, y1: float, roof: Fill) -> None:
    """A parapet, and boxes with their shadows."""
    rng, depth, variant = plan.rng, roof[2], roof[3] >> 4
    plan.quad(x0, y0, x1, y1, shaded(roof, 13))
    plan.quad(x0 + 0.5, y0 + 0.5, x1 - 0.5, y1 - 0.5, roof)
    for _ in range(1 + rng.i(4)):
        x, y, s = rng.u(x0 + 1, x1 - 2.2), rng.u(y0 + 1, y1 - 2.2), rng.u(0.8, 1.8)
        plan.quad(x + plan.sun[0], y + plan.sun[1], x + s + 0.4, y + s + 0.4, shaded(roof, 5))
        plan.quad(x, y, x + s, y + s, fill_of(HOUSE, rng.pick(("metal", "metal", "panel")), depth + 5, variant, 11))


def _pitched_roof(plan: _Plan, x0: float, y0: float, x1: float, y1: float, roof: Fill, along: bool, hip: float) -> None:
    """Two slopes, lit by where they face, and two more at the ends where hip is above zero."""
    xm, ym = (x0 + x1) / 2, (y0 + y1) / 2
    if along:
        plan.quad(x0, y0, x1, ym, shaded(roof, plan.facing(0, -1)))
        plan.quad(x0, ym, x1, y1, shaded(roof, plan.facing(0, 1)))
        ends, a, middle = ((x0, 1), (x1, -1)), (y0, y1), ym
    else:
        plan.quad(x0, y0, xm, y1, shaded(roof, plan.facing(-1, 0)))
        plan.quad(xm, y0, x1, y1, shaded(roof, plan.facing(1, 0)))
        ends, a, middle = ((y0, 1), (y1, -1)), (x0, x1), xm
    ridge: list[Point] = []
    for end, sign in ends:
        tip = (end + sign * hip, middle)
        if hip > 0:
            shade = plan.facing(-sign, 0) if along else plan.facing(0, -sign)
            triangle = [(end, a[0]), (end, a[1]), tip]
            plan.canvas.poly([plan.at(*(p if along else p[::-1])) for p in triangle], shaded(roof, shade))
        ridge.append(plan.at(*(tip if along else tip[::-1])))
    plan.canvas.line(ridge, shaded(roof, 13), 0.3 * plan.scale)


def _wing(x0: float, y0: float, x1: float, y1: float, along: bool, far: bool, near: bool) -> tuple[Box, Box]:
    """An L: the main body along the longer side, and a wing at one of its ends."""
    w, d = x1 - x0, y1 - y0
    if along:
        cut = y0 + 0.55 * d
        wing = (x1 - 0.42 * w, y0, x1, y1) if far else (x0, y0, x0 + 0.42 * w, y1)
        main = (x0, y0, x1, cut) if near else (x0, y0 + y1 - cut, x1, y1)
        middle = (main[1] + main[3]) / 2
        return main, (wing[0], middle if near else y0, wing[2], y1 if near else middle)
    main, wing = _wing(y0, x0, y1, x1, True, far, near)
    return (main[1], main[0], main[3], main[2]), (wing[1], wing[0], wing[3], wing[2])


def _building(plan: _Plan, x0: float, y0: float, x1: float, y1: float) -> None:
    rng, config = plan.rng, plan.config
    variant, height, flat, along = rng.i(16), rng.u(4, 9), rng.p(config.flat), x1 - x0 > y1 - y0
    depth = min(250, 70 + round(height * 16))
    roof = fill_of(HOUSE, config.roof, depth, variant)
    side = min(x1 - x0, y1 - y0)
    hip = rng.u(0.3, 0.5) * side if rng.p(0.45) else 0.0
    bodies: tuple[Box, ...] = ((x0, y0, x1, y1),)
    if side > 8 and rng.p(0.35):
        bodies = _wing(x0, y0, x1, y1, along, rng.p(0.5), rng.p(0.5))
        hip = 0.0
    for body in bodies:
        plan.cast(*body, height)
    for k, body in enumerate(bodies):
        if flat:
            _flat_roof(plan, *body, roof)
        else:
            _pitched_roof(plan, *body, roof, along if k == 0 else not along, hip)
    if flat:
        return
    x, y, right, low = bodies[0]
    if rng.p(0.2):
        plan.quad(
            x + 1, y + 0.8, x + 1 + (right - x) * 0.35, y + 0.8 + (low - y) * 0.22, fill_of(HOUSE, "panel", depth, 8)
        )
    xm, ym = (x + right) / 2, (y + low) / 2
    plan.quad(xm + 1, ym + 0.4, xm + 1.8, ym + 1.1, fill_of(HOUSE, "metal", depth + 5, 2, 6))


def _tree(plan: _Plan, x: float, y: float) -> None:
    rng = plan.rng
    r, variant, material = rng.u(1.5, 3.6), rng.i(16), "needle" if rng.p(0.2) else "leaf"
    if not plan.sees(x, y, r + 4):
        return
    depth = min(255, 60 + round(r * 34))
    u, v = plan.at(x, y)
    s, h = plan.scale, r * 1.5
    plan.canvas.shade_disc(u + plan.sun[0] * h * s, v + plan.sun[1] * h * s, r * s, r * s)
    plan.disc(x, y, r, fill_of(TREE, material, depth, variant, 7))
    for k, (share, shade) in enumerate(((0.72, 9), (0.42, 12))):
        off = r * (0.18 + 0.2 * k) * s / 0.7
        plan.canvas.disc(u - plan.sun[0] * off, v - plan.sun[1] * off, r * share * s, r * share * s,
                         fill_of(TREE, material, depth + 10 * (k + 1), variant, shade))  # fmt: skip


def _pond(plan: _Plan, x: float, y: float) -> None:
    water = fill_of(CLUTTER, "water", 4, plan.rng.i(16))
    for k in range(3):
        plan.disc(x + 1.4 * (k - 1), y + plan.rng.u(-1, 1), plan.rng.u(1.8, 3.2), water)


def _rubble(plan: _Plan, x: float, y: float) -> None:
    rng = plan.rng
    plan.quad(x - 4, y - 3, x + 4, y + 3, fill_of(CLUTTER, "rubble", 8, rng.i(16)))
    for _ in range(5):
        heap = fill_of(CLUTTER, "rubble", 20, rng.i(16), rng.pick((6, 8, 12, 13)))
        plan.disc(x + rng.u(-3, 3), y + rng.u(-2, 2), rng.u(0.8, 1.7), heap)


def _pool(plan: _Plan, x: float, y: float) -> None:
    a, b = plan.rng.u(2.6, 4.5), plan.rng.u(1.8, 2.8)
    plan.quad(x - a, y - b, x + a, y + b, fill_of(CLUTTER, "kerb", 12, 0, 13))
    plan.quad(x - a + 0.6, y - b + 0.6, x + a - 0.6, y + b - 0.6, fill_of(CLUTTER, "pool", 6, plan.rng.i(16)))


def _containers(plan: _Plan, x: float, y: float) -> None:
    rng = plan.rng
    for k in range(2 + rng.i(3)):
        yk = y + 2.7 * (k - 1.5)
        plan.cast(x - 3, yk - 1.2, x + 3, yk + 1.2, 2.4)
        plan.quad(x - 3, yk - 1.2, x + 3, yk + 1.2, fill_of(CLUTTER, "transit", 70, rng.i(16)))


def _court(plan: _Plan, x: float, y: float) -> None:
    a, b = 6.5, 3.6
    line = fill_of(CLUTTER, "marking", 4)
    plan.quad(x - a, y - b, x + a, y + b, fill_of(CLUTTER, "court", 4, plan.rng.i(16)))
    a, b = a - 1, b - 0.8
    corners = [plan.at(x - a, y - b), plan.at(x + a, y - b), plan.at(x + a, y + b), plan.at(x - a, y + b)]
    plan.canvas.line([*corners, corners[0]], line, 0.2 * plan.scale)
    plan.canvas.line([plan.at(x, y - b), plan.at(x, y + b)], line, 0.2 * plan.scale)


_CLUTTER = (_pond, _rubble, _pool, _containers, _court)


def _surface(plan: _Plan, x0: float, y0: float, x1: float, y1: float) -> bool:
    """What covers a lot; whether it is paved."""
    rng = plan.rng
    if rng.p(plan.config.yards):
        material = "asphalt" if rng.p(0.4) else "paving"
        plan.quad(x0, y0, x1, y1, fill_of(SEALED, material, 7, rng.i(16)))
        return True
    if rng.p(0.25):
        plan.quad(x0, y0, x1, y1, fill_of(LAWN, "soil", 7, rng.i(16)))
    elif rng.p(0.5):
        plan.quad(x0, y0, x1, y1, fill_of(LAWN, "grass", 8, rng.i(16)))
    if rng.p(0.5):
        x = x0 + (x1 - x0) * rng.u(0.2, 0.5)
        plan.quad(x, y0, x + rng.u(2, 4), y1, fill_of(SEALED, "paving", 7, rng.i(16)))
    return False


def _car_park(plan: _Plan, x0: float, y0: float, x1: float, y1: float) -> None:
    rng = plan.rng
    plan.quad(x0, y0, x1, y1, fill_of(SEALED, "asphalt", 7, rng.i(16)))
    for row in range(max(1, int((y1 - y0) // 7))):
        for k in range(int((x1 - x0 - 2) // 2.9)):
            if rng.p(0.38):
                _car(plan, x0 + 2.2 + 2.9 * k, y0 + 3.4 + 6.6 * row, False)


def _lot(plan: _Plan, x0: float, y0: float, x1: float, y1: float, feature: str) -> None:
    rng, config = plan.rng, plan.config
    w, d, use = x1 - x0, y1 - y0, rng.u()
    paved = _surface(plan, x0, y0, x1, y1)
    if use > 0.96 or feature == "cars":
        _car_park(plan, x0, y0, x1, y1)
        return
    cluttered = feature == "clutter" or rng.p(config.clutter)
    xc, yc = x0 + (0.2 if rng.p(0.5) else 0.8) * w, rng.u(y0 + 0.25 * d, y1 - 0.25 * d)
    clutter = rng.pick(_CLUTTER)
    built = use < 0.84
    if built:
        a, b = w * rng.u(*config.footprint), d * rng.u(*config.footprint)
        xb, yb = x0 + rng.u(0.1, 0.9) * (w - a), y0 + rng.u(0.1, 0.9) * (d - b)
        _building(plan, xb, yb, xb + a, yb + b)
        # Away from the house, which would hide it.
        if cluttered:
            xc = x0 + 2 if xb - x0 > x1 - xb - a else x1 - 2
    if cluttered:
        clutter(plan, xc, yc)
    if paved and rng.p(0.6):
        _car(plan, x0 + 2.2, rng.u(y0 + 3, y1 - 3), False)
    rich = 4 if feature == "trees" else 0
    for _ in range(rich + int(rng.u(0, 2 * config.trees + 1))):
        # Along the borders, or crowns would hide most roofs.
        edge, free = rng.pick((0.05, 0.95)), rng.u()
        share = (edge, free) if rng.p(0.5) else (free, edge)
        plan.trees.append((x0 + w * share[0], y0 + d * share[1]))


def _lots(plan: _Plan, row: float, column: float, half: float, cross: bool) -> list[Box]:
    """The lots beside the streets, the one nearest to the middle first."""
    rng, config = plan.rng, plan.config
    lots: list[Box] = []
    margin = half + 2.0
    for side in (-1, 1):
        for flank in (-1, 1):
            y = margin
            while y < plan.reach + abs(row):
                d = rng.u(*config.lot)
                x = margin if cross else (0.0 if flank > 0 else rng.u(0, 6))
                while x < plan.reach + abs(column):
                    w = rng.u(*config.lot)
                    xs = sorted((column + flank * x, column + flank * (x + w)))
                    ys = sorted((row + side * y, row + side * (y + d)))
                    lots.append((xs[0], ys[0], xs[1], ys[1]))
                    x += w
                y += d
    lots = [lot for lot in lots if plan.sees((lot[0] + lot[2]) / 2, (lot[1] + lot[3]) / 2, 0.7 * config.lot[1])]
    return sorted(lots, key=lambda lot: abs(lot[0] + lot[2]) + abs(lot[1] + lot[3]))


def aerial(rng: Rng, config: AerialConfig, index: int, height: int, width: int) -> SceneLayout:
    """A scene from above; index decides what the middle lot shows for certain."""
    plan = _Plan(rng, config, height, width)
    half, cross = rng.u(2.6, 3.6), rng.p(0.5)
    row, column = rng.u(-0.4, 0.4) * plan.reach, rng.u(-0.45, 0.45) * plan.reach
    lots = _lots(plan, row, column, half, cross)
    if cross:
        _road(plan, column, half * 0.85, False)
    _road(plan, row, half, True)
    for rank, lot in enumerate(lots):
        _lot(plan, *lot, _FEATURES[index % len(_FEATURES)] if rank == 0 else "")
    # Last, because a crown hangs over its neighbours' roofs and paving.
    for tree in plan.trees:
        _tree(plan, *tree)
    return plan.canvas.layout(None)
