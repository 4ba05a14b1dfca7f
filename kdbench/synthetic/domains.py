"""The table of domains and draw(), the one door into the built-in world."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from kdbench.errors import KdbenchError, unknown
from kdbench.synthetic.aerial import AerialConfig, aerial
from kdbench.synthetic.appearances import BOXES, WEB_FROM_ABOVE
from kdbench.synthetic.canvas import Rng, SceneLayout
from kdbench.synthetic.objects import SUBJECTS, subject
from kdbench.synthetic.render import render
from kdbench.synthetic.street import StreetConfig, street
from kdbench.synthetic.styles import BANDS, CAUSES, TILE_H, TILE_W, Ranges, Style, sample
from kdbench.synthetic.vocabulary import AERIAL_CLASSES, BASE, COARSE_OF, IGNORE, LABEL_OF, STREET_CLASSES

Geometry = TypeVar("Geometry", StreetConfig, AerialConfig)
_NOTHING: Final[Ranges] = MappingProxyType({})
_STYLE: Final = frozenset(name for names in CAUSES.values() for name in names)

SPLITS: Final = ("train", "val")
CATEGORIES: Final[tuple[str, ...]] = (*SUBJECTS, "street scene", "aerial scene")
OBJECTS: Final = len(CATEGORIES)
SMALLEST: Final = 16
SHORTEST: Final = 0.05
"""The smallest length or share that a geometry can be drawn with."""
NEUTRAL: Final = MappingProxyType({f.name: getattr(Style(), f.name) for f in fields(Style)})
"""What a style's fields are where a domain does not name them."""

Kind = Literal["street", "aerial", "collection"]
WORLDS: Final[Mapping[Kind | Literal["web"], str]] = MappingProxyType(
    {"street": "synthetic-v1", "aerial": "synthetic-v2", "collection": "synthetic-v1", "web": "synthetic-v2"}
)
"""The version of each kind of domain, or of one domain: what is drawn never changes under one name."""


@dataclass(frozen=True)
class Scene:
    """One sample of a domain."""

    image: NDArray[np.uint8]  # (H, W, 3)
    label: NDArray[np.uint8]  # (H, W), class of the domain's label space, 255 = ignore; collections: all 255
    coarse: NDArray[np.uint8]  # (H, W), index into COARSE
    albedo: NDArray[np.uint8]  # (H, W, 3), the materials' own colours, before any style
    material: NDArray[np.uint8]  # (H, W), what the renderer made it of: index below MATERIALS
    depth: NDArray[np.uint8]  # (H, W), 0 = far .. 255 = near; from above: height over ground
    object: int  # collections: index into CATEGORIES; -1 for the benchmark domains


@dataclass(frozen=True)
class DomainSpec:
    """A domain: whose layouts it shows and which boxes of styles, each with its weight."""

    name: str
    kind: Kind
    family: str  # domains of one family show the same ground in each split
    styles: tuple[tuple[float, Ranges], ...]
    geometry: StreetConfig | AerialConfig | None = None
    scenes: float = 0.0  # share of street and aerial scenes in a collection
    styles_from_above: tuple[tuple[float, Ranges], ...] = ()  # of a collection's aerial scenes, where they differ

    @property
    def boxes(self) -> tuple[tuple[float, Ranges], ...]:
        """Every box of styles that it has."""
        return self.styles + self.styles_from_above

    @property
    def world(self) -> str:
        """The version of the built-in world that it belongs to."""
        return WORLDS["web"] if self.name == "web" else WORLDS[self.kind]

    @property
    def classes(self) -> int:
        """Size of the label space; 0 where there are no labels."""
        return {"street": STREET_CLASSES, "aerial": AERIAL_CLASSES, "collection": 0}[self.kind]


