"""Vehicles and what moves on two wheels or legs, drawn into a view; x is the middle, z the near end."""

from __future__ import annotations

from typing import NamedTuple

from kdbench.synthetic.canvas import Fill, Rng, fill_of, shaded
from kdbench.synthetic.view import View, depth_of
from kdbench.synthetic.vocabulary import BICYCLE, BUS, CAR, MOTORCYCLE, PERSON, RIDER, TRAIN, TRUCK


def _wheels(view: View, thing: int, x0: float, x1: float, z0: float, z1: float, r: float, depth: int) -> None:
    tyre = fill_of(thing, "tyre", depth)
    side = view.side(x0, x1, z0, z1)
    if side is not None:
        for z in (z0 + (z1 - z0) * 0.82, z0 + (z1 - z0) * 0.2):
            ua, ub = view.at(side, 0, z - r)[0], view.at(side, 0, z + r)[0]
            v = view.at(side, r, z)[1]
            view.canvas.disc((ua + ub) / 2, v, max(0.8, abs(ub - ua) / 2), r * view.scale(z), tyre)
    for x in (x0, x1 - 0.25):
        view.face(x, x + 0.25, 0, r, z0, tyre)


def _lamps(view: View, thing: int, x0: float, x1: float, y: float, z: float, oncoming: bool, depth: int) -> None:
    kind = "head" if oncoming else "tail"
    for x in (x0 + 0.22, x1 - 0.22):
        view.face(x - 0.2, x + 0.2, y - 0.1, y + 0.12, z, fill_of(thing, kind, depth))
        view.light(x, y, z, 0.9 if oncoming else 0.45, kind)


class _Body(NamedTuple):
    """A car's profile from tail to nose, metres."""

    length: float
    width: float
    belt: float
    roof: float
    tail: float  # of the cabin
    nose: float
    hull: tuple[tuple[float, float], ...]  # seen from the side, nose to the left


_BODIES = (
    _Body(4.6, 1.8, 0.86, 1.42, 1.0, 3.4, (
        (-2.2, 0.3), (-2.25, 0.75), (-1.1, 0.92), (-0.5, 1.42), (0.75, 1.42), (1.4, 0.95), (2.2, 0.9), (2.25, 0.3))),
    _Body(3.8, 1.75, 0.92, 1.5, 0.1, 2.9, (
        (-1.9, 0.3), (-1.95, 0.75), (-1.0, 0.95), (-0.45, 1.5), (1.5, 1.5), (1.85, 0.95), (1.9, 0.3))),
    _Body(4.5, 1.95, 1.1, 1.8, 0.12, 3.4, (
        (-2.2, 0.4), (-2.25, 1.05), (-1.15, 1.15), (-0.7, 1.8), (2.05, 1.8), (2.2, 1.1), (2.2, 0.4))),
    _Body(4.9, 1.95, 1.2, 2.15, 0.04, 4.4, (
        (-2.4, 0.35), (-2.4, 1.0), (-1.9, 1.25), (-1.4, 2.15), (2.35, 2.15), (2.4, 0.35))),
)  # fmt: skip


