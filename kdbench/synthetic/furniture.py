"""What stands along a street: buildings, plants, walls, fences, poles, lights and signs."""

from __future__ import annotations

from kdbench.synthetic.canvas import Fill, Rng, fill_of, shaded
from kdbench.synthetic.view import View, depth_of
from kdbench.synthetic.vocabulary import BUILDING, FENCE, LIGHT, POLE, SIGN, VEGETATION, VOID, WALL


def building(view: View, rng: Rng, x: float, z0: float, z1: float, side: int, house: bool, end: bool) -> None:
    """A building along the road; x is its street side, end tells that its near face stands in the open."""
    tower = not house and rng.p(0.2)
    floor, floors = 3.1, 2 if house else 7 + rng.i(5) if tower else 3 + rng.i(4)
    height = floor * floors + 0.6
    variant, tint, shops = rng.i(16), rng.i(16), rng.p(0.55) and not house
    lamps, panes = rng.i(16), 2 + rng.i(3)
    light = 10 if side * view.sun >= 0 else 7
    if side * view.sun < 0:
        view.cast(x, z0, z1, height)
    middle = (z0 + z1) / 2
    for za, zb in ((middle, z1), (z0, middle)) if z0 < 22 else ((z0, z1),):
        depth = depth_of((za + zb) / 2)
        wall = fill_of(BUILDING, "facade", depth, variant, light)
        view.flank(x, 0, height, za, zb, wall)
        if z0 < 60:
            glass = fill_of(BUILDING, "window", depth, lamps + floors)
            if tower:
                _curtain(view, x, za, zb, height, floor, (wall, glass))
            else:
                _windows(view, x, za, zb, floors, floor, panes, (wall, glass), shops, tint)
    outer = x + side * 9
    depth = depth_of(z0)
    wall = fill_of(BUILDING, "facade", depth, variant, 11 if light < 10 else 9)
    roof = fill_of(BUILDING, "roof", depth, tint, 9)
    view.face(min(x, outer), max(x, outer), 0, height, z0, wall)
    for level in range(floors if end else 0):
        for k in range(3):
            xk = x + side * (1.6 + 2.6 * k)
            pane = fill_of(BUILDING, "window", depth, lamps + level * 5 + k * 3)
            view.face(xk - 0.6, xk + 0.6, level * floor + 1.0, level * floor + 2.4, z0, pane)
    if house:
        ridge = height + 2.8
        a, b = view.at(x - side * 0.4, height - 0.1, z0), view.at(x - side * 0.4, height - 0.1, z1)
        c, d = view.at(x + side * 4.5, ridge, z1), view.at(x + side * 4.5, ridge, z0)
        view.canvas.poly([a, b, c, d], roof)
        view.canvas.poly([view.at(x, height, z0), view.at(outer, height, z0), d], shaded(wall, 9))
    else:
        view.flank(x, height, height + 0.5, z0, z1, shaded(roof, 7))


def _curtain(view: View, x: float, z0: float, z1: float, height: float, floor: float, fills: tuple[Fill, Fill]) -> None:
    """A glass front: bands of storeys over one pane."""
    wall, glass = fills
    view.flank(x, 3.6, height - 0.4, z0, z1, shaded(glass, 13))
    for level in range(2, int(height / floor)):
        view.flank(x, level * floor, level * floor + 0.45, z0, z1, shaded(wall, 12))


def front(view: View, rng: Rng, x0: float, x1: float, z: float) -> None:
    """A building that faces the camera, as behind a T-junction."""
    depth, floors, tint = depth_of(z), 2 + rng.i(4), rng.i(16)
    height, lamps = 3.1 * floors + 0.6, rng.i(16)
    view.face(x0, x1, 0, height, z, fill_of(BUILDING, "facade", depth, rng.i(16), 9))
    if rng.p(0.4):
        gable = [(x0 - 0.4, height - 0.1), (x1 + 0.4, height - 0.1), (x1 - 2.5, height + 2.8), (x0 + 2.5, height + 2.8)]
        view.shape(gable, 0.0, z, fill_of(BUILDING, "roof", depth, tint, 9))
    columns = max(2, int((x1 - x0) / 2.8))
    for level in range(floors):
        for k in range(columns):
            x = x0 + (x1 - x0) * (k + 0.5) / columns
            pane = fill_of(BUILDING, "window", depth, lamps + level * 5 + k * 3)
            view.face(x - 0.6, x + 0.6, level * 3.1 + 1.0, level * 3.1 + 2.4, z, pane)


