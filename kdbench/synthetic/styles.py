"""Appearance by named cause: palette, texture, illumination, weather, sensor.

A style is one point; a domain is a box of ranges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kdbench.synthetic.canvas import Rng
from kdbench.synthetic.vocabulary import BASE, GLOW, MATERIALS, NIR, WITHERED, WITHERED_NIR

Array = NDArray[np.float32]
Ranges = Mapping[str, tuple[float, float]]

TILE_H, TILE_W = 256, 512


@dataclass(frozen=True)
class Style:
    """One appearance; the defaults change nothing. Fields are grouped by cause in CAUSES."""

    palette: float = 0.0  # which set of material colours (an integer; sets differ from each other by palette_gap)
    palette_gap: float = 0.0
    palette_jitter: float = 0.0  # of each image
    saturation: float = 1.0
    texture: float = 1.0  # gain on every material's grain
    blotch: float = 1.0  # gain on every material's coarse variation
    hatch: float = 0.0  # regular pattern on textured materials
    exposure: float = 1.0
    sun: float = 0.5  # strength of cast shadows and of shading
    softness: float = 0.5  # of shadow edges
    warmth: float = 0.0  # of the light: blue below 0, orange above
    sky: float = 1.0  # brightness of the sky
    clouds: float = 0.3
    dusk: float = 0.0  # glow towards the horizon
    night: float = 0.0
    fog: float = 0.0  # extinction, 1/m
    rain: float = 0.0
    wet: float = 0.0
    snow: float = 0.0
    flakes: float = 0.0
    blur: float = 0.3  # pixels at a height of 64
    noise: float = 0.01
    white_red: float = 1.0
    white_blue: float = 1.0
    tint: float = 0.0  # green above 0, magenta below
    contrast: float = 1.0
    gamma: float = 1.0
    black: float = 0.0  # lifted black level
    vignette: float = 0.0
    jpeg: float = 0.0
    bands: float = 0.0  # which three of infrared, red, green and blue are shown (an integer, index into BANDS)
    season: float = 0.0  # how withered plants are: 0 none, 1 half of their variants wholly
    mineral: float = 0.0  # how far a mineral's reflectance goes on changing from green over red into the infrared


CAUSES: Final[Mapping[str, tuple[str, ...]]] = {
    "palette": ("palette", "palette_gap", "palette_jitter", "saturation", "season", "mineral"),
    "texture": ("texture", "blotch", "hatch"),
    "illumination": ("exposure", "sun", "softness", "warmth", "sky", "clouds", "dusk", "night"),
    "weather": ("fog", "rain", "wet", "snow", "flakes"),
    "sensor": (
        "blur", "noise", "white_red", "white_blue", "tint", "contrast", "gamma", "black", "vignette", "jpeg", "bands",
    ),
}  # fmt: skip


_SINCE_V2: Final = ("season", "mineral")


def sample(ranges: Ranges, rng: Rng) -> Style:
    """One style out of a box of ranges."""
    # Every field draws, so that a range added to a domain leaves its other fields as they were. Those of version 2 draw
    # where they are named alone: version 1's pictures know nothing of them.
    drawn = [f for f in fields(Style) if f.name in ranges or f.name not in _SINCE_V2]
    return Style(**{f.name: rng.u(*ranges.get(f.name, (f.default, f.default))) for f in drawn})


# Indices into (infrared, red, green, blue): RGB, IRRG, two other false colours, and red alone as grey.
BANDS: Final = ((1, 2, 3), (0, 1, 2), (0, 2, 3), (1, 0, 3), (1, 1, 1))

# Grey materials vary in brightness and hardly in hue: nobody has seen a green road.
_CHROMA = np.ptp(BASE, axis=2).mean(axis=1) / BASE.mean(axis=(1, 2))
_HUE: Final[Array] = np.clip(0.12 + 1.1 * _CHROMA, 0, 0.75).astype(np.float32)[:, None, None]


@lru_cache(maxsize=64)
def _gap(palette: int) -> Array:
    """Offsets of one palette: (MATERIALS, 1, 3), about unit size."""
    return _offsets(Rng("palette", palette))


def _offsets(rng: Rng) -> Array:
    return rng.normal(MATERIALS, 1, 1) * np.float32(0.8) + rng.normal(MATERIALS, 1, 3) * _HUE


_OWN_LIGHT: Final[Array] = (GLOW[..., None] * (0.35 + 0.65 * BASE / BASE.max(axis=2, keepdims=True))).astype(np.float32)


def _mean(table: Array) -> Array:
    # Three strided reads beat a reduction over an axis of three.
    return (table[..., :1] + table[..., 1:2] + table[..., 2:]) / np.float32(3)


def _plants(season: float) -> tuple[Array, Array]:
    """Colours (MATERIALS, 16, 3) and infrared (MATERIALS, 16, 1) of withered plants, some variants sooner."""
    share = np.clip(season * np.linspace(0, 2, 16, dtype=np.float32), 0, 1)[:, None]
    own, gone = NIR[:, None, None], WITHERED_NIR[:, None, None]
    return BASE + share * (WITHERED - BASE), own + share * (gone - own)


def _rise(table: Array) -> Array:
    """How reflectance grows from green to red; the spectra of soils, bricks and tiles go on much as they rise there."""
    return np.asarray(np.clip(table[..., :1] / table[..., 1:2], 0.85, 1.6), np.float32)


def colours(style: Style, rng: Rng) -> tuple[Array, Array]:
    """Reflectance and own light of every material and variant, (3, MATERIALS * 16) each."""
    jitter = style.palette_jitter * _offsets(rng) + style.palette_gap * _gap(int(style.palette))
    base, own = _plants(style.season) if style.season > 0 else (BASE, NIR[:, None, None])
    table = base * np.exp(jitter)
    bands = BANDS[int(style.bands)]
    if style.bands >= 1:
        # Plants, water and glass answer in their own way; a variant that is redder than its material answers more.
        red = table[..., :1]
        infrared = own * np.exp(jitter[..., :1]) * (0.4 + 0.6 * red / red.mean(1, keepdims=True))
        infrared = np.where(own > 0, infrared, np.float32(1.1) * red * _rise(table) ** np.float32(style.mineral))
        table = np.concatenate((infrared, table), axis=2)[..., bands]
    grey = _mean(table)
    table = grey + style.saturation * (table - grey)
    flat = (3, MATERIALS * 16)
    return (
        np.clip(table, 0.01, 1.2).transpose(2, 0, 1).reshape(flat).astype(np.float32),
        _OWN_LIGHT.transpose(2, 0, 1).reshape(flat),
    )


def _power(rng: Rng, exponent: float) -> Array:
    """Periodic noise whose amplitude falls with frequency to the given power; unit variance."""
    fy, fx = np.fft.fftfreq(TILE_H)[:, None], np.fft.rfftfreq(TILE_W)[None]
    radius = np.maximum(np.hypot(fy, fx), 1.0 / TILE_W)
    field = np.fft.irfft2(np.fft.rfft2(rng.normal(TILE_H, TILE_W)) / radius**exponent, (TILE_H, TILE_W))
    return np.asarray((field - field.mean()) / field.std(), np.float32)


def _speckle(rng: Rng, length: int, slant: float, share: float) -> Array:
    """Sparse streaks of the given length: rain, or flakes where it is short."""
    seeds = np.maximum(rng.normal(TILE_H, TILE_W) - np.float32(share), 0)
    out = np.zeros_like(seeds)
    for step in range(length):
        out = np.maximum(out, np.roll(seeds, (step, round(slant * step)), (0, 1)))
    return np.asarray(np.minimum(out * 1.6, 1), np.float32)


@lru_cache(maxsize=1)
def tiles() -> Mapping[str, Array]:
    """Noise that every process builds once from fixed seeds; each ([3,] 2 TILE_H, 2 TILE_W) and periodic."""
    flakes = _speckle(Rng("flakes"), 1, 0, 2.3)
    flakes = np.maximum(flakes, np.roll(flakes, 1, 1) * np.float32(0.6))
    y, x = np.mgrid[:TILE_H, :TILE_W]
    hatch = np.sign(np.sin(y * np.pi / 2 + 0.3) * np.sin(x * np.pi / 4 + 0.3)).astype(np.float32)
    made = {
        "fine": np.clip(_power(Rng("fine"), 0.4), -2.5, 2.5),
        "coarse": np.clip(_power(Rng("coarse"), 1.4), -2.5, 2.5),
        "cloud": np.clip(_power(Rng("cloud"), 1.9), -2.5, 2.5),
        "white": Rng("white").normal(3, TILE_H, TILE_W),
        "hatch": hatch,
        "rain": _speckle(Rng("rain"), 7, 0.3, 2.75),
        "flakes": flakes,
    }
    return {name: np.tile(tile, (1, 2, 2) if tile.ndim == 3 else (2, 2)) for name, tile in made.items()}


@lru_cache(maxsize=32)
def radius_squared(height: int, width: int) -> Array:
    """Squared distance from the middle, 1 in the corners; (H, W)."""
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
    return np.asarray((y * y + x * x) / 2, np.float32)
