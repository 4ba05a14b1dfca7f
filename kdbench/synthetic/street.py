"""Street scenes: a road in perspective, blocks along both sides, traffic and people, painted from far to near."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from kdbench.synthetic import furniture, vehicles
from kdbench.synthetic.canvas import Rng, SceneLayout, fill_of
from kdbench.synthetic.view import FAR, Camera, View
from kdbench.synthetic.vocabulary import BUILDING, ROAD, SIDEWALK, TERRAIN, VEGETATION, VOID

Span = tuple[float, float]
Task = tuple[float, float, Callable[[], None]]  # far end, near end


@dataclass(frozen=True)
class StreetConfig:
    """What streets of one family are like; pairs are ranges."""

    focal: Span = (1.15, 1.5)
    horizon: Span = (0.4, 0.48)
    height: Span = (1.3, 1.7)
    roll: float = 0.0
    lanes: Span = (3.2, 5.5)  # half the road's width, m
    setback: Span = (2.0, 4.0)  # width of the pavement, m
    built: float = 0.62  # share of blocks with buildings
    houses: float = 0.3  # share of those that are low
    verge: float = 0.35  # chance of a grass verge
    trees: float = 0.5
    traffic: float = 0.5
    parked: float = 0.6
    people: float = 0.5
    bonnet: float = 0.0
    junction: float = 0.4
    curve: float = 0.004  # most of a bend, 1/m
    hill: float = 0.0006  # most of a slope, 1/m


# Rare classes take turns, so that every split of a few dozen images holds each of them.
_FEATURES = (
    "train", "bus", "truck", "motorcycle", "rider", "wall", "bus", "truck", "fence", "motorcycle", "train", "rider",
    "motorcycle", "bicycle", "rider", "",
)  # fmt: skip


class _Street:
    """One street while it is being laid out."""

    def __init__(self, rng: Rng, config: StreetConfig, index: int, height: int, width: int) -> None:
        self.rng, self.config = rng, config
        self.half = rng.u(*config.lanes)
        self.pavement = rng.u(*config.setback)
        lane = rng.u(0.2, 0.6) * self.half
        camera = Camera(
            rng.u(*config.focal), rng.u(*config.horizon), rng.u(*config.height), lane, rng.u(-0.1, 0.1),
            rng.u(-config.curve, config.curve) if rng.p(0.65) else 0.0, rng.u(-config.roll, config.roll),
            rng.u(-config.hill, config.hill) if rng.p(0.5) else 0.0,
        )  # fmt: skip
        self.view = View(height, width, camera)
        self.view.sun = rng.pick((-1, 1)) * rng.u(0.25, 0.9)
        self.tasks: list[Task] = []
        self.feature = _FEATURES[index % len(_FEATURES)]
        start = rng.u(9, 28)
        self.crossing = (start, start + rng.u(7, 11)) if rng.p(config.junction) else (FAR, FAR)
        kind = rng.u()
        # A crossroads, a side street to the left or right, or the end of the road.
        self.arms = ((-1, 1), (-1,), (1,), (-1, 1))[0 if kind < 0.4 else 1 if kind < 0.6 else 2 if kind < 0.8 else 3]
        ends = kind >= 0.8 and self.crossing[0] < FAR and self.feature not in ("train", "bus", "truck")
        self.reach = self.crossing[1] if ends else FAR
        self.rails = self.feature == "train"

    def add(self, z: float, draw: Callable[[], None], near: float = FAR) -> None:
        if z < self.reach:
            self.tasks.append((z, min(z, near), draw))

    def open(self, z0: float, z1: float, side: int = 0) -> bool:
        """Whether nothing of the crossing street lies between; side 0 asks for both sides."""
        return (side != 0 and side not in self.arms) or z1 <= self.crossing[0] or z0 >= self.crossing[1]

    def backdrop(self) -> None:
        """The far end: a base ground and a skyline."""
        view, rng = self.view, self.rng
        h, w = view.canvas.h, view.canvas.w
        tilt = view.camera.roll * w / 2
        lift = view.at(0, 0, view.crest)[1] - view.v0 - view.camera.roll * (view.at(0, 0, view.crest)[0] - view.u0)
        base = fill_of(TERRAIN, "grass", 40) if rng.p(0.5) else fill_of(SIDEWALK, "paving", 40)
        self.base = [(0, view.v0 + lift - tilt), (w, view.v0 + lift + tilt), (w, h), (0, h)]
        self.bare = base
        view.canvas.poly(self.base, base)
        config = self.config.built > 0.45
        for k in range(10):
            u, s = w * (k + rng.u(-0.4, 0.4)) / 9, h * rng.u(0.02, 0.09)
            built, variant = rng.p(0.55 if config else 0.2), rng.i(16)
            v = view.v0 + min(lift, 0.0) + tilt * (2 * u / w - 1) + 1
            if built:
                view.canvas.rect(
                    u - w * 0.06, v - 1.5 * s, u + w * 0.06, v, fill_of(BUILDING, "facade", 24, variant, 9)
                )
            else:
                view.canvas.disc(u, v - s * 0.3, w * 0.09, s, fill_of(VEGETATION, "leaf", 22, variant, 8))
                view.canvas.rect(u - w * 0.08, v - 1, u + w * 0.08, v, fill_of(VEGETATION, "leaf", 22, variant, 7))

    def plan(self) -> None:
        """Widths that ground and blocks share."""
        self.verge = [self.rng.u(1.5, 4.0) if self.rng.p(self.config.verge) else 0.0 for _ in range(2)]

    def paint(self) -> None:
        """Everything from far to near; the ground covers what stands behind its crest."""
        crest = self.view.crest
        tasks = sorted(self.tasks, key=lambda task: -task[0])
        for _, near, draw in tasks:
            if near > crest:
                draw()
        self.ground()
        self.end_of_road()
        for _, near, draw in tasks:
            if near <= crest:
                draw()

    def ground(self) -> None:
        """Verges, pavements, road, markings and the crossing street."""
        view, rng, half = self.view, self.rng, self.half
        asphalt, paving = fill_of(ROAD, "asphalt", 0, rng.i(16)), fill_of(SIDEWALK, "paving", 0, rng.i(16))
        kerb, paint = fill_of(SIDEWALK, "kerb", 0), fill_of(ROAD, "marking", 0)
        if view.crest < FAR:
            view.canvas.poly(self.base, self.bare)
        near, soil = 1.2, "soil" if rng.p(0.2) else "grass"
        inner = [rng.p(0.4) for _ in range(2)]
        for side, verge, first in zip((-1, 1), self.verge, inner, strict=True):
            edge = half + self.pavement + verge
            view.strip(side * half, side * (edge + 12), near, FAR, fill_of(TERRAIN, soil, 0, rng.i(16)))
            a = half + verge if first else half
            view.strip(side * a, side * (a + self.pavement), near, FAR, paving)
            view.strip(side * half, side * (half + 0.28), near, FAR, kerb)
        view.strip(-half, half, near, FAR, asphalt)
        self.lines(paint)
        if self.rails:
            for x in (-0.3 * half - 0.7, -0.3 * half + 0.7):
                view.strip(x - 0.07, x + 0.07, near, 70, fill_of(ROAD, "metal", 0, 3, 7))
        za, zb = self.crossing
        if za < FAR:
            for side in self.arms:
                view.strip(0, side * 70, za, zb, asphalt)
            if self.reach < FAR:
                view.strip(-70, 70, zb, FAR, paving)
            for k in range(6):
                x = half * (k - 2.5) / 3
                view.strip(x - half * 0.09, x + half * 0.09, za - 3.2, za - 1.0, paint)

    def lines(self, paint: tuple[int, int, int, int]) -> None:
        """Lane markings, dashed or continuous."""
        view, half = self.view, self.half
        dashed, edges = self.rng.p(0.75), self.rng.p(0.6)
        z = 2.0 + self.rng.u(0, 3)
        while dashed and z < 60:
            view.strip(-0.08, 0.08, z, z + 3, paint)
            z += 7.5
        if not dashed:
            view.strip(-0.08, 0.08, 1.2, 90, paint)
        for side in (-1, 1) if edges else ():
            view.strip(side * (half - 0.35), side * (half - 0.22), 1.2, 90, paint)

    def blocks(self, side: int) -> None:
        """What lines the street behind the pavement."""
        rng, config = self.rng, self.config
        line = self.half + self.pavement + self.verge[side > 0] + rng.u(0.2, 1.5)
        z, forced = 2.6, self.feature in ("wall", "fence") and side == 1
        end = True
        while z < min(105, self.reach):
            length = rng.u(9, 17) * (1 + z / 55)
            kind = "built" if rng.p(config.built) else rng.pick(("trees", "trees", "wall", "fence", "hedge", "open"))
            if forced and z < 12:
                kind = self.feature
            z1 = min(z + length, self.crossing[0]) if z < self.crossing[0] and side in self.arms else z + length
            if self.open(z, z1, side) and z1 - z > 2:
                self.block(kind, side * line, z, z1, side, end)
                end = kind != "built"
            gap = rng.u(1, 5) if rng.p(0.3) else 0.0
            end = end or gap > 0 or z1 == self.crossing[0]
            z = gap + (self.crossing[1] if z1 == self.crossing[0] else z1)

    def block(self, kind: str, x: float, z0: float, z1: float, side: int, end: bool) -> None:
        """One block of one kind; end tells that nothing built stands right before it."""
        view, rng = self.view, self.rng
        if kind == "built":
            house = rng.p(self.config.houses)
            self.add(z1, lambda: furniture.building(view, rng, x, z0, z1, side, house, end), z0)
            return
        if kind in ("trees", "open", "wall", "fence"):
            for _ in range(1 if kind == "open" else 3):
                zt, xt, tall = rng.u(z0, z1), x + side * rng.u(1.5, 9), rng.u(0.9, 1.7)
                behind = kind in ("wall", "fence")
                self.add(z1 + 0.1 if behind else zt, partial(furniture.tree, view, rng, xt, zt, tall))
        if kind == "open":
            xb = x + side * 14
            self.add(z1 + 1, lambda: furniture.building(view, rng, xb, z0 + 1, z1, side, True, True))
        if kind == "wall":
            self.add(z1, lambda: furniture.wall(view, rng, x, z0, z1, side), z0)
        elif kind == "fence":
            self.add(z1, lambda: furniture.fence(view, rng, x, z0, z1), z0)
        elif kind == "hedge" or (kind == "trees" and rng.p(0.3)):
            self.add(z1, lambda: furniture.hedge(view, rng, x, z0, z1), z0)

    def pavements(self, side: int) -> None:
        """Trees, poles, lights, signs, people and clutter along one pavement."""
        rng, config, view = self.rng, self.config, self.view
        kerb = side * (self.half + 0.7)
        z = rng.u(5, 9)
        while z < 70:
            if self.open(z, z, side):
                self.stand(side, kerb, z)
            if rng.p(config.people * 0.75):
                for _ in range(1 + rng.i(3)):
                    x, zp = side * (self.half + rng.u(0.6, self.pavement)), z + rng.u(0, 5)
                    self.add(zp, partial(vehicles.person, view, rng, x, zp))
            z += rng.u(5, 9) * (1 + z / 60)

    def stand(self, side: int, kerb: float, z: float) -> None:
        """One thing at the kerb."""
        view, rng = self.view, self.rng
        roll = rng.u()
        trees = self.config.trees * 0.42
        if roll < trees:
            self.add(z, lambda: furniture.tree(view, rng, kerb + side * 0.5, z))
        elif roll < trees + 0.16:
            self.add(z, lambda: furniture.lamp_post(view, rng, kerb, z, side))
        elif roll < trees + 0.32:
            self.add(z, lambda: furniture.sign(view, rng, kerb, z))
        elif roll < trees + 0.44:
            self.add(z, lambda: furniture.traffic_light(view, rng, kerb, z, side))
        elif roll < trees + 0.5:
            self.add(z, lambda: furniture.pole(view, rng, kerb, z))
        elif roll < trees + 0.54:
            self.add(z, lambda: furniture.litter_bin(view, rng, kerb + side * 0.4, z))
        elif roll < trees + 0.61:
            self.add(z, lambda: vehicles.bicycle(view, rng, kerb + side * 0.6, z))
        elif roll < trees + 0.63:
            self.add(z, lambda: furniture.bush(view, rng, kerb + side * self.pavement, z))

    def traffic(self) -> None:
        """Cars in the lanes and at the kerb, now and then something rarer, people who cross."""
        rng, config, view, half = self.rng, self.config, self.view, self.half
        for side in (-1, 1):
            z = rng.u(5.5, 11)
            while z < 80:
                if rng.p(config.parked) and half > 3.3 and self.open(z - 1, z + 5, side):
                    self.add(z, partial(vehicles.car, view, rng, side * (half - 1.1), z, side < 0))
                z += rng.u(5.2, 7.5)
            z = rng.u(7, 22)
            while z < 90:
                if rng.p(config.traffic):
                    self.vehicle(side * half * 0.38, z, side < 0)
                z += rng.u(9, 20)
        if self.crossing[0] < FAR and rng.p(0.55):
            zc, xc = (self.crossing[0] + self.crossing[1]) / 2, rng.u(-7, 7)
            self.add(zc, lambda: vehicles.car_side(view, rng, xc, zc))
        if rng.p(config.people * 0.5):
            zp, xp = rng.u(8, 26), rng.u(-half, half)
            self.add(zp, lambda: vehicles.person(view, rng, xp, zp))

    def end_of_road(self) -> None:
        """The buildings behind a T-junction."""
        rng, view, z = self.rng, self.view, self.reach + 3.5
        x = -45.0
        while self.reach < FAR and x < 45:
            wide = rng.u(9, 18)
            if rng.p(0.8):
                furniture.front(view, rng, x, x + wide, z)
            else:
                furniture.tree(view, rng, x + wide / 2, z, 1.3)
            x += wide

    def vehicle(self, x: float, z: float, oncoming: bool) -> None:
        """One vehicle in a lane, mostly a car."""
        view, rng, roll = self.view, self.rng, self.rng.u()
        if roll < 0.82:
            self.add(z, lambda: vehicles.car(view, rng, x, z, oncoming))
        elif roll < 0.88:
            self.add(z, lambda: vehicles.truck(view, rng, x, z, oncoming))
        elif roll < 0.92:
            self.add(z, lambda: vehicles.bus(view, rng, x, z, oncoming))
        elif roll < 0.96:
            self.add(z, lambda: vehicles.bicycle(view, rng, x, z, True))
        else:
            self.add(z, lambda: vehicles.motorcycle(view, rng, x, z, True))

    def featured(self) -> None:
        """The rare class whose turn it is, near enough to be seen."""
        rng, view, half = self.rng, self.view, self.half
        far, near, flip = rng.u(11, 19), rng.u(6.5, 10), rng.p(0.5)
        x, kerb = -half * 0.35 if flip else half * 0.35, self.half + rng.u(0.5, 1.2)
        # Inside the picture, whatever the camera's focal length.
        room = 0.75 * near * min(view.u0, view.canvas.w - view.u0) / view.f
        aside = view.camera.x + max(-room, min(room, rng.pick((-1, 1)) * kerb - view.camera.x))
        ridden = rng.u(-half * 0.7, half * 0.7)
        actions: dict[str, Callable[[], None]] = {
            "train": lambda: self.add(far, lambda: vehicles.train(view, rng, -0.3 * half, far)),
            "bus": lambda: self.add(far, lambda: vehicles.bus(view, rng, x, far, flip)),
            "truck": lambda: self.add(far, lambda: vehicles.truck(view, rng, x, far, flip)),
            "motorcycle": lambda: self.add(near, lambda: vehicles.motorcycle(view, rng, aside, near, flip)),
            "rider": lambda: self.add(near, lambda: vehicles.bicycle(view, rng, ridden, near, True)),
            "bicycle": lambda: self.add(near, lambda: vehicles.bicycle(view, rng, aside, near)),
            "fence": lambda: self.add(near + 3, lambda: furniture.barrier(view, rng, aside * 1.3, near + 3)),
        }
        if self.feature in actions:
            actions[self.feature]()

    def bonnet(self) -> None:
        """The front of the car that carries the camera: nobody labels it."""
        canvas, rng = self.view.canvas, self.rng
        if rng.p(self.config.bonnet):
            h, w = canvas.h, canvas.w
            rise, paint = h * rng.u(0.05, 0.12), rng.pick((2, 3, 7, 8))
            canvas.disc(w / 2, h + rise, w * rng.u(0.42, 0.55), 2 * rise, fill_of(VOID, "paint", 255, paint, 8))


def street(rng: Rng, config: StreetConfig, index: int, height: int, width: int) -> SceneLayout:
    """A street scene of one configuration; index decides which rare class has its turn."""
    scene = _Street(rng, config, index, height, width)
    scene.backdrop()
    scene.plan()
    for side in (-1, 1):
        scene.blocks(side)
        scene.pavements(side)
    scene.traffic()
    scene.featured()
    scene.paint()
    scene.bonnet()
    return scene.view.layout()