def _windows(
    view: View, x: float, z0: float, z1: float, floors: int, floor: float, panes: int,
    fills: tuple[Fill, Fill], shops: bool, tint: int,
) -> None:  # fmt: skip
    wall, glass = fills
    shade = (wall[3] & 15) - 1
    for level in range(floors):
        y = level * floor + (0.3 if shops and level == 0 else 1.0)
        fill = fill_of(BUILDING, "shop", wall[2], tint, shade) if shops and level == 0 else shaded(glass, shade)
        view.flank(x, y, level * floor + 2.5, z0, z1, fill)
    # One upright over all floors cuts the bands into windows: far fewer shapes than one a window.
    for k in range(panes + 1):
        z = z0 + (z1 - z0) * k / panes
        half = 0.22 * (z1 - z0) / panes
        view.flank(x, 0, floors * floor, max(z0, z - half), min(z1, z + half), wall)


def tree(view: View, rng: Rng, x: float, z: float, tall: float = 1.0) -> None:
    """A round tree, a spreading one, a poplar or a conifer."""
    if view.hidden(x, 3.5, z):
        return
    depth, kind, size = depth_of(z), rng.i(4), tall * rng.u(0.75, 1.25)
    bark, variant = fill_of(VEGETATION, "trunk", depth, rng.i(16)), rng.i(16)
    view.shadow(x - 1.6 * size, x + 1.6 * size, z - 0.4, z + 1.2)
    if z < 30 and view.sun:
        u, v = view.at(x + view.sun * 2.5 * size, 0, z + size)
        view.canvas.shade_disc(u, v, 2.2 * size * view.scale(z), max(1.0, 0.5 * size * view.scale(z)))
    material = "needle" if kind == 3 else "leaf"
    dark, mid, pale = (fill_of(VEGETATION, material, depth, variant, shade) for shade in (6, 9, 12))
    if kind == 3:
        view.face(x - 0.14, x + 0.14, 0, 1.5, z, bark)
        for y, w in ((0.9, 1.9), (2.5, 1.45), (4.1, 0.95)):
            tier = [(-w * size, y * size), (w * size, y * size), (0, (y + 2.8) * size)]
            view.shape(tier, x, z, dark if y < 1 else mid)
        return
    trunk = (2.4, 3.4, 1.6, 0.0)[kind] * size
    view.face(x - 0.17 * size, x + 0.17 * size, 0, trunk + 1, z, bark)
    narrow, tallness = ((1.0, 1.0), (1.45, 0.62), (0.5, 1.5), (1.0, 1.0))[kind]
    y = trunk + 1.7 * size * tallness
    view.ball(x, y, z, 2.1 * size * narrow, 2.1 * size * tallness, dark)
    for _ in range(4 if z < 40 else 2):
        dx, dy, r = rng.u(-1.3, 1.3) * narrow, rng.u(-0.9, 1.1) * tallness, rng.u(0.9, 1.4)
        view.ball(
            x + dx * size, y + dy * size, z, r * size * narrow, r * size * 0.9 * tallness, mid if dy < 0.3 else pale
        )


def bush(view: View, rng: Rng, x: float, z: float) -> None:
    """A low round plant."""
    depth, variant, size = depth_of(z), rng.i(16), rng.u(0.7, 1.3)
    view.ball(x, 0.5 * size, z, 1.1 * size, 0.75 * size, fill_of(VEGETATION, "leaf", depth, variant, 7))
    view.ball(x + 0.2, 0.75 * size, z, 0.7 * size, 0.5 * size, fill_of(VEGETATION, "leaf", depth, variant, 11))


