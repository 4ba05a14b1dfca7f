"""Object-centred pictures: one subject of a known category on a varied background."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kdbench.synthetic import furniture, vehicles
from kdbench.synthetic.canvas import Fill, Rng, SceneLayout, fill_of, shaded
from kdbench.synthetic.view import Camera, View, depth_of
from kdbench.synthetic.vocabulary import BACKDROP, GROUND, LIVING, OTHER, PART, PLANT, STRUCTURE, THIN, VEHICLE

Draw = Callable[[View, Rng, float], None]


def _part(group: int, material: str, z: float, variant: int = 8, shade: int = 10) -> Fill:
    return fill_of(PART + group, material, depth_of(z), variant, shade)


def _house(view: View, rng: Rng, z: float) -> None:
    w, h = rng.u(2.5, 3.6), rng.u(2.2, 3.4)
    wall, glass = _part(STRUCTURE, "facade", z, rng.i(16)), _part(STRUCTURE, "window", z, rng.i(16))
    view.shadow(-w, w + 0.6, z, z + 2)
    view.box(-w, w, 0, h, z, z + 4, wall)
    view.shape([(-w - 0.4, h), (w + 0.4, h), (0, h + rng.u(1.3, 2.4))], 0, z, _part(STRUCTURE, "tiles", z, rng.i(16)))
    view.face(-0.45, 0.45, 0, 1.7, z, _part(STRUCTURE, "shop", z, rng.i(16)))
    for x in (-0.62 * w, 0.62 * w):
        view.face(x - 0.5, x + 0.5, 1.0, 1.9, z, glass)


def _tower(view: View, rng: Rng, z: float) -> None:
    w, h = rng.u(0.9, 1.5), rng.u(5.0, 7.0)
    wall = _part(STRUCTURE, "facade", z, rng.i(16))
    view.box(-w, w, 0, h, z, z + 2, wall)
    for row in range(6):
        for x in (-0.5, 0.0, 0.5):
            glass = _part(STRUCTURE, "window", z, row * 2)
            view.face((x - 0.14) * w, (x + 0.14) * w, h * (row + 0.6) / 7, h * (row + 1.1) / 7, z, glass)
    tip = 0.5 if rng.p(0.5) else 1.6
    view.shape([(-w * 1.1, h), (w * 1.1, h), (0, h + tip)], 0, z, _part(STRUCTURE, "roof", z, rng.i(16)))


def _animal(view: View, rng: Rng, z: float) -> None:
    s, k, coat, sign = rng.u(1.5, 2.1), rng.u(0.7, 1.2), rng.i(16), rng.pick((-1, 1))
    material = rng.pick(("fur", "fur", "cloth"))
    body, dark = _part(LIVING, material, z, coat), _part(LIVING, material, z, coat, 7)
    view.shadow(-0.8 * s, 0.8 * s, z, z + 0.6)
    for x in (-0.5, -0.35, 0.35, 0.5):
        view.stroke([(sign * x * s, 0.6 * k * s), (sign * x * s, 0)], 0, z, dark, 0.13 * s)
    view.ball(0, 0.68 * k * s, z, 0.66 * s, 0.26 * s, body)
    view.ball(sign * 0.7 * s, (0.68 * k + 0.3) * s, z, 0.25 * s, 0.22 * s, body)
    view.ball(sign * 0.92 * s, (0.68 * k + 0.24) * s, z, 0.17 * s, 0.11 * s, dark)
    view.ball(sign * 0.58 * s, (0.68 * k + 0.46) * s, z, 0.08 * s, 0.16 * s, dark)
    view.stroke([(-sign * 0.6 * s, 0.75 * k * s), (-sign * 0.95 * s, (0.75 * k + 0.35) * s)], 0, z, dark, 0.1 * s)


# Twelve points around a circle as constants: a cosine may differ between machines.
_CIRCLE: Final = (
    (1.0, 0.0), (0.866, 0.5), (0.5, 0.866), (0.0, 1.0), (-0.5, 0.866), (-0.866, 0.5),
    (-1.0, 0.0), (-0.866, -0.5), (-0.5, -0.866), (0.0, -1.0), (0.5, -0.866), (0.866, -0.5),
)  # fmt: skip


def _flower(view: View, rng: Rng, z: float) -> None:
    petals, r, y = 5 + rng.i(4), rng.u(0.55, 0.8), rng.u(2.0, 2.7)
    stem, colour = _part(PLANT, "needle", z, 8, 11), _part(PLANT, "plain", z, rng.pick((0, 3, 4, 5, 7, 10, 1)))
    view.stroke([(0.1, 0), (0, y)], 0, z, stem, 0.12)
    for x, dy in ((0.5, 0.7), (-0.5, 1.1)):
        view.ball(x, dy, z, 0.5, 0.18, stem)
    for k in range(petals):
        dx, dy = _CIRCLE[k * len(_CIRCLE) // petals]
        view.ball(r * dx, y + r * dy, z, 0.52, 0.52, shaded(colour, 9 + k % 3))
    view.ball(0, y, z, 0.4, 0.4, _part(PLANT, "sign-yellow", z, rng.i(16)))


def _boat(view: View, rng: Rng, z: float) -> None:
    hull = _part(VEHICLE, "plain", z, rng.i(16))
    view.canvas.rect(0, view.v0, view.canvas.w, view.canvas.h, fill_of(PART + GROUND, "water", 80, rng.i(16)))
    view.shape([(-2.4, 0.9), (2.6, 0.9), (1.8, 0), (-1.9, 0)], 0, z, hull)
    view.shape([(-2.2, 0.7), (2.3, 0.7), (2.1, 0.5), (-2.1, 0.5)], 0, z, shaded(hull, 14))
    if rng.p(0.6):
        view.face(-0.06, 0.06, 0.9, 5, z, _part(THIN, "pole", z))
        view.shape([(0.12, 1.2), (1.9, 1.2), (0.12, 4.9)], 0, z, _part(VEHICLE, "cargo", z, rng.pick((0, 4, 12, 15))))
        view.shape([(-0.12, 1.2), (-1.4, 1.2), (-0.12, 4.2)], 0, z, _part(VEHICLE, "cargo", z, 0, 8))
    else:
        view.face(-1.2, 0.8, 0.9, 2.0, z, _part(VEHICLE, "cargo", z, 0))
        view.face(-1.0, 0.6, 1.3, 1.75, z, _part(VEHICLE, "glass", z))


def _plane(view: View, rng: Rng, z: float) -> None:
    tint, s, y = rng.i(16), rng.pick((-1, 1)), rng.u(2.2, 3.2)
    view.canvas.rect(0, 0, view.canvas.w, view.canvas.h, fill_of(PART + BACKDROP, "sky", 0, rng.i(16)))
    body, paint = _part(VEHICLE, "cargo", z, 0), _part(VEHICLE, "plain", z, tint)
    far_wing = [(s * 0.9, y + 0.1), (-s * 0.3, y + 0.1), (-s * 1.3, y + 1.5), (-s * 0.8, y + 1.5)]
    view.shape(far_wing, 0, z, shaded(paint, 7))
    view.ball(0, y, z, 2.7, 0.42, body)
    view.shape([(-s * 2.5, y + 0.1), (-s * 1.8, y + 0.2), (-s * 2.3, y + 1.2), (-s * 2.8, y + 1.2)], 0, z, paint)
    near_wing = [(s * 0.8, y - 0.1), (-s * 0.5, y - 0.1), (-s * 1.5, y - 1.3), (-s * 0.9, y - 1.3)]
    view.shape(near_wing, 0, z, shaded(paint, 12))
    view.face(-1.7, 1.7, y + 0.08, y + 0.18, z, _part(VEHICLE, "glass", z))


def _ball(view: View, rng: Rng, z: float) -> None:
    r, colour, other, lift = rng.u(1.1, 1.7), rng.i(16), rng.i(16), rng.u(0, 0.8)
    skin = _part(OTHER, "plain", z, colour, 8)
    y = r + lift
    view.shadow(-r, r, z, z + 1)
    view.ball(0, y, z, r, r, skin)
    view.ball(-0.2 * r, y + 0.2 * r, z, 0.7 * r, 0.7 * r, shaded(skin, 11))
    if rng.p(0.6):
        view.ball(0, y, z, 0.3 * r, r * 0.98, _part(OTHER, "plain", z, other))
    view.ball(-0.35 * r, y + 0.4 * r, z, 0.22 * r, 0.2 * r, shaded(skin, 15))


def _chair(view: View, rng: Rng, z: float) -> None:
    wood, w, h = _part(OTHER, rng.pick(("plain", "trunk", "metal")), z, rng.i(16)), rng.u(0.8, 1.1), rng.u(2.6, 3.4)
    view.shadow(-w, w, z, z + 1)
    for x in (-w, w):
        view.face(x - 0.1, x + 0.1, 0, h, z + 0.8, shaded(wood, 7))
        view.face(x - 0.1, x + 0.1, 0, 1.4, z, wood)
    view.face(-w, w, h - 0.9, h, z + 0.8, wood)
    view.box(-w, w, 1.3, 1.5, z, z + 0.8, shaded(wood, 12))


def _cup(view: View, rng: Rng, z: float) -> None:
    glaze, s, w = _part(OTHER, "plain", z, rng.i(16)), rng.pick((-1, 1)), rng.u(0.9, 1.2)
    view.shadow(-w, w, z, z + 1)
    view.hoop(s * w, 1.2, z, 0.6, shaded(glaze, 8), 0.22)
    view.shape([(-w, 2.2), (w, 2.2), (0.8 * w, 0.1), (-0.8 * w, 0.1)], 0, z, glaze)
    view.shape([(s * 0.2 * w, 2.2), (s * w, 2.2), (s * 0.8 * w, 0.1), (s * 0.2 * w, 0.1)], 0, z, shaded(glaze, 8))
    view.ball(0, 2.2, z, w, 0.22, shaded(glaze, 13))
    view.ball(0, 2.17, z, 0.82 * w, 0.15, _part(OTHER, "trunk", z, 4, 6))


def _fruit(view: View, rng: Rng, z: float) -> None:
    kind, tone = rng.i(3), rng.i(16)
    colour = _part(OTHER, ("sign-red", "sign-yellow", "leaf")[kind], z, tone)
    view.shadow(-1.1, 1.1, z, z + 1)
    if kind == 1:
        outer, inner = (
            [(-1.7, 1.5), (-1.3, 0.7), (-0.3, 0.25), (0.8, 0.4), (1.6, 1.2)],
            [(0.8, 1), (-0.3, 0.95), (-1.2, 1.2)],
        )
        view.shape(outer + inner, 0, z, colour)
        return
    for x in (-0.35, 0.35):
        view.ball(x, 1.15, z, 0.95, 1.1, colour)
    view.ball(-0.45, 1.5, z, 0.35, 0.4, shaded(colour, 14))
    view.stroke([(0, 2.1), (0.15, 2.7)], 0, z, _part(OTHER, "trunk", z), 0.14)
    view.ball(0.5, 2.55, z, 0.4, 0.17, _part(PLANT, "leaf", z, 8, 12))


def _cactus(view: View, rng: Rng, z: float) -> None:
    green, pot = _part(PLANT, "needle", z, rng.i(16), 12), _part(OTHER, "tiles", z, rng.i(16))
    view.face(-0.35, 0.35, 0.8, 3.4, z, green)
    for s, y in ((-1, 1.6), (1, 2.1)):
        view.stroke([(0, y), (s * 0.9, y), (s * 0.9, y + rng.u(0.6, 1.2))], 0, z, shaded(green, 10), 0.36)
    view.shape([(-0.9, 0.9), (0.9, 0.9), (0.65, 0), (-0.65, 0)], 0, z, pot)


_SUBJECTS: Final[tuple[tuple[str, float, Draw], ...]] = (
    ("car", 4.2, lambda v, d, z: (vehicles.car_side if d.p(0.5) else vehicles.car)(v, d, 0.0, z)),
    ("bus", 7.0, lambda v, d, z: vehicles.bus(v, d, d.pick((-1.8, 1.8)), z, d.p(0.5))),
    ("truck", 7.0, lambda v, d, z: vehicles.truck(v, d, d.pick((-1.8, 1.8)), z, d.p(0.5))),
    ("train", 8.0, lambda v, d, z: vehicles.train(v, d, d.pick((-2.6, 2.6)), z)),
    ("bicycle", 2.6, lambda v, d, z: vehicles.bicycle(v, d, 0.0, z)),
    ("motorcycle", 2.9, lambda v, d, z: vehicles.motorcycle(v, d, 0.0, z)),
    ("person", 2.9, lambda v, d, z: vehicles.person(v, d, 0.0, z)),
    ("cyclist", 2.9, lambda v, d, z: vehicles.bicycle(v, d, 0.0, z, True)),
    ("animal", 4.2, _animal),
    ("tree", 9.5, lambda v, d, z: furniture.tree(v, d, 0.0, z)),
    ("flower", 4.6, _flower),
    ("cactus", 4.8, _cactus),
    ("house", 8.0, _house),
    ("tower", 10.5, _tower),
    ("lamp", 9.5, lambda v, d, z: furniture.lamp_post(v, d, 0.5, z, 1)),
    ("sign", 3.8, lambda v, d, z: furniture.sign(v, d, 0.0, z)),
    ("traffic light", 5.2, lambda v, d, z: furniture.traffic_light(v, d, 0.0, z, 1)),
    ("boat", 7.0, _boat),
    ("plane", 6.5, _plane),
    ("ball", 4.6, _ball),
    ("chair", 4.8, _chair),
    ("cup", 4.2, _cup),
    ("fruit", 4.4, _fruit),
)

SUBJECTS: Final[tuple[str, ...]] = tuple(name for name, _, _ in _SUBJECTS)


def _background(view: View, rng: Rng) -> None:
    """Ground and backdrop, indoors or out, with a few blurs of other things."""
    canvas, v0 = view.canvas, view.v0
    h, w, plain = canvas.h, canvas.w, rng.p(0.35)
    material = "plain" if plain else "sky"
    canvas.rect(0, 0, w, v0, fill_of(PART + BACKDROP, material, 0, rng.i(16), 10))
    ground = rng.pick(("grass", "soil", "asphalt", "paving", "plain", "facade"))
    canvas.rect(0, v0, w, h, fill_of(PART + GROUND, ground, 0, rng.i(16)))
    for _ in range(rng.i(6)):
        x, s, tone = rng.u(0, w), h * rng.u(0.05, 0.3), rng.i(16)
        kind = rng.i(4)
        if kind == 0:
            canvas.disc(x, v0 - s * 0.3, s * 0.8, s, fill_of(PART + PLANT, "leaf", 40, tone, rng.pick((7, 10))))
        elif kind == 1:
            canvas.rect(x - s * 0.6, v0 - 1.4 * s, x + s * 0.6, v0, fill_of(PART + STRUCTURE, "facade", 40, tone, 9))
        elif kind == 2:
            canvas.rect(x - s * 0.06, v0 - 2 * s, x + s * 0.06, v0, fill_of(PART + THIN, "pole", 40, tone))
        else:
            canvas.disc(x, v0 + s * 0.3, s, s * 0.2, fill_of(PART + GROUND, "soil", 0, tone))


def subject(rng: Rng, category: int, height: int, width: int) -> SceneLayout:
    """A picture of one category of SUBJECTS."""
    _, fit, draw = _SUBJECTS[category]
    tall = min(1.0, width / height)
    # The eye rises with the subject, so that big things fit as small ones do.
    camera = Camera(
        1.25, rng.u(0.3, 0.55), 0.3 * fit * rng.u(0.7, 1.2), rng.u(-0.07, 0.07) * fit, rng.u(-0.08, 0.08),
        roll=rng.u(-0.06, 0.06),
    )  # fmt: skip
    view = View(height, width, camera)
    _background(view, rng)
    draw(view, rng, fit * rng.u(1.25, 1.9) / tall)
    return view.layout(category)