_STREETS: Final[Mapping[str, StreetConfig]] = {
    "gtav": StreetConfig(
        lanes=(4.0, 6.5), setback=(2.0, 4.5), built=0.55, verge=0.35, traffic=0.45, parked=0.45, people=0.65,
        curve=0.005, hill=0.0008, bonnet=0.15,
    ),
    "cityscapes": StreetConfig(
        horizon=(0.4, 0.46), lanes=(3.2, 4.8), built=0.66, houses=0.2, trees=0.7, parked=0.55,
        people=0.6, curve=0.003, hill=0.0004, bonnet=0.6
    ),
    "bdd100k": StreetConfig(
        focal=(1.1, 1.6), horizon=(0.42, 0.5), lanes=(4.2, 7.0), built=0.6, traffic=0.7, parked=0.4, people=0.55,
        curve=0.003, bonnet=0.5
    ),
    "mapillary": StreetConfig(
        focal=(0.85, 1.7), horizon=(0.34, 0.56), height=(1.2, 2.6), roll=0.05, lanes=(2.8, 6.5), built=0.55, houses=0.5,
        curve=0.006, hill=0.0009, bonnet=0.15, junction=0.5,
    ),
    "acdc": StreetConfig(
        lanes=(3.2, 4.8), built=0.52, houses=0.5, verge=0.35, trees=0.6, traffic=0.45, people=0.55,
        hill=0.0008, bonnet=0.25,
    ),
    "collection": StreetConfig(
        focal=(0.9, 1.7), horizon=(0.34, 0.56), height=(1.2, 2.6), roll=0.06, lanes=(2.8, 7.0), built=0.5, houses=0.5,
        curve=0.006, hill=0.0009,
    ),
}  # fmt: skip
_POTSDAM: Final = AerialConfig()
_VAIHINGEN: Final = AerialConfig(
    extent=(46, 56), lot=(15, 20), footprint=(0.56, 0.8), flat=0.12, trees=3.0, yards=0.16, clutter=0.4
)
_TILED: Final = replace(_VAIHINGEN, extent=(48, 60), roof="tiles")
_ANYWHERE: Final = AerialConfig(extent=(34, 70), roof="roof", flat=0.4, trees=3.5)


def _table() -> Mapping[str, DomainSpec]:
    clear, adverse = (
        ("gtav", "cityscapes", "bdd100k", "mapillary"),
        ("acdc-night", "acdc-snow", "acdc-fog", "acdc-rain"),
    )
    rows = [DomainSpec(name, "street", name, BOXES[name], _STREETS[name]) for name in clear]
    rows += [DomainSpec(name, "street", name, BOXES[name], _STREETS["acdc"]) for name in adverse]
    for name, config in (("potsdam-rgb", _POTSDAM), ("potsdam-irrg", _POTSDAM), ("vaihingen-irrg", _VAIHINGEN)):
        rows.append(DomainSpec(name, "aerial", name.split("-")[0], BOXES[name], config))
    rows.append(DomainSpec("proxy", "collection", "proxy", BOXES["proxy"], scenes=0.12))
    rows.append(DomainSpec("web", "collection", "web", BOXES["web"], scenes=0.7, styles_from_above=WEB_FROM_ABOVE))
    return MappingProxyType({row.name: row for row in rows})


_ALBEDO: Final = (BASE * 255).astype(np.uint8)
DOMAINS: Final[Mapping[str, DomainSpec]] = _table()


def _lay_out(spec: DomainSpec, adjust: Ranges, split: str, index: int, height: int, width: int) -> SceneLayout:
    rng = Rng(spec.world, "layout", spec.family, split, index)
    if isinstance(spec.geometry, StreetConfig):
        return street(rng, _adjusted(spec.geometry, adjust), index, height, width)
    if isinstance(spec.geometry, AerialConfig):
        return aerial(rng, _adjusted(spec.geometry, adjust), index, height, width)
    if not rng.p(spec.scenes):
        return subject(rng, rng.i(len(SUBJECTS)), height, width)
    if rng.p(0.5):
        return street(rng, _STREETS["collection"], rng.i(16), height, width)
    return aerial(rng, rng.pick((_ANYWHERE, _POTSDAM, _TILED)), rng.i(4), height, width)


def _adjusted(geometry: Geometry, adjust: Ranges) -> Geometry:
    chosen: dict[str, Any] = {f.name: adjust[f.name] for f in fields(geometry) if f.name in adjust}
    return replace(geometry, **chosen)