def car(view: View, rng: Rng, x: float, z: float, oncoming: bool = False) -> None:
    """A car seen from behind or from ahead, with the side that shows."""
    if view.hidden(x, 3.0, z):
        return
    depth, paint = depth_of(z), rng.i(16)
    length, width, belt, roof, tail, nose, _ = _BODIES[rng.pick((0, 0, 1, 1, 2, 3))]
    start, end = (length - nose, length - tail) if oncoming else (tail, nose)
    x0, x1, z1 = x - width / 2, x + width / 2, z + length
    body, glass = fill_of(CAR, "paint", depth, paint), fill_of(CAR, "glass", depth, rng.i(16))
    view.shadow(x0 - 0.2, x1 + 0.2, z, z1)
    view.face(x0 + 0.1, x1 - 0.1, 0.1, 0.4, z, fill_of(CAR, "tyre", depth))
    if z > 42:
        view.face(x0, x1, 0.28, roof, z, body)
        view.face(x0 + 0.25, x1 - 0.25, belt, roof - 0.1, z, glass)
        view.light(x, 0.7, z, 0.8 if oncoming else 0.4, "head" if oncoming else "tail")
        return
    view.box(x0, x1, 0.28, belt, z, z1, body)
    ca, cb, za, zb = x0 + 0.14, x1 - 0.14, z + start, z + end
    side = view.side(ca, cb, za, zb)
    if side is not None:
        view.flank(side, belt, roof, za, zb, shaded(glass, 8))
        view.flank(side, belt, roof, za + (zb - za) * 0.46, za + (zb - za) * 0.54, shaded(body, 8))
        view.flank(side, roof - 0.1, roof, za, zb, shaded(body, 9))
    inset = 0.16
    window = [(ca - x, belt), (cb - x, belt), (cb - x - inset, roof), (ca - x + inset, roof)]
    view.shape(window, x, za, shaded(body, 11))
    pane = [(a * 0.84, y) for a, y in zip((ca - x, cb - x, cb - x - inset, ca - x + inset),
                                          (belt, belt, roof - 0.12, roof - 0.12), strict=True)]  # fmt: skip
    view.shape(pane, x, za, glass)
    _wheels(view, CAR, x0, x1, z, z1, 0.33, depth)
    _lamps(view, CAR, x0, x1, 0.7, z, oncoming, depth)
    view.face(x - 0.26, x + 0.26, 0.42, 0.56, z, fill_of(CAR, "marking", depth))


def car_side(view: View, rng: Rng, x: float, z: float) -> None:
    """A car across the view, as at a junction."""
    depth, sign = depth_of(z), rng.pick((-1.0, 1.0))
    body, glass, tyre = (
        fill_of(CAR, "paint", depth, rng.i(16)),
        fill_of(CAR, "glass", depth),
        fill_of(CAR, "tyre", depth),
    )
    shape = rng.pick(_BODIES)
    belt, roof, hull = shape.belt, shape.roof, shape.hull
    # The roof's two ends bound the windows.
    left, right = sorted(dx for dx, y in hull if y == roof)
    view.shadow(x - 2.3, x + 2.3, z, z + 1.6)
    view.shape([(sign * dx, y) for dx, y in hull], x, z, body)
    middle, top = (left + right) / 2, roof - 0.12
    front = [(left - 0.35, belt), (left + 0.05, top), (middle - 0.08, top), (middle - 0.08, belt)]
    back = [(middle + 0.08, belt), (middle + 0.08, top), (right - 0.1, top), (right + 0.1, belt)]
    for pane in (front, back):
        view.shape([(sign * dx, y) for dx, y in pane], x, z, glass)
    for dx in (-1.35, 1.35):
        view.ball(x + dx, 0.34, z, 0.36, 0.36, tyre)
        view.ball(x + dx, 0.34, z, 0.16, 0.16, fill_of(CAR, "metal", depth))


def bus(view: View, rng: Rng, x: float, z: float, oncoming: bool = False) -> None:
    """A bus: a tall box with bands of windows, on one deck or two."""
    depth, paint = depth_of(z), fill_of(BUS, "transit", depth_of(z), rng.i(16))
    double, length = rng.p(0.35), rng.u(9, 12)
    top = 4.2 if double else 3.05
    _coach(view, BUS, x, z, 2.5, length, top, paint, 6, low=2.7 if double else 1.4)
    glass = fill_of(BUS, "glass", depth, 4)
    view.face(x - 1.1, x + 1.1, 1.15 if oncoming else 1.6, 2.45, z, glass)
    view.face(x - 0.8, x + 0.8, 2.6, 2.9, z, fill_of(BUS, "sign-yellow", depth))
    if double:
        view.face(x - 1.1, x + 1.1, 3.05, 3.95, z, glass)
        side = view.side(x - 1.25, x + 1.25, z, z + length)
        if side is not None:
            view.flank(side, 1.3, 2.2, z + 0.4, z + length - 0.4, fill_of(BUS, "glass", depth, 5, 8))
    _wheels(view, BUS, x - 1.25, x + 1.25, z, z + 9, 0.48, depth)
    _lamps(view, BUS, x - 1.25, x + 1.25, 0.7, z, oncoming, depth)


