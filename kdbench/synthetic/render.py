"""Layout and style to picture: each cause is one step on planar float arrays (3, H, W)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from kdbench.synthetic.canvas import Rng, SceneLayout
from kdbench.synthetic.styles import TILE_H, TILE_W, Array, Style, colours, radius_squared, tiles
from kdbench.synthetic.view import distance_table
from kdbench.synthetic.vocabulary import BLOTCH, FLAT, GRAIN, MATERIAL, PART, ROAD, SKY, SNOW

_DISTANCE = distance_table()
_SHADES = (0.3 + 0.07 * np.arange(16)).astype(np.float32)
_SKY = MATERIAL["sky"]
_HATCHED = np.isin(np.arange(len(GRAIN)), [MATERIAL[n] for n in ("paving", "wall", "roof", "tiles", "facade", "leaf")])
_LAMPS = {
    "lamp": (1.0, 0.8, 0.5),
    "head": (1.0, 0.95, 0.85),
    "tail": (1.0, 0.12, 0.08),
    "tl-red": (1.0, 0.15, 0.1),
    "tl-amber": (1.0, 0.7, 0.15),
    "tl-green": (0.2, 1.0, 0.5),
}


def _tile(name: str, rng: Rng, h: int, w: int) -> Array:
    y, x = rng.i(TILE_H), rng.i(TILE_W)
    return tiles()[name][..., y : y + h, x : x + w]


def _pixel(value: float, size: float) -> float:
    return value * size / 64


def _materials(layout: SceneLayout, style: Style, rng: Rng) -> tuple[Array, Array]:
    """Palette and texture: reflectance and own light, (3, H, W) each."""
    h, w = layout.material.shape
    base, glow = colours(style, rng)
    index = (layout.material.astype(np.intp) << 4) | (layout.tone >> 4)
    # A soft bound: the same shade is nearly black in flat light and deep in hard light.
    shades = 1 + (_SHADES - 1) * np.float32(0.55 + 0.55 * style.sun)
    gain = 1 + (np.float32(style.texture) * GRAIN)[layout.material] * _tile("fine", rng, h, w)
    gain += (np.float32(style.blotch) * BLOTCH)[layout.material] * _tile("coarse", rng, h, w)
    if style.hatch > 0:
        gain += np.float32(style.hatch) * (GRAIN * _HATCHED)[layout.material] * _tile("hatch", rng, h, w)
    gain = np.maximum(gain, 0.25) * shades[layout.tone & 15]
    picture = base.take(index, 1)
    picture *= gain
    return picture, glow.take(index, 1) if style.night > 0 else picture


def _sky(picture: Array, layout: SceneLayout, style: Style, rng: Rng) -> None:
    """Gradient, clouds and dusk on the sky, in place."""
    mask = layout.material == _SKY
    rows = int(mask.any(axis=1).nonzero()[0].max(initial=-1)) + 1
    mask, w = mask[:rows], mask.shape[1]
    horizon = layout.horizon or rows
    depth = np.clip(np.arange(rows, dtype=np.float32) / horizon, 0, 1)[:, None]
    cloud = np.clip(0.5 + 0.6 * _tile("cloud", rng, rows, w) - (1 - 2 * style.clouds), 0, 1)
    cloud *= np.float32(min(1.0, 1.6 * style.clouds))
    grey = picture[1, :rows] * np.float32(1.12)
    for channel, low in enumerate((0.22, 0.12, 0.0)):
        plane = picture[channel, :rows] * (1 + np.float32(low) * depth)
        plane += cloud * (grey - plane)
        plane *= np.float32(style.sky)
        plane += np.float32(style.dusk * (0.5, 0.2, -0.12)[channel]) * depth
        np.copyto(picture[channel, :rows], plane, where=mask)


def _snow(picture: Array, layout: SceneLayout, style: Style, rng: Rng) -> None:
    """White covers where snow stays; slush on the road, with borders where it was pushed aside, in place."""
    h, w = layout.material.shape
    hold = SNOW[layout.material]
    spread = _blurred((hold * 255).astype(np.uint8), _pixel(1.8, h)) * np.float32(1.25 / 255)
    hold = np.where(FLAT[layout.thing] > 0, np.maximum(hold, np.minimum(spread, 1)), hold)
    cover = np.clip(2.2 * (style.snow * hold - 0.2) + 0.16 * hold * _tile("coarse", rng, h, w), 0, 0.92)
    shade = 0.75 + 0.25 * _SHADES[layout.tone & 15]
    for channel, white in enumerate((0.86, 0.89, 0.94)):
        picture[channel] += cover * (white * shade - picture[channel])


def _light(picture: Array, layout: SceneLayout, style: Style) -> Array:
    """Cast shadows, the light's colour and its strength: (3, H, W)."""
    h = layout.material.shape[0]
    shadow: NDArray[np.uint8] = layout.shadow
    radius = _pixel(2.0 * style.softness, h)
    if radius > 0.3:
        shadow = np.asarray(Image.fromarray(shadow).filter(ImageFilter.BoxBlur(radius)))
    dark = FLAT[layout.thing] * shadow * np.float32((0.18 + 0.52 * style.sun) / 255)
    dark = (1 - dark) * np.float32(style.exposure)
    warm = (1 + 0.28 * style.warmth, 1 + 0.04 * style.warmth, 1 - 0.3 * style.warmth)
    return picture * dark * np.array(warm, np.float32)[:, None, None]