def hedge(view: View, rng: Rng, x: float, z0: float, z1: float) -> None:
    """A trimmed hedge along the road."""
    height, variant = rng.u(1.0, 2.4), rng.i(16)
    for a, b in (((z0 + z1) / 2, z1), (z0, (z0 + z1) / 2)):
        depth = depth_of((a + b) / 2)
        view.flank(x, 0, height, a, b, fill_of(VEGETATION, "leaf", depth, variant, 8))
        view.flank(x, height * 0.75, height, a, b, fill_of(VEGETATION, "leaf", depth, variant, 12))


def wall(view: View, rng: Rng, x: float, z0: float, z1: float, side: int) -> None:
    """A free-standing wall along the road, with courses and a coping."""
    height, variant = rng.u(1.6, 2.8), rng.i(16)
    depth = depth_of((z0 + z1) / 2)
    body = fill_of(WALL, "wall", depth, variant, 10 if side * view.sun >= 0 else 8)
    view.flank(x, 0, height, z0, z1, body)
    for y in (0.3, 0.62):
        view.flank(x, height * y, height * y + 0.07, z0, z1, shaded(body, 6))
    view.flank(x, height - 0.2, height, z0, z1, shaded(body, 14))
    view.face(min(x, x + side * 0.4), max(x, x + side * 0.4), 0, height, z0, shaded(body, 11))


def fence(view: View, rng: Rng, x: float, z0: float, z1: float) -> None:
    """A fence along the road: rails and posts, and between them what stands behind."""
    height, variant, pale = rng.u(1.2, 2.0), rng.i(16), rng.p(0.4)
    depth, posts = depth_of((z0 + z1) / 2), max(3, int((z1 - z0) / 0.9))
    mesh = fill_of(FENCE, "rail" if pale else "fence", depth, variant, 7)
    for y in (0.15, 0.5, 0.92):
        view.flank(x, height * y - 0.08, height * y + 0.08, z0, z1, shaded(mesh, 10))
    for k in range(posts + 1):
        z = z0 + (z1 - z0) * k / posts
        view.canvas.line([view.at(x, 0, z), view.at(x, height + 0.1, z)], shaded(mesh, 12), 0.14 * view.scale(z))


def barrier(view: View, rng: Rng, x: float, z: float) -> None:
    """A construction fence across the view, open between its bars."""
    depth, width = depth_of(z), rng.u(1.5, 3.0)
    mesh = fill_of(FENCE, "rail", depth, rng.i(16), 4)
    for y in (0.25, 0.8, 1.4):
        view.face(x - width, x + width, y, y + 0.12, z, shaded(mesh, 11))
    for k in range(13):
        xk = x - width + k * width / 6
        view.face(xk - 0.05, xk + 0.05, 0, 1.55, z, shaded(mesh, 9))


def lamp_post(view: View, rng: Rng, x: float, z: float, side: int) -> None:
    """A street lamp that reaches over the road."""
    if view.hidden(x, 2.0, z):
        return
    depth, height = depth_of(z), rng.u(5.0, 7.5)
    post = fill_of(POLE, "pole", depth, rng.i(16), rng.pick((7, 10, 12)))
    view.face(x - 0.11, x + 0.11, 0, height, z, post)
    view.face(min(x, x - side * 1.6), max(x, x - side * 1.6), height - 0.12, height + 0.06, z, post)
    xl = x - side * 1.7
    view.face(xl - 0.35, xl + 0.35, height - 0.22, height, z, fill_of(POLE, "lamp", depth))
    view.light(xl, height - 0.1, z, 2.6, "lamp")