def train(view: View, rng: Rng, x: float, z: float) -> None:
    """A tram, or a taller train with a raked nose: several cars, a light stripe, a pantograph and no tyres."""
    depth = depth_of(z)
    paint = fill_of(TRAIN, "transit", depth, rng.i(16))
    tram, length = rng.p(0.5), rng.u(26, 38)
    top = 3.4 if tram else 3.9
    for k in reversed(range(3)):
        view.box(x - 0.9, x + 0.9, 0.4, top - 0.5, z + length * k / 3, z + length * (k + 1) / 3, shaded(paint, 1))
        _coach(view, TRAIN, x, z + length * k / 3, 2.6, length / 3 - 0.8, top, paint, 4, stripe="cargo")
    for mast in (0.25 * length + 8, 1.5):
        arm = [(-0.7, top + 0.2), (0.5, top + 0.8), (-0.7, top + 1.4)]
        view.stroke(arm, x, z + mast, fill_of(TRAIN, "metal", depth, 2, 6), 0.12)
        view.face(x - 0.9, x + 0.9, top + 1.36, top + 1.48, z + mast, fill_of(TRAIN, "metal", depth, 2, 5))
    view.face(x - 1.3, x + 1.3, 0.2, 0.55, z, fill_of(TRAIN, "tyre", depth))
    glass = fill_of(TRAIN, "glass", depth, 3)
    if tram:
        view.face(x - 1.1, x + 1.1, 1.5, 2.9, z, glass)
    else:
        for dx in (-0.58, 0.58):
            view.face(x + dx - 0.5, x + dx + 0.5, 1.8, 2.8, z, glass)
        view.face(x - 1.3, x + 1.3, 0.55, 1.05, z, fill_of(TRAIN, "sign-yellow", depth))
    view.face(x - 1.3, x + 1.3, 1.05, 1.3, z, fill_of(TRAIN, "cargo", depth, 0))
    view.shape([(-1.3, top), (1.3, top), (0.9, top + 0.35), (-0.9, top + 0.35)], x, z, shaded(paint, 7))
    _lamps(view, TRAIN, x - 1.3, x + 1.3, 0.8, z, True, depth)


def _coach(
    view: View, thing: int, x: float, z: float, width: float, length: float, top: float, paint: Fill, panes: int,
    stripe: str = "", low: float = 1.4,
) -> None:  # fmt: skip
    depth = paint[2]
    x0, x1, z1 = x - width / 2, x + width / 2, z + length
    view.shadow(x0 - 0.3, x1 + 0.3, z, z1)
    view.box(x0, x1, 0.3, top, z, z1, paint)
    side = view.side(x0, x1, z, z1)
    if side is None:
        return
    view.flank(side, low, top - 0.5, z + 0.4, z1 - 0.4, fill_of(thing, "glass", depth, 5, 8))
    if view.scale(z + 2) > 2.2:
        for k in range(1, panes):
            zk = z + 0.4 + (length - 0.8) * k / panes
            view.flank(side, low, top - 0.5, zk - 0.12, zk + 0.12, shaded(paint, 7))
    if stripe:
        view.flank(side, 0.95, 1.25, z, z1, fill_of(thing, stripe, depth, 0, 8))