def _night(picture: Array, glow: Array, layout: SceneLayout, style: Style) -> Array:
    """A dark scene lit by lamps, windows and the camera's own headlights."""
    h, w = layout.material.shape
    halo = Image.new("RGB", (w, h))
    pen = ImageDraw.Draw(halo)
    for x, y, r, kind in layout.lights:
        r = max(_pixel(0.8, h), min(_pixel(5, h), 0.5 * r))
        pen.ellipse((x - r, y - r, x + r, y + r), tuple(round(190 * c) for c in _LAMPS[kind]))
    pools = [(w * 0.5, h * 0.9, w * 0.42, h * 0.34)]
    cone = Image.new("L", (w, h))
    cone_pen = ImageDraw.Draw(cone)
    for x, y, r, kind in layout.lights:
        if kind == "lamp":
            ground = min(h, y + 2.6 * r)
            pools.append((x, ground, 2.2 * r, 0.7 * r))
    for x, y, rx, ry in pools:
        cone_pen.ellipse((x - rx, y - ry, x + rx, y + ry), 150)
    lit = np.asarray(cone.filter(ImageFilter.BoxBlur(_pixel(6, h))), np.float32) / 255
    spill = np.asarray(halo.filter(ImageFilter.BoxBlur(_pixel(2.4, h))), np.float32).transpose(2, 0, 1) / 255
    k = np.float32(style.night)
    ambient = (1 - 0.8 * k) * np.array((1.0, 1.0, 1.12), np.float32)[:, None, None]
    sky = np.where(layout.thing == SKY, 1 - 0.55 * k, 1).astype(np.float32)
    warm = np.array((1.0, 0.86, 0.6), np.float32)[:, None, None]
    lit_scene = picture * (sky * ambient + k * warm * (0.95 * lit) + k * 0.9 * spill) + k * (0.5 * spill + glow * 0.75)
    return lit_scene.astype(np.float32, copy=False)


