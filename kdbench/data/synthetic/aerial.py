"""Scenes from above: streets in a rotated grid, buildings with roofs and shadows, lawns, trees, cars and clutter."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kdbench.data.synthetic.canvas import Canvas, Dice, Ink, Layout, Point, ink, toned
from kdbench.data.synthetic.things import AUTO, CLUTTER, HOUSE, LAWN, SEALED, TREE


@dataclass(frozen=True)
class Town:
    """What towns of one family are like; lengths in metres."""

    extent: tuple[float, float] = (36, 46)  # of the picture's height
    lot: tuple[float, float] = (19, 26)
    footprint: tuple[float, float] = (0.5, 0.78)  # share of the lot's side
    roof: str = "roof"
    flat: float = 0.5
    trees: float = 2.2  # a lot
    yards: float = 0.27  # lots that are paved


_FEATURES = ("clutter", "cars", "clutter", "trees")


class _Plan:
    """A plan in metres, rotated onto the canvas."""

    def __init__(self, dice: Dice, town: Town, height: int, width: int) -> None:
        self.dice, self.town = dice, town
        extent = dice.u(*town.extent)
        self.scale, angle = height / extent, dice.u(-0.5, 0.5)
        self.cos, self.sin = math.cos(angle), math.sin(angle)
        self.mid = (width / 2, height / 2)
        self.reach = math.hypot(extent, extent * width / height) / 2 + 4
        lawn = ink(LAWN, "grass", 8, dice.i(16))
        self.canvas = Canvas(height, width, lawn)
        sun = dice.u(0, 2 * math.pi)
        self.sun = (math.cos(sun) * 0.75, math.sin(sun) * 0.75)  # shadow length a metre of height

    def at(self, x: float, y: float) -> Point:
        """Pixel of a point."""
        s = self.scale
        return self.mid[0] + s * (x * self.cos - y * self.sin), self.mid[1] + s * (x * self.sin + y * self.cos)

    def sees(self, x: float, y: float, margin: float) -> bool:
        """Whether something of that size could show."""
        u, v = self.at(x, y)
        m = margin * self.scale
        return -m < u < 2 * self.mid[0] + m and -m < v < 2 * self.mid[1] + m

    def quad(self, x0: float, y0: float, x1: float, y1: float, fill: Ink) -> None:
        self.canvas.poly([self.at(x0, y0), self.at(x1, y0), self.at(x1, y1), self.at(x0, y1)], fill)

    def disc(self, x: float, y: float, r: float, fill: Ink) -> None:
        u, v = self.at(x, y)
        self.canvas.disc(u, v, r * self.scale, r * self.scale, fill)

    def cast(self, x0: float, y0: float, x1: float, y1: float, height: float) -> None:
        """The shadow of a box: its footprint swept along the light."""
        dx, dy = self.sun[0] * height * self.scale, self.sun[1] * height * self.scale
        corners = [self.at(x0, y0), self.at(x1, y0), self.at(x1, y1), self.at(x0, y1)]
        moved = [(u + dx, v + dy) for u, v in corners]
        self.canvas.shade_poly(moved)
        for k in range(4):
            a, b = k, (k + 1) % 4
            self.canvas.shade_poly([corners[a], corners[b], moved[b], moved[a]])

    def facing(self, dx: float, dy: float) -> int:
        """Shade of a slope that looks along (dx, dy) in the plan."""
        u, v = dx * self.cos - dy * self.sin, dx * self.sin + dy * self.cos
        return round(10 - 4.5 * (u * self.sun[0] + v * self.sun[1]) / 0.75)


def _road(plan: _Plan, middle: float, half: float, along_x: bool) -> None:
    dice, reach = plan.dice, plan.reach
    asphalt, paving = ink(SEALED, "asphalt", 6, dice.i(16)), ink(SEALED, "paving", 8, dice.i(16))
    marking = ink(SEALED, "marking", 6)
    walk = half + dice.u(1.6, 2.6)

    def band(a: float, b: float, c: float, d: float, fill: Ink) -> None:
        plan.quad(*((c, a, d, b) if along_x else (a, c, b, d)), fill)

    band(middle - walk, middle + walk, -reach, reach, paving)
    band(middle - half, middle + half, -reach, reach, asphalt)
    z = -reach
    while z < reach:
        ends = ((z, middle), (z + 2.4, middle)) if along_x else ((middle, z), (middle, z + 2.4))
        # A line, not a polygon: a filled one swells to two pixels.
        plan.canvas.line([plan.at(*end) for end in ends], marking, 0.3 * plan.scale)
        z += 6
    for side in (-1, 1):
        z = -reach + dice.u(0, 8)
        while z < reach:
            if dice.p(0.3):
                offset = middle + side * (half - 1.2 if dice.p(0.6) else half * 0.42)
                _car(plan, *((z, offset) if along_x else (offset, z)), along_x)
            z += dice.u(5.6, 10)


def _car(plan: _Plan, x: float, y: float, along_x: bool) -> None:
    dice = plan.dice
    paint, lorry = dice.i(16), dice.p(0.06)
    if not plan.sees(x, y, 5):
        return
    a, b = (3.2, 1.25) if lorry else (2.25, 0.98)

    dx, dy = (a, b) if along_x else (b, a)
    plan.cast(x - dx, y - dy, x + dx, y + dy, 1.5)
    plan.quad(x - dx, y - dy, x + dx, y + dy, ink(AUTO, "paint", 40, paint, 11))
    for offset in (0.4 * a, -0.65 * a):
        pane = ((offset, -b * 0.6), (offset, b * 0.6)) if along_x else ((-b * 0.6, offset), (b * 0.6, offset))
        line = [plan.at(x + u, y + v) for u, v in pane]
        plan.canvas.line(line, ink(AUTO, "glass", 44, 4), 0.45 * plan.scale)


def _building(plan: _Plan, x0: float, y0: float, x1: float, y1: float) -> None:
    dice, town = plan.dice, plan.town
    variant, height, flat, along = dice.i(16), dice.u(4, 11), dice.p(town.flat), x1 - x0 > y1 - y0
    depth = min(255, 70 + round(height * 14))
    plan.cast(x0, y0, x1, y1, height)
    roof = ink(HOUSE, town.roof, depth, variant)
    if flat:
        plan.quad(x0, y0, x1, y1, toned(roof, 13))
        plan.quad(x0 + 0.5, y0 + 0.5, x1 - 0.5, y1 - 0.5, roof)
        for _ in range(1 + dice.i(4)):
            x, y, s = dice.u(x0 + 1, x1 - 2.2), dice.u(y0 + 1, y1 - 2.2), dice.u(0.8, 1.8)
            plan.quad(x + plan.sun[0], y + plan.sun[1], x + s + 0.4, y + s + 0.4, toned(roof, 5))
            plan.quad(x, y, x + s, y + s, ink(HOUSE, dice.pick(("metal", "metal", "panel")), depth + 5, variant, 11))
        return
    xm, ym = (x0 + x1) / 2, (y0 + y1) / 2
    hip = dice.u(0, 0.45) * min(x1 - x0, y1 - y0) if dice.p(0.5) else 0.0
    if along:
        plan.quad(x0, y0, x1, ym, toned(roof, plan.facing(0, -1)))
        plan.quad(x0, ym, x1, y1, toned(roof, plan.facing(0, 1)))
        ends, a, b = ((x0, 1), (x1, -1)), (y0, y1), (xm, ym)
    else:
        plan.quad(x0, y0, xm, y1, toned(roof, plan.facing(-1, 0)))
        plan.quad(xm, y0, x1, y1, toned(roof, plan.facing(1, 0)))
        ends, a, b = ((y0, 1), (y1, -1)), (x0, x1), (ym, xm)
    ridge: list[Point] = []
    for end, sign in ends:
        tip = (end + sign * hip, b[1])
        triangle = [(end, a[0]), (end, a[1]), tip]
        if hip > 0.8:
            shade = plan.facing(-sign, 0) if along else plan.facing(0, -sign)
            plan.canvas.poly([plan.at(*(p if along else p[::-1])) for p in triangle], toned(roof, shade))
        ridge.append(plan.at(*(tip if along else tip[::-1])))
    plan.canvas.line(ridge, toned(roof, 15), 0.3 * plan.scale)
    if dice.p(0.25):
        px, py = (x0 + 1, y0 + 0.8)
        plan.quad(px, py, px + (x1 - x0) * 0.4, py + (y1 - y0) * 0.28, ink(HOUSE, "panel", depth, variant))
    plan.quad(xm + 1, ym + 0.4, xm + 1.8, ym + 1.1, ink(HOUSE, "metal", depth + 8, 2, 6))


def _tree(plan: _Plan, x: float, y: float) -> None:
    dice = plan.dice
    r, variant, look = dice.u(1.5, 3.6), dice.i(16), "needle" if dice.p(0.2) else "leaf"
    if not plan.sees(x, y, r + 4):
        return
    depth = min(255, 60 + round(r * 34))
    u, v = plan.at(x, y)
    s, h = plan.scale, r * 1.5
    plan.canvas.shade_disc(u + plan.sun[0] * h * s, v + plan.sun[1] * h * s, r * s, r * s)
    plan.disc(x, y, r, ink(TREE, look, depth, variant, 6))
    for k, (share, shade) in enumerate(((0.72, 9), (0.42, 12))):
        off = r * (0.18 + 0.2 * k) * s / 0.75
        plan.canvas.disc(u - plan.sun[0] * off, v - plan.sun[1] * off, r * share * s, r * share * s,
                         ink(TREE, look, depth + 10 * (k + 1), variant, shade))  # fmt: skip


def _clutter(plan: _Plan, x: float, y: float) -> None:
    dice, kind = plan.dice, plan.dice.i(4)
    if kind == 0:
        plan.disc(x, y, dice.u(2.5, 4.0), ink(CLUTTER, "water", 4, dice.i(16)))
    elif kind == 1:
        for _ in range(4):
            heap = ink(CLUTTER, "rubble", 20, dice.i(16), dice.pick((8, 11)))
            plan.disc(x + dice.u(-1.8, 1.8), y + dice.u(-1.8, 1.8), dice.u(0.9, 2.0), heap)
    elif kind == 2:
        a, b = dice.u(2.2, 4.5), dice.u(1.6, 2.6)
        plan.cast(x - a, y - b, x + a, y + b, 0.4)
        plan.quad(x - a, y - b, x + a, y + b, ink(CLUTTER, "paving", 12, 0, 15))
        plan.quad(x - a + 0.4, y - b + 0.4, x + a - 0.4, y + b - 0.4, ink(CLUTTER, "water", 6, 14, 13))
    else:
        for k in range(2 + dice.i(4)):
            xk = x + 1.9 * k
            plan.cast(xk - 0.7, y - 0.7, xk + 0.7, y + 0.7, 1.3)
            plan.quad(xk - 0.75, y - 0.8, xk + 0.75, y + 0.8, ink(CLUTTER, "plain", 34, dice.i(16)))


def _surface(plan: _Plan, x0: float, y0: float, x1: float, y1: float) -> bool:
    """What covers a lot; whether it is paved."""
    dice = plan.dice
    if dice.p(plan.town.yards):
        look = "asphalt" if dice.p(0.4) else "paving"
        plan.quad(x0, y0, x1, y1, ink(SEALED, look, 7, dice.i(16)))
        return True
    if dice.p(0.6):
        x = x0 + (x1 - x0) * dice.u(0.2, 0.5)
        plan.quad(x, y0, x + dice.u(2, 4), y1, ink(SEALED, "paving", 7, dice.i(16)))
    elif dice.p(0.25):
        plan.quad(x0, y0, x1, y1, ink(LAWN, "soil", 7, dice.i(16)))
    return False


def _car_park(plan: _Plan, x0: float, y0: float, x1: float, y1: float) -> None:
    dice = plan.dice
    plan.quad(x0, y0, x1, y1, ink(SEALED, "asphalt", 7, dice.i(16)))
    for row in range(max(1, int((y1 - y0) // 7))):
        for k in range(int((x1 - x0 - 2) // 2.9)):
            if dice.p(0.55):
                _car(plan, x0 + 2.2 + 2.9 * k, y0 + 3.4 + 6.6 * row, False)


def _lot(plan: _Plan, x0: float, y0: float, x1: float, y1: float, feature: str) -> None:
    dice, town = plan.dice, plan.town
    w, d, use = x1 - x0, y1 - y0, dice.u()
    paved = _surface(plan, x0, y0, x1, y1)
    if use > 0.95 or feature == "cars":
        _car_park(plan, x0, y0, x1, y1)
        return
    if feature == "clutter" or dice.p(0.2):
        x = x0 + (0.12 if dice.p(0.5) else 0.85) * w
        _clutter(plan, x, dice.u(y0 + 0.25 * d, y1 - 0.25 * d))
    if use < 0.82:
        a, b = w * dice.u(*town.footprint), d * dice.u(*town.footprint)
        xb, yb = x0 + dice.u(0.1, 0.9) * (w - a), y0 + dice.u(0.1, 0.9) * (d - b)
        _building(plan, xb, yb, xb + a, yb + b)
        if dice.p(0.3):
            _building(plan, xb + a * 0.6, yb + b * 0.7, min(x1, xb + a * 0.95), min(y1, yb + b * 1.25))
    if paved and dice.p(0.7):
        _car(plan, x0 + 2.2, dice.u(y0 + 3, y1 - 3), False)
    rich = 4 if feature == "trees" else 0
    for _ in range(rich + int(dice.u(0, 2 * town.trees + 1))):
        _tree(plan, x0 + w * dice.pick((0.08, 0.92, dice.u())), y0 + d * dice.pick((0.08, 0.92, dice.u())))


def aerial(dice: Dice, town: Town, index: int, height: int, width: int) -> Layout:
    """A scene from above; index decides what the middle lot shows for certain."""
    plan = _Plan(dice, town, height, width)
    half, cross = dice.u(3.2, 5.0), dice.p(0.6)
    row, column = dice.u(-0.3, 0.3) * plan.reach, dice.u(-0.4, 0.4) * plan.reach
    lots: list[tuple[float, float, float, float]] = []
    for side in (-1, 1):
        for flank in (-1, 1):
            y = half + 2.6
            while y < plan.reach + abs(row):
                d = dice.u(*town.lot)
                x = (half + 2.6) if cross else (0.0 if flank > 0 else dice.u(0, 6))
                while x < plan.reach + abs(column):
                    w = dice.u(*town.lot)
                    xs = sorted((column + flank * x, column + flank * (x + w)))
                    ys = sorted((row + side * y, row + side * (y + d)))
                    lots.append((xs[0], ys[0], xs[1], ys[1]))
                    x += w
                y += d
    if cross:
        _road(plan, column, half * 0.85, False)
    _road(plan, row, half, True)
    lots = [lot for lot in lots if plan.sees((lot[0] + lot[2]) / 2, (lot[1] + lot[3]) / 2, 0.7 * town.lot[1])]
    lots.sort(key=lambda lot: abs(lot[0] + lot[2]) + abs(lot[1] + lot[3]))
    for rank, lot in enumerate(lots):
        _lot(plan, *lot, _FEATURES[index % len(_FEATURES)] if rank == 0 else "")
    return plan.canvas.layout(None)