def truck(view: View, rng: Rng, x: float, z: float, oncoming: bool = False) -> None:
    """A lorry with a pale box, a tanker, or a flatbed with its cab in sight."""
    depth = depth_of(z)
    cab, cargo = fill_of(TRUCK, "transit", depth, rng.i(16)), rng.i(3)
    load = fill_of(TRUCK, "cargo", depth, (0, 6, 12)[cargo])
    x0, x1, length = x - 1.25, x + 1.25, rng.u(6, 9)
    kind = rng.pick(("box", "box", "tank", "flat"))
    flatbed = kind == "flat"
    view.shadow(x0 - 0.3, x1 + 0.3, z, z + length)
    if oncoming:
        view.box(x0, x1, 0.9, 1.3 if flatbed else 3.2 if kind == "tank" else 3.6, z + 2.2, z + length, load)
        view.box(x0 + 0.05, x1 - 0.05, 0.45, 2.7, z, z + 2, cab)
        view.face(x - 1.0, x + 1.0, 1.6, 2.4, z, fill_of(TRUCK, "glass", depth, 4))
        view.face(x - 0.8, x + 0.8, 0.7, 1.2, z, fill_of(TRUCK, "tyre", depth))
    else:
        view.box(x0 + 0.1, x1 - 0.1, 0.6, 2.5, z + length - 1.8, z + length, cab)
        if flatbed:
            view.face(x - 0.9, x + 0.9, 1.6, 2.3, z + length - 1.8, fill_of(TRUCK, "glass", depth, 4))
        if kind == "tank":
            side = view.side(x0, x1, z, z + length - 2)
            if side is not None:
                view.flank(side, 1.1, 2.9, z, z + length - 2, shaded(load, 7))
            view.ball(x, 2.0, z, 1.25, 1.25, load)
            view.ball(x, 2.0, z, 0.75, 0.75, shaded(load, 13))
            view.face(x0, x1, 0.6, 1.0, z, fill_of(TRUCK, "tyre", depth))
        else:
            view.box(x0, x1, 0.7, 1.3 if flatbed else 3.5, z, z + length - 2, load)
        if kind == "box":
            view.face(x - 0.05, x + 0.05, 0.8, 3.4, z, fill_of(TRUCK, "tyre", depth))
        view.face(x0, x1, 0.55, 0.78, z, fill_of(TRUCK, "metal", depth, 2, 6))
    _wheels(view, TRUCK, x0, x1, z, z + length, 0.52, depth)
    _lamps(view, TRUCK, x0, x1, 0.85, z, oncoming, depth)


def person(view: View, rng: Rng, x: float, z: float, thing: int = PERSON) -> None:
    """Someone on foot: legs, torso, arms, head and hair."""
    if view.hidden(x, 0.5, z):
        return
    depth, size = depth_of(z), rng.u(0.85, 1.08)
    top, legs = (
        fill_of(thing, "cloth", depth, rng.i(16)),
        fill_of(thing, "cloth", depth, rng.pick((0, 2, 6, 7, 12, 14))),
    )
    stride = rng.u(0.2, 0.34) if rng.p(0.6) else 0.1
    lean, dress, bag = rng.u(-0.08, 0.08), rng.p(0.2), rng.i(5)
    skin = fill_of(thing, "skin", depth, rng.i(16), rng.pick((10, 10, 8, 6)))
    view.shadow(x - 0.35, x + 0.45, z, z + 0.3)
    for side in (-1, 1):
        view.stroke([(lean, 0.95 * size), (side * stride, 0.04)], x, z, legs, 0.2)
    hem = 0.55 if dress else 0.85
    flare = 0.34 if dress else 0.2
    torso = [(-flare, hem * size), (flare, hem * size), (lean + 0.24, 1.45 * size), (lean - 0.24, 1.45 * size)]
    view.shape(torso, x, z, top)
    for side in (-1, 1) if z < 26 else ():
        arm = [(lean + side * 0.24, 1.4 * size), (side * (0.26 + stride * 0.5), 0.85 * size)]
        view.stroke(arm, x, z, shaded(top, 8), 0.12)
    if bag < 2 and z < 30:
        sack, low = (0.2, 0.95) if bag else (0.42, 0.5)
        view.face(
            x + sack, x + sack + 0.24, low * size, (low + 0.4) * size, z, fill_of(thing, "frame", depth, rng.i(16), 8)
        )
    view.ball(x + lean, 1.6 * size, z, 0.14, 0.17, skin)
    if z < 26:
        view.ball(x + lean, 1.68 * size, z, 0.14, 0.1, fill_of(thing, "hair", depth, rng.i(16)))


def _rider(view: View, rng: Rng, x: float, z: float, seat: float, front: bool, sign: float) -> None:
    depth = depth_of(z)
    top, legs = fill_of(RIDER, "cloth", depth, rng.pick((1, 3, 7, 8, 11, 15, 4))), fill_of(RIDER, "cloth", depth, 0)
    helmet, skin = fill_of(RIDER, "helmet", depth, rng.i(16)), fill_of(RIDER, "skin", depth)
    if front:
        for side in (-1, 1):
            view.stroke([(side * 0.12, seat), (side * 0.2, 0.3)], x, z, legs, 0.18)
        view.shape([(-0.2, seat), (0.2, seat), (0.28, seat + 0.6), (-0.28, seat + 0.6)], x, z, top)
        view.ball(x, seat + 0.78, z, 0.14, 0.17, skin)
        view.ball(x, seat + 0.84, z, 0.16, 0.12, helmet)
        return
    view.stroke([(-sign * 0.2, seat), (sign * 0.1, seat * 0.6), (0.0, 0.3)], x, z, legs, 0.18)
    view.stroke([(-sign * 0.2, seat), (sign * 0.14, seat + 0.55)], x, z, top, 0.34)
    view.stroke([(sign * 0.14, seat + 0.5), (sign * 0.5, seat + 0.12)], x, z, shaded(top, 8), 0.12)
    view.ball(x + sign * 0.24, seat + 0.74, z, 0.14, 0.17, skin)
    view.ball(x + sign * 0.22, seat + 0.82, z, 0.16, 0.11, helmet)