def _weather(picture: Array, layout: SceneLayout, style: Style, rng: Rng) -> Array:
    """Wet ground, fog by distance, streaks and flakes."""
    h, w = layout.material.shape
    horizon = layout.horizon
    if style.wet > 0 and horizon is not None:
        rows = min(horizon, h - horizon)
        ground = layout.thing[horizon : horizon + rows]
        wet = ((ground == ROAD) | (ground == PART)) * np.float32(0.4 * style.wet)
        below = picture[:, horizon : horizon + rows]
        mirror = picture[:, horizon - rows : horizon][:, ::-1].copy()
        below *= 1 - np.float32(0.3 * style.wet)
        below += wet * (mirror - below)
    haze = np.float32(0.55 - 0.35 * style.night) * np.array((1.26, 1.3, 1.34), np.float32)
    if style.fog > 0:
        far = _DISTANCE if horizon is not None else np.full(256, 40, np.float32)
        clear = np.exp(-np.float32(style.fog) * far)[layout.depth]
        picture = picture * clear + (1 - clear) * haze[:, None, None]
    if style.rain > 0:
        picture = picture + np.float32(style.rain * (0.5 - 0.3 * style.night)) * _tile("rain", rng, h, w)
    if style.flakes > 0:
        flakes = np.float32(style.flakes) * _tile("flakes", rng, h, w)
        picture = picture + flakes * (0.95 - picture)
    return picture


def _sensor(picture: Array, style: Style, rng: Rng) -> NDArray[np.uint8]:
    """Optics, white balance, noise, compression and tone curve: (H, W, 3) uint8."""
    _, h, w = picture.shape
    gain = np.array((style.white_red, 1 + style.tint, style.white_blue), np.float32)[:, None, None]
    if style.vignette > 0:
        gain = gain * (1 - np.float32(style.vignette) * radius_squared(h, w))
    picture *= gain
    if style.noise > 0:
        picture += (0.6 + 0.6 * picture) * (np.float32(style.noise) * _tile("white", rng, h, w))
    if style.jpeg > 0:
        picture = _compressed(picture, style.jpeg)
    # A table of 256: a power for each pixel would cost as much as drawing the street.
    curve = np.linspace(0, 1, 256, dtype=np.float32) ** np.float32(style.gamma)
    curve = style.black + (1 - style.black) * np.clip(0.5 + np.float32(style.contrast) * (curve - 0.5), 0, 1)
    levels = (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)
    return np.asarray((curve * 255 + 0.5).astype(np.uint8)[levels])


def _compressed(picture: Array, amount: float) -> Array:
    """Colour kept at half resolution and coarse steps, as JPEG does, at a fraction of its cost."""
    _, h, w = picture.shape
    luma = (picture[0] + picture[1] + picture[2]) / np.float32(3)
    chroma = (picture - luma)[:, : h // 2 * 2, : w // 2 * 2]
    chroma = (chroma[:, ::2, ::2] + chroma[:, 1::2, ::2] + chroma[:, ::2, 1::2] + chroma[:, 1::2, 1::2]) / 4
    step = np.float32(0.01 + 0.05 * amount)
    chroma = np.round(chroma / step) * step
    full = np.pad(chroma.repeat(2, 1).repeat(2, 2), ((0, 0), (0, h % 2), (0, w % 2)), mode="edge")
    return np.asarray(luma + full, np.float32)


def _blurred(image: NDArray[np.uint8], radius: float) -> NDArray[np.uint8]:
    if radius < 0.15:
        return np.ascontiguousarray(image)
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).filter(ImageFilter.BoxBlur(radius)))


def render(layout: SceneLayout, style: Style, rng: Rng) -> NDArray[np.uint8]:
    """The picture of a layout in a style: (H, W, 3) uint8."""
    picture, glow = _materials(layout, style, rng)
    if layout.horizon is not None:
        _sky(picture, layout, style, rng)
    if style.snow > 0:
        _snow(picture, layout, style, rng)
    picture = _light(picture, layout, style)
    if style.night > 0:
        picture = _night(picture, glow, layout, style)
    picture = _weather(picture, layout, style, rng)
    # Blur before noise, as a lens does; in 8 bits, because the image library's filter is the fast one.
    sharp = (np.clip(picture, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    soft = _blurred(sharp, _pixel(style.blur, picture.shape[1])).transpose(2, 0, 1).astype(np.float32)
    soft /= np.float32(255)
    return _sensor(soft, style, rng)