def pole(view: View, rng: Rng, x: float, z: float) -> None:
    """A bare mast or a bollard."""
    depth, height = depth_of(z), rng.pick((1.0, 6.0, 8.0))
    view.face(x - 0.11, x + 0.11, 0, height, z, fill_of(POLE, "pole", depth, rng.i(16), rng.pick((6, 9, 12))))


def traffic_light(view: View, rng: Rng, x: float, z: float, side: int) -> None:
    """Traffic lights on a pole, sometimes on an arm over the road."""
    if view.hidden(x, 4.0, z):
        return
    depth, arm, state = depth_of(z), rng.p(0.35), rng.i(3)
    height = 5.2 if arm else 3.4
    post = fill_of(POLE, "pole", depth, rng.i(16), 9)
    view.face(x - 0.1, x + 0.1, 0, height, z, post)
    heads = [(x, 2.9)]
    if arm:
        reach = x - side * 3.6
        view.face(min(x, reach), max(x, reach), height - 0.15, height, z, post)
        heads.append((reach, height - 0.2))
    for xk, y in heads:
        view.face(xk - 0.28, xk + 0.28, y - 0.6, y + 0.6, z, fill_of(LIGHT, "tl-body", depth))
        colour = ("tl-red", "tl-amber", "tl-green")[state]
        view.ball(xk, y + (0.36, 0.0, -0.36)[state], z, 0.2, 0.2, fill_of(LIGHT, colour, depth))
        view.light(xk, y + (0.36, 0.0, -0.36)[state], z, 0.7, colour)


_OCTAGON = ((1, 0.414), (0.414, 1), (-0.414, 1), (-1, 0.414), (-1, -0.414), (-0.414, -1), (0.414, -1), (1, -0.414))


def sign(view: View, rng: Rng, x: float, z: float) -> None:
    """A traffic sign on its pole: disc, triangle, square, diamond, octagon or board."""
    if view.hidden(x, 1.0, z):
        return
    depth, kind, y = depth_of(z), rng.i(7), rng.u(2.1, 2.7)
    view.face(x - 0.06, x + 0.06, 0, y, z, fill_of(POLE, "pole", depth, rng.i(16)))
    red, white, blue, yellow = (fill_of(SIGN, f"sign-{name}", depth) for name in ("red", "white", "blue", "yellow"))
    if kind == 0:
        view.ball(x, y, z, 0.42, 0.42, red)
        view.ball(x, y, z, 0.27, 0.27, white)
    elif kind == 1:
        view.shape([(-0.48, y - 0.35), (0.48, y - 0.35), (0, y + 0.5)], x, z, red)
        view.shape([(-0.26, y - 0.23), (0.26, y - 0.23), (0, y + 0.22)], x, z, white)
    elif kind == 2:
        view.face(x - 0.4, x + 0.4, y - 0.4, y + 0.4, z, blue)
        view.face(x - 0.08, x + 0.08, y - 0.25, y + 0.25, z, white)
    elif kind == 3:
        view.shape([(-0.45, y), (0, y - 0.45), (0.45, y), (0, y + 0.45)], x, z, yellow)
    elif kind == 4:
        view.ball(x, y, z, 0.42, 0.42, red)
        view.face(x - 0.28, x + 0.28, y - 0.09, y + 0.09, z, white)
    elif kind == 5:
        view.shape([(a * 0.46, y + b * 0.46) for a, b in _OCTAGON], x, z, red)
        view.face(x - 0.26, x + 0.26, y - 0.06, y + 0.06, z, white)
    else:
        view.face(x - 0.95, x + 0.95, y, y + 0.9, z, rng.pick((blue, blue, yellow)))
        view.face(x - 0.7, x + 0.5, y + 0.4, y + 0.55, z, white)


def litter_bin(view: View, rng: Rng, x: float, z: float) -> None:
    """A bin, which no class claims."""
    depth = depth_of(z)
    view.shadow(x - 0.3, x + 0.3, z, z + 0.4)
    view.box(x - 0.28, x + 0.28, 0, 1.0, z, z + 0.5, fill_of(VOID, "bin", depth, rng.i(16)))