def bicycle(view: View, rng: Rng, x: float, z: float, ridden: bool = False) -> None:
    """A bicycle across or along the view, with or without its rider."""
    depth, sign = depth_of(z), rng.pick((-1.0, 1.0))
    frame, tyre = fill_of(BICYCLE, "frame", depth, rng.i(16)), fill_of(BICYCLE, "tyre", depth)
    front = rng.p(0.35)
    view.shadow(x - 0.8, x + 0.8, z, z + 0.3)
    if front:
        view.face(x - 0.06, x + 0.06, 0.0, 0.7, z, tyre)
        view.face(x - 0.3, x + 0.3, 0.95, 1.03, z, frame)
        view.face(x - 0.05, x + 0.05, 0.6, 1.0, z, frame)
    else:
        for dx in (-0.52, 0.52):
            view.hoop(x + dx, 0.35, z, 0.36, tyre, 0.09)
        bars = [(-0.52, 0.35), (-0.2, 0.85), (0.36, 0.85), (0.0, 0.35), (-0.52, 0.35)]
        view.stroke([(sign * dx, y) for dx, y in bars], x, z, frame, 0.08)
        fork = [(0.52, 0.35), (0.36, 0.85), (0.34, 1.02), (0.5, 1.02)]
        view.stroke([(sign * dx, y) for dx, y in fork], x, z, frame, 0.08)
        view.stroke([(-sign * 0.32, 0.92), (-sign * 0.08, 0.92)], x, z, tyre, 0.08)
    if ridden:
        _rider(view, rng, x, z, 0.9, front, sign)


def motorcycle(view: View, rng: Rng, x: float, z: float, ridden: bool = False) -> None:
    """A motorcycle or scooter: fat wheels, tank and seat, with or without its rider."""
    depth, sign = depth_of(z), rng.pick((-1.0, 1.0))
    body, tyre = fill_of(MOTORCYCLE, "frame", depth, rng.i(16)), fill_of(MOTORCYCLE, "tyre", depth)
    metal, front = fill_of(MOTORCYCLE, "metal", depth), rng.p(0.35)
    view.shadow(x - 1.0, x + 1.0, z, z + 0.5)
    if front:
        view.face(x - 0.14, x + 0.14, 0.0, 0.6, z, tyre)
        view.shape([(-0.3, 0.45), (0.3, 0.45), (0.22, 1.1), (-0.22, 1.1)], x, z, body)
        view.face(x - 0.42, x + 0.42, 1.08, 1.18, z, metal)
        view.face(x - 0.12, x + 0.12, 0.8, 0.98, z, fill_of(MOTORCYCLE, "tail", depth))
        view.light(x, 0.9, z, 0.5, "tail")
    else:
        for dx in (-0.68, 0.68):
            view.ball(x + dx, 0.32, z, 0.34, 0.34, tyre)
            view.ball(x + dx, 0.32, z, 0.14, 0.14, metal)
        hull = [(-0.95, 0.75), (-0.5, 0.45), (0.3, 0.35), (0.6, 0.7), (0.5, 1.05), (0.25, 1.0), (0, 0.8), (-0.6, 0.85)]
        view.shape([(sign * dx, y) for dx, y in hull], x, z, body)
        view.stroke([(sign * 0.68, 0.32), (sign * 0.48, 1.1), (sign * 0.25, 1.15)], x, z, metal, 0.1)
        view.stroke([(-sign * 0.65, 0.88), (-sign * 0.05, 0.86)], x, z, tyre, 0.14)
    if ridden:
        _rider(view, rng, x, z, 0.85, front, sign)
