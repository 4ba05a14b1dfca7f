"""Which styles each domain shows: boxes of ranges, composed from named parts. Nothing here knows geometry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kdbench.data.synthetic.styles import Ranges


def box(*parts: Ranges, **ranges: tuple[float, float]) -> Ranges:
    """Later parts override earlier ones; ranges come last."""
    merged: dict[str, tuple[float, float]] = {}
    for part in (*parts, ranges):
        merged.update(part)
    return merged


def _at(value: float) -> tuple[float, float]:
    return value, value


_CLEAN: Final = box(blur=(0.15, 0.3), noise=(0.0, 0.008))
_OVERCAST: Final = box(sun=(0.1, 0.3), softness=(0.8, 1.0), clouds=(0.6, 0.85))
_SUNNY: Final = box(sun=(0.8, 1.0), softness=(0.05, 0.2), clouds=(0.1, 0.35), exposure=(1.1, 1.25))
_ACDC: Final = box(
    palette=_at(5), palette_gap=_at(0.16), palette_jitter=(0.03, 0.07), blur=(0.25, 0.45), noise=(0.01, 0.025),
    jpeg=(0.2, 0.5), saturation=(0.7, 0.9), sun=(0.1, 0.3), softness=(0.8, 1.0), clouds=(0.5, 0.9),
)  # fmt: skip

_GTAV: Final = box(
    _CLEAN, _SUNNY, palette=_at(1), palette_gap=_at(0.1), palette_jitter=(0.02, 0.05), saturation=(1.2, 1.4),
    warmth=(0.1, 0.3), texture=(0.5, 0.8), blotch=(0.5, 0.8), contrast=(1.1, 1.2), sky=(0.95, 1.1),
)  # fmt: skip
_CITYSCAPES: Final = box(
    _OVERCAST, palette=_at(2), palette_gap=_at(0.14), palette_jitter=(0.03, 0.06), saturation=(0.5, 0.65),
    tint=(0.03, 0.07), warmth=(-0.15, 0.0), texture=(0.9, 1.2), exposure=(0.75, 0.9), gamma=(1.05, 1.2),
    sky=(1.15, 1.35), blur=(0.25, 0.4), noise=(0.008, 0.016), contrast=(0.9, 1.0),
)  # fmt: skip
_BDD: Final = box(
    palette=_at(3), palette_gap=_at(0.18), palette_jitter=(0.05, 0.1), saturation=(0.75, 1.05), blur=(0.5, 0.8),
    noise=(0.012, 0.03), jpeg=(0.4, 0.9), vignette=(0.15, 0.4), contrast=(1.05, 1.2), softness=(0.2, 0.6),
)  # fmt: skip
_BDD_DAY: Final = box(
    _BDD, sun=(0.5, 0.95), sky=(1.2, 1.5), exposure=(0.95, 1.25), warmth=(-0.35, 0.15), clouds=(0.2, 0.7)
)
_BDD_DUSK: Final = box(
    _BDD, sun=(0.2, 0.5), dusk=(0.25, 0.5), exposure=(0.7, 0.85), warmth=(0.3, 0.7), night=(0.15, 0.3)
)
_MAPILLARY: Final = box(
    palette=(6, 11.99), palette_gap=_at(0.18), palette_jitter=(0.06, 0.12), saturation=(0.6, 1.3), sun=(0.3, 0.9),
    softness=(0.1, 0.9), warmth=(-0.3, 0.45), exposure=(0.75, 1.2), white_red=(0.86, 1.16), white_blue=(0.84, 1.16),
    tint=(-0.05, 0.05), gamma=(0.75, 1.25), contrast=(0.8, 1.2), blur=(0.15, 0.6), noise=(0.005, 0.025), clouds=(0.1,
    0.8),
    vignette=(0.0, 0.25), jpeg=(0.0, 0.7), sky=(0.9, 1.3), texture=(0.8, 1.5),
)  # fmt: skip

_AIR: Final = box(blur=(0.15, 0.35), noise=(0.006, 0.014), sun=(0.65, 0.9), softness=(0.1, 0.3), texture=(1.0, 1.3))
_POTSDAM_RGB: Final = box(
    _AIR, palette=_at(12), palette_gap=_at(0.1), palette_jitter=(0.03, 0.06), saturation=(0.75, 0.95), exposure=(0.95,
    1.1),
)  # fmt: skip
_POTSDAM_IR: Final = box(_POTSDAM_RGB, infrared=_at(1), saturation=(0.9, 1.05), exposure=(0.85, 1.0))
_VAIHINGEN_IR: Final = box(
    _AIR, infrared=_at(1), palette=_at(13), palette_gap=_at(0.2), palette_jitter=(0.03, 0.07), saturation=(0.85, 1.05),
    exposure=(0.95, 1.15), contrast=(1.05, 1.2), softness=(0.0, 0.15), sun=(0.85, 1.0), texture=(1.2, 1.7),
    white_blue=(1.0, 1.12),
)  # fmt: skip

_VARIED: Final = box(
    palette=(20, 59.99), palette_gap=(0.0, 0.25), palette_jitter=(0.05, 0.2), saturation=(0.5, 1.4), texture=(0.4, 1.6),
    blotch=(0.3, 1.6), sun=(0.1, 1.0), softness=(0.0, 1.0), warmth=(-0.4, 0.5), exposure=(0.75, 1.2), clouds=(0.0, 0.9),
    sky=(0.8, 1.3), blur=(0.15, 0.7), noise=(0.0, 0.03), white_red=(0.88, 1.14), white_blue=(0.86, 1.14),
    contrast=(0.8, 1.25), gamma=(0.75, 1.3), vignette=(0.0, 0.4), jpeg=(0.0, 0.6),
)  # fmt: skip
_WIDEST: Final = box(
    _VARIED, palette=(60, 119.99), palette_gap=(0.0, 0.4), palette_jitter=(0.05, 0.32), saturation=(0.1, 1.8),
    texture=(0.2, 2.4),
    blotch=(0.2, 2.4), hatch=(-1.2, 1.2), warmth=(-0.9, 1.0), exposure=(0.55, 1.4), sky=(0.6, 1.6), blur=(0.1, 1.1),
    noise=(0.0, 0.07), white_red=(0.75, 1.3), white_blue=(0.75, 1.3), tint=(-0.12, 0.12), contrast=(0.6, 1.5),
    gamma=(0.6, 1.6),
    black=(0.0, 0.15), infrared=(0.0, 0.55), dusk=(0.0, 0.3),
)  # fmt: skip

BOXES: Final[Mapping[str, tuple[tuple[float, Ranges], ...]]] = {
    "gtav": (
        (0.8, _GTAV),
        (0.2, box(_GTAV, sun=(0.5, 0.8), dusk=(0.1, 0.2), warmth=(0.35, 0.6), exposure=(0.95, 1.1))),
    ),
    "cityscapes": ((1.0, _CITYSCAPES),),
    "bdd100k": (
        (0.72, _BDD_DAY),
        (0.2, _BDD_DUSK),
        (0.08, box(_BDD_DUSK, night=(0.5, 0.65), exposure=(1.0, 1.2), dusk=_at(0))),
    ),
    "mapillary": ((1.0, _MAPILLARY),),
    "acdc-night": (
        (
            1.0,
            box(_ACDC, night=(0.72, 0.85), noise=(0.025, 0.05), gamma=(0.8, 0.95), sky=(0.45, 0.7), warmth=(0.1, 0.4)),
        ),
    ),
    "acdc-snow": (
        (
            1.0,
            box(
                _ACDC,
                snow=(0.62, 0.9),
                flakes=(0.3, 0.8),
                fog=(0.002, 0.006),
                warmth=(-0.35, -0.1),
                exposure=(0.85, 1.0),
            ),
        ),
    ),
    "acdc-fog": ((1.0, box(_ACDC, fog=(0.012, 0.028), sky=(1.0, 1.2), contrast=(0.9, 1.05))),),
    "acdc-rain": (
        (
            1.0,
            box(
                _ACDC,
                rain=(0.5, 0.95),
                wet=(0.55, 0.95),
                fog=(0.003, 0.008),
                exposure=(0.6, 0.8),
                warmth=(-0.4, -0.15),
                blur=(0.35, 0.65),
            ),
        ),
    ),
    "potsdam-rgb": ((1.0, _POTSDAM_RGB),),
    "potsdam-irrg": ((1.0, _POTSDAM_IR),),
    "vaihingen-irrg": ((1.0, _VAIHINGEN_IR),),
    "proxy": (
        (0.85, _VARIED),
        (0.08, box(_VARIED, fog=(0.004, 0.015))),
        (0.07, box(_VARIED, dusk=(0.1, 0.4), night=(0.1, 0.4))),
    ),
    "web": (
        (0.6, _WIDEST),
        (0.1, box(_WIDEST, fog=(0.004, 0.04))),
        (0.1, box(_WIDEST, night=(0.3, 0.8), sky=(0.4, 0.9))),
        (0.1, box(_WIDEST, snow=(0.4, 0.9), flakes=(0.0, 0.9))),
        (0.1, box(_WIDEST, rain=(0.2, 0.9), wet=(0.0, 1.0))),
    ),
}
