"""Which styles each domain shows: boxes of ranges, composed from named parts. Nothing here knows geometry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kdbench.synthetic.styles import Ranges


def box(*parts: Ranges, **ranges: tuple[float, float]) -> Ranges:
    """Later parts override earlier ones; ranges come last."""
    merged: dict[str, tuple[float, float]] = {}
    for part in (*parts, ranges):
        merged.update(part)
    return merged


def _at(value: float) -> tuple[float, float]:
    return value, value


# Palettes: 1 gtav, 2 cityscapes, 3 bdd100k, 5 acdc, 6..11 mapillary, 12 potsdam, 13 vaihingen, 20..59 proxy,
# 60..119 web.
_CLEAN: Final = box(blur=(0.15, 0.3), noise=(0.0, 0.008))
_OVERCAST: Final = box(sun=(0.1, 0.3), softness=(0.8, 1.0), clouds=(0.6, 0.85))
_SUNNY: Final = box(sun=(0.8, 1.0), softness=(0.05, 0.2), clouds=(0.1, 0.35), exposure=(1.1, 1.25))

_GTAV: Final = box(
    _CLEAN, _SUNNY, palette=_at(1), palette_gap=_at(0.1), palette_jitter=(0.02, 0.05), saturation=(1.2, 1.4),
    warmth=(0.1, 0.3), texture=(0.5, 0.8), blotch=(0.5, 0.8), contrast=(1.1, 1.2), sky=(0.95, 1.1),
)  # fmt: skip
_GTAV_EVENING: Final = box(_GTAV, sun=(0.5, 0.8), dusk=(0.1, 0.2), warmth=(0.35, 0.6), exposure=(0.95, 1.1))

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
_BDD_NIGHT: Final = box(_BDD_DUSK, night=(0.5, 0.65), exposure=(1.0, 1.2), dusk=_at(0))

_MAPILLARY: Final = box(
    palette=(6, 11.99), palette_gap=_at(0.18), palette_jitter=(0.06, 0.12), saturation=(0.6, 1.3), sun=(0.3, 0.9),
    softness=(0.1, 0.9), warmth=(-0.3, 0.45), exposure=(0.75, 1.2), white_red=(0.86, 1.16), white_blue=(0.84, 1.16),
    tint=(-0.05, 0.05), gamma=(0.75, 1.25), contrast=(0.8, 1.2), blur=(0.15, 0.6), noise=(0.005, 0.025),
    clouds=(0.1, 0.8), vignette=(0.0, 0.25), jpeg=(0.0, 0.7), sky=(0.9, 1.3), texture=(0.8, 1.5),
)  # fmt: skip

# One camera and one palette: the four conditions differ by weather and light only.
_ACDC: Final = box(
    palette=_at(5), palette_gap=_at(0.16), palette_jitter=(0.03, 0.07), blur=(0.25, 0.45), noise=(0.008, 0.018),
    jpeg=(0.2, 0.5), saturation=(0.7, 0.9), sun=(0.1, 0.3), softness=(0.8, 1.0), clouds=(0.5, 0.9),
)  # fmt: skip
_ACDC_NIGHT: Final = box(
    _ACDC, night=(0.72, 0.86), noise=(0.014, 0.03), gamma=(0.85, 1.0), sky=(0.5, 0.75), warmth=(0.1, 0.4)
)
_ACDC_SNOW: Final = box(
    _ACDC, snow=(0.45, 0.65), flakes=(0.2, 0.5), fog=(0.002, 0.004), warmth=(-0.3, -0.1), exposure=(0.85, 1.0)
)
_ACDC_FOG: Final = box(_ACDC, fog=(0.0045, 0.011), sky=(1.0, 1.2), contrast=(0.9, 1.05))
_ACDC_RAIN: Final = box(
    _ACDC, rain=(0.9, 1.4), wet=(0.9, 1.3), fog=(0.0045, 0.01), exposure=(0.48, 0.64), warmth=(-0.35, -0.1),
    blur=(0.4, 0.7),
)  # fmt: skip

_AIR: Final = box(blur=(0.15, 0.35), noise=(0.004, 0.01), sun=(0.5, 0.75), softness=(0.2, 0.4))
_POTSDAM_RGB: Final = box(
    _AIR,
    palette=_at(12),
    palette_gap=_at(0.06),
    palette_jitter=(0.03, 0.06),
    saturation=(0.45, 0.95),
    exposure=(1.0, 1.15),
    season=(0.4, 1.0),
)
# The infrared is brighter than red: a camera's balance evens them out.
_INFRARED: Final = box(bands=_at(1), mineral=_at(0.8), white_red=(0.85, 0.91), exposure=(0.95, 1.1))
_POTSDAM_IRRG: Final = box(_POTSDAM_RGB, _INFRARED, saturation=(0.65, 0.85))
_VAIHINGEN_IRRG: Final = box(
    _AIR, _INFRARED, palette=_at(13), palette_gap=_at(0.14), palette_jitter=(0.04, 0.08), saturation=(0.6, 0.8),
    season=(0.2, 0.6), contrast=(1.05, 1.2), softness=(0.05, 0.2), sun=(0.65, 0.85), blur=(0.3, 0.5),
    noise=(0.008, 0.016), white_blue=(1.0, 1.08),
)  # fmt: skip

_VARIED: Final = box(
    palette=(20, 59.99), palette_gap=(0.0, 0.22), palette_jitter=(0.05, 0.15), saturation=(0.6, 1.3),
    texture=(0.5, 1.5), blotch=(0.4, 1.5), sun=(0.1, 1.0), softness=(0.0, 1.0), warmth=(-0.3, 0.4),
    exposure=(0.8, 1.2), clouds=(0.0, 0.9), sky=(0.85, 1.25), blur=(0.15, 0.6), noise=(0.0, 0.025),
    white_red=(0.9, 1.12), white_blue=(0.88, 1.12), contrast=(0.85, 1.2), gamma=(0.8, 1.25), vignette=(0.0, 0.35),
    jpeg=(0.0, 0.6),
)  # fmt: skip
_VARIED_MIST: Final = box(_VARIED, fog=(0.004, 0.015))
_VARIED_DUSK: Final = box(_VARIED, dusk=(0.1, 0.4), night=(0.1, 0.35))

_WIDE: Final = box(
    _VARIED, palette=(60, 119.99), palette_gap=(0.0, 0.3), palette_jitter=(0.05, 0.25), saturation=(0.35, 1.55),
    texture=(0.3, 2.2), blotch=(0.3, 2.2), hatch=(-1.2, 0.8), warmth=(-0.5, 0.7), exposure=(0.68, 1.25),
    sky=(0.7, 1.4), blur=(0.1, 0.9), noise=(0.0, 0.04), white_red=(0.84, 1.18), white_blue=(0.82, 1.18),
    tint=(-0.07, 0.07), contrast=(0.75, 1.3), gamma=(0.7, 1.4), black=(0.0, 0.12), dusk=(0.0, 0.25),
)  # fmt: skip
_WIDE_FOG: Final = box(_WIDE, fog=(0.004, 0.03))
_WIDE_NIGHT: Final = box(_WIDE, night=(0.3, 0.85), sky=(0.5, 0.9), exposure=(0.85, 1.25), gamma=(0.7, 1.1))
_WIDE_SNOW: Final = box(_WIDE, snow=(0.45, 0.9), flakes=(0.0, 0.8), exposure=(0.68, 1.0))
_WIDE_RAIN: Final = box(_WIDE, rain=(0.2, 0.9), wet=(0.1, 1.0))

BOXES: Final[Mapping[str, tuple[tuple[float, Ranges], ...]]] = {
    "gtav": ((0.8, _GTAV), (0.2, _GTAV_EVENING)),
    "cityscapes": ((1.0, _CITYSCAPES),),
    "bdd100k": ((0.72, _BDD_DAY), (0.2, _BDD_DUSK), (0.08, _BDD_NIGHT)),
    "mapillary": ((1.0, _MAPILLARY),),
    "acdc-night": ((1.0, _ACDC_NIGHT),),
    "acdc-snow": ((1.0, _ACDC_SNOW),),
    "acdc-fog": ((1.0, _ACDC_FOG),),
    "acdc-rain": ((1.0, _ACDC_RAIN),),
    "potsdam-rgb": ((1.0, _POTSDAM_RGB),),
    "potsdam-irrg": ((1.0, _POTSDAM_IRRG),),
    "vaihingen-irrg": ((1.0, _VAIHINGEN_IRRG),),
    "proxy": ((0.86, _VARIED), (0.08, _VARIED_MIST), (0.06, _VARIED_DUSK)),
    "web": ((0.55, _WIDE), (0.1, _WIDE_FOG), (0.15, _WIDE_NIGHT), (0.1, _WIDE_SNOW), (0.1, _WIDE_RAIN)),
}
_ABOVE: Final = box(_WIDE, season=(0.0, 1.0), mineral=(0.0, 1.0))
# Half of what is seen from above is in false colours. Infrared, red, green stays out: it belongs to the benchmarks.
WEB_FROM_ABOVE: Final[tuple[tuple[float, Ranges], ...]] = (
    (0.5, _ABOVE),
    *((weight, box(_ABOVE, bands=_at(bands))) for bands, weight in ((2, 0.2), (3, 0.2), (4, 0.1))),
)