def check_adjustment(domain: str, adjust: Ranges) -> None:
    """Raises where a domain is unknown, or what is adjusted in it has no such name or no such range."""
    if domain not in DOMAINS:
        raise unknown("domain of the built-in world", domain, DOMAINS)
    found = causes(domain)
    for name, span in adjust.items():
        if not any(name in names for names in found.values()):
            known = {n for group in found.values() for n in group}
            raise unknown("cause to adjust", name, known, where=f"in domain '{domain}'")
        pair = span if isinstance(span, tuple | list) and len(span) == 2 else (math.nan, math.nan)
        least = SHORTEST if name in found["geometry"] else 0.0 if name == "bands" else -math.inf
        most = len(BANDS) - 1 if name == "bands" else math.inf
        if not least <= pair[0] <= pair[1] <= most or math.isinf(pair[1] - pair[0]):
            limits = f", from {least:g} to {most:g}" if least > -math.inf else ""
            raise KdbenchError(
                f"'{name}' of domain '{domain}' cannot range over {span}: give (low, high), two numbers, the smaller "
                f"first{limits}."
            )


def _styles(spec: DomainSpec, layout: SceneLayout) -> tuple[tuple[float, Ranges], ...]:
    above = layout.horizon is None and layout.object < 0
    return spec.styles_from_above if above and spec.styles_from_above else spec.styles


def _style_box(styles: tuple[tuple[float, Ranges], ...], rng: Rng) -> Ranges:
    roll = rng.u(0, sum(weight for weight, _ in styles))
    for weight, box in styles:
        roll -= weight
        if roll < 0:
            return box
    return styles[-1][1]


def _check(domain: str, split: str, index: int, size: tuple[int, int]) -> DomainSpec:
    if domain not in DOMAINS:
        raise unknown("domain of the built-in world", domain, DOMAINS)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if index < 0:
        raise KdbenchError(f"a scene's index is 0 or more, not {index}")
    if not (SMALLEST <= size[0] <= TILE_H and SMALLEST <= size[1] <= TILE_W):
        raise KdbenchError(
            f"the built-in world draws from {SMALLEST} x {SMALLEST} to {TILE_H} x {TILE_W} (height x width), "
            f"not {size[0]} x {size[1]}"
        )
    return DOMAINS[domain]


def causes(domain: str) -> Mapping[str, tuple[str, ...]]:
    """What can be adjusted in a domain, by name: the fields of its geometry and of its style, grouped by cause."""
    geometry = DOMAINS[domain].geometry
    ranged = [f.name for f in fields(geometry) if isinstance(getattr(geometry, f.name), tuple)] if geometry else []
    return {"geometry": tuple(ranged), **CAUSES}


def describe() -> Mapping[str, Ranges]:
    """Every domain's ranges by the names of causes(): the union of its boxes, and its geometry."""
    table: dict[str, Ranges] = {}
    for name, spec in DOMAINS.items():
        ranges: dict[str, tuple[float, float]] = {
            field: getattr(spec.geometry, field) for field in causes(name)["geometry"]
        }
        for field in {field for _, box in spec.boxes for field in box}:
            spans = [box.get(field, (NEUTRAL[field],) * 2) for _, box in spec.boxes]
            ranges[field] = min(low for low, _ in spans), max(high for _, high in spans)
        table[name] = ranges
    return table


def draw(domain: str, split: str, index: int, size: tuple[int, int], adjust: Ranges = _NOTHING) -> Scene:
    """The scene of that index at size (H, W); a pure function of its arguments and of the domain's version.

    adjust: ranges that replace the domain's own, by a name of causes(); a new domain made from a known one.
    """
    spec = _check(domain, split, index, size)
    if adjust:
        check_adjustment(domain, adjust)
    layout = _lay_out(spec, adjust, split, index, *size)
    rng = Rng(spec.world, "style", domain, split, index)
    ranges = {
        **_style_box(_styles(spec, layout), rng),
        **{name: span for name, span in adjust.items() if name in _STYLE},
    }
    image = render(layout, sample(ranges, rng), rng)
    label = LABEL_OF[layout.thing] if spec.classes else np.full(size, IGNORE, np.uint8)
    category = -1
    if not spec.classes:
        category = layout.object if layout.object >= 0 else len(SUBJECTS) + (layout.horizon is None)
    albedo = _ALBEDO[layout.material, layout.tone >> 4]
    coarse = COARSE_OF[layout.thing]
    return Scene(np.ascontiguousarray(image), label, coarse, albedo, layout.material, layout.depth, category)
