"""Vocabulary of the synthetic world: what a pixel is (thing) and what it is made of (material)."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

IGNORE: Final = 255

COARSE: Final[tuple[str, ...]] = (
    "ground",
    "structure",
    "thin structure",
    "plant",
    "sky or background",
    "vehicle",
    "living being",
    "other",
)
GROUND, STRUCTURE, THIN, PLANT, BACKDROP, VEHICLE, LIVING, OTHER = range(8)

# Things 0..18 are the street classes, VOID is street clutter without a class, 20..25 the aerial classes,
# 26..33 stand for the coarse groups themselves (parts of the collections' objects).
ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN = range(10)
SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE, VOID = range(10, 20)
SEALED, HOUSE, LAWN, TREE, AUTO, CLUTTER = range(20, 26)
PART: Final = 26  # PART + coarse index
THINGS: Final = PART + len(COARSE)

STREET_CLASSES: Final = 19
AERIAL_CLASSES: Final = 6

_STREET_COARSE = (
    GROUND, GROUND, STRUCTURE, STRUCTURE, THIN, THIN, THIN, THIN, PLANT, GROUND,
    BACKDROP, LIVING, LIVING, VEHICLE, VEHICLE, VEHICLE, VEHICLE, VEHICLE, VEHICLE, OTHER,
)  # fmt: skip
_AERIAL_COARSE = (GROUND, STRUCTURE, GROUND, PLANT, VEHICLE, OTHER)

LABEL_OF: Final[NDArray[np.uint8]] = np.full(256, IGNORE, np.uint8)
LABEL_OF[:STREET_CLASSES] = np.arange(STREET_CLASSES)
LABEL_OF[SEALED : SEALED + AERIAL_CLASSES] = np.arange(AERIAL_CLASSES)

COARSE_OF: Final[NDArray[np.uint8]] = np.full(256, IGNORE, np.uint8)
COARSE_OF[:THINGS] = np.array(_STREET_COARSE + _AERIAL_COARSE + tuple(range(len(COARSE))), np.uint8)

# Things that lie on the ground: shadows fall on them, and their depth follows the row in a perspective view.
FLAT: Final[NDArray[np.float32]] = np.zeros(256, np.float32)
FLAT[[ROAD, SIDEWALK, TERRAIN, SEALED, LAWN, CLUTTER, PART + GROUND]] = 1.0
# A car's own shadow starts beneath it.
FLAT[AUTO] = 0.25

Colour = tuple[int, int, int]

# Sixteen colours each: objects of one material differ from each other by their variant.
_SPREADS: Final[dict[str, tuple[Colour, ...]]] = {
    "paint": (
        (225, 225, 225), (185, 188, 192), (40, 42, 46), (110, 114, 120), (168, 30, 32), (28, 60, 130), (210, 212, 215),
        (60, 64, 70), (24, 30, 60), (120, 20, 30), (150, 155, 160), (36, 90, 70), (200, 190, 160), (90, 130, 180),
        (214, 120, 30), (235, 200, 50),
    ),
    "facade": (
        (196, 180, 150), (168, 110, 86), (150, 148, 144), (214, 202, 176), (182, 150, 120), (130, 120, 112),
        (205, 190, 170), (160, 92, 74), (188, 186, 182), (170, 160, 130), (220, 214, 200), (140, 104, 90),
        (198, 160, 110), (120, 126, 134), (176, 140, 128), (206, 176, 140),
    ),
    "roof": (
        (150, 78, 60), (108, 106, 108), (96, 94, 96), (132, 128, 124), (150, 146, 144), (84, 80, 80), (176, 172, 166),
        (110, 104, 100), (140, 92, 74), (74, 76, 82), (158, 150, 146), (190, 186, 178), (122, 112, 106), (98, 92, 88),
        (146, 140, 132), (116, 116, 122),
    ),
    "tiles": (
        (176, 84, 58), (164, 74, 54), (186, 98, 70), (150, 66, 50), (170, 90, 66), (158, 80, 60), (190, 104, 78),
        (142, 70, 56), (180, 90, 60), (168, 82, 62), (154, 72, 52), (184, 110, 84), (130, 92, 80), (172, 78, 52),
        (160, 86, 66), (120, 84, 74),
    ),
    "cloth": (
        (40, 46, 70), (170, 40, 44), (60, 60, 64), (220, 216, 208), (36, 80, 140), (90, 70, 50), (30, 30, 34),
        (200, 160, 40), (70, 110, 80), (150, 90, 130), (110, 110, 116), (190, 90, 50), (50, 60, 90), (140, 130, 110),
        (80, 30, 40), (210, 120, 130),
    ),
    "transit": (
        (190, 34, 36), (214, 178, 40), (40, 84, 150), (226, 224, 216), (50, 120, 80), (196, 90, 34), (170, 28, 40),
        (220, 190, 60), (60, 100, 170), (210, 210, 205), (40, 100, 70), (150, 40, 50), (180, 140, 40), (90, 96, 104),
        (130, 60, 110), (230, 130, 40),
    ),
    "any": (
        (200, 50, 50), (50, 110, 200), (60, 160, 80), (230, 200, 60), (150, 80, 170), (240, 240, 235), (40, 40, 46),
        (230, 130, 40), (120, 190, 200), (170, 120, 80), (240, 150, 170), (90, 90, 100), (130, 30, 50), (30, 60, 90),
        (190, 210, 120), (110, 70, 50),
    ),
}  # fmt: skip


class Material(NamedTuple):
    """A material: mean colour (or a spread of them) and how it answers to light and weather."""

    colour: Colour
    spread: str = ""  # key of the sixteen colours; empty: the one colour
    grain: float = 0.05  # amplitude of fine texture
    blotch: float = 0.05  # amplitude of coarse texture
    nir: float = 0.0  # reflectance in the near infrared; 0: follows from its colour, as minerals and paints
    withered: tuple[Colour, float] | None = None  # a plant's colour and infrared out of its season
    snow: float = 0.0  # how much snow stays on it
    glow: float = 0.0  # light of its own, seen at night
    lit: float = 1.0  # share of its variants that glow


_MATERIALS: Final[dict[str, Material]] = {
    "void": Material((40, 42, 44), grain=0.03),
    "sky": Material((150, 185, 225), grain=0.0, blotch=0.0, nir=0.25),
    "asphalt": Material((92, 92, 96), grain=0.045, blotch=0.06, snow=0.42),
    "marking": Material((205, 205, 198), grain=0.03, snow=0.4),
    "paving": Material((152, 142, 136), grain=0.06, blotch=0.05, snow=0.85),
    "kerb": Material((176, 172, 166), snow=0.7),
    "facade": Material((0, 0, 0), "facade", grain=0.045, blotch=0.06, snow=0.06),
    "window": Material((64, 76, 92), grain=0.08, blotch=0.12, nir=0.15, glow=0.75, lit=0.3),
    "shop": Material((96, 84, 80), "any", grain=0.15, glow=0.55, lit=0.7),
    "roof": Material((0, 0, 0), "roof", grain=0.045, blotch=0.06, snow=1.0),
    "tiles": Material((0, 0, 0), "tiles", grain=0.055, blotch=0.06, snow=1.0),
    "wall": Material((150, 128, 116), grain=0.09, blotch=0.08, snow=0.15),
    "fence": Material((132, 112, 92), grain=0.1, snow=0.1),
    "rail": Material((206, 204, 198), grain=0.05),
    "pole": Material((112, 114, 116), grain=0.04),
    "lamp": Material((230, 226, 210), grain=0.0, glow=2.4),
    "tl-body": Material((36, 40, 36), grain=0.02),
    "tl-red": Material((235, 50, 40), grain=0.0, glow=1.6),
    "tl-amber": Material((250, 190, 40), grain=0.0, glow=1.6),
    "tl-green": Material((60, 225, 130), grain=0.0, glow=1.6),
    "sign-red": Material((206, 36, 40), grain=0.02, glow=0.15),
    "sign-blue": Material((30, 80, 180), grain=0.02, glow=0.15),
    "sign-white": Material((238, 238, 234), grain=0.02, glow=0.15),
    "sign-yellow": Material((244, 204, 40), grain=0.02, glow=0.15),
    "leaf": Material((72, 106, 48), grain=0.16, blotch=0.14, nir=0.68, withered=((124, 106, 88), 0.52), snow=0.5),
    "needle": Material((44, 78, 50), grain=0.14, blotch=0.12, nir=0.52, withered=((60, 78, 56), 0.51), snow=0.6),
    "trunk": Material((84, 66, 50), grain=0.1),
    "grass": Material((122, 140, 66), grain=0.07, blotch=0.1, nir=0.7, withered=((146, 140, 92), 0.64), snow=1.0),
    "soil": Material((150, 124, 90), grain=0.08, blotch=0.1, snow=0.9),
    "skin": Material((206, 160, 130), grain=0.03),
    "hair": Material((60, 44, 34), grain=0.05),
    "cloth": Material((0, 0, 0), "cloth", grain=0.07, nir=0.55),
    "helmet": Material((0, 0, 0), "any", grain=0.02),
    "paint": Material((0, 0, 0), "paint", grain=0.02, blotch=0.03, snow=0.2),
    "glass": Material((46, 56, 66), grain=0.05, blotch=0.12, nir=0.12, glow=0.1, lit=0.5),
    "tyre": Material((28, 28, 30), grain=0.05),
    "tail": Material((200, 30, 30), grain=0.0, glow=1.5),
    "head": Material((240, 236, 220), grain=0.0, glow=2.6),
    "transit": Material((0, 0, 0), "transit", grain=0.02, snow=0.15),
    "cargo": Material((214, 212, 206), "paint", grain=0.03, snow=0.15),
    "metal": Material((150, 152, 156), grain=0.05),
    "frame": Material((0, 0, 0), "any", grain=0.02),
    "bin": Material((70, 84, 74), grain=0.06, snow=0.2),
    "rubble": Material((158, 146, 128), grain=0.22, blotch=0.15, snow=0.7),
    "water": Material((58, 92, 110), grain=0.05, blotch=0.08, nir=0.04),
    "pool": Material((96, 176, 200), grain=0.02, nir=0.05),
    "court": Material((172, 88, 62), grain=0.03, snow=1.0),
    "panel": Material((38, 48, 82), grain=0.03, nir=0.12, snow=0.7),
    "plain": Material((0, 0, 0), "any", grain=0.06, blotch=0.06),
    "fur": Material((150, 112, 72), "", grain=0.15, blotch=0.1),
}

MATERIAL: Final[dict[str, int]] = {name: index for index, name in enumerate(_MATERIALS)}
MATERIALS: Final = len(_MATERIALS)


def _base(withered: bool = False) -> NDArray[np.float32]:
    """Colours before any style: (MATERIALS, 16, 3), 0..1."""
    table = np.empty((MATERIALS, 16, 3), np.float32)
    for row, material in zip(table, _MATERIALS.values(), strict=True):
        colour = material.withered[0] if withered and material.withered else material.colour
        row[:] = _SPREADS[material.spread] if material.spread else colour
        if not material.spread:
            row *= np.linspace(0.93, 1.07, 16, dtype=np.float32)[:, None]
    return table / 255.0


def _column(field: str) -> NDArray[np.float32]:
    return np.array([getattr(material, field) for material in _MATERIALS.values()], np.float32)


BASE: Final = _base()
GRAIN: Final = _column("grain")
BLOTCH: Final = _column("blotch")
NIR: Final = _column("nir")
WITHERED: Final = _base(withered=True)
WITHERED_NIR: Final = np.array([x.withered[1] if x.withered else x.nir for x in _MATERIALS.values()], np.float32)
SNOW: Final = _column("snow")
# (MATERIALS, 16): which variants of a material are switched on at night.
GLOW: Final = _column("glow")[:, None] * (np.arange(16)[None] < 16 * _column("lit")[:, None])
