"""Appearance: disjoint domains, bands, and what weather and infrared do to a picture."""

from __future__ import annotations

from functools import cache
from itertools import combinations, product

import numpy as np
import pytest
from numpy.typing import NDArray

from kdbench.synthetic import DOMAINS, Scene, draw
from kdbench.synthetic.appearances import BOXES
from kdbench.synthetic.canvas import Rng
from kdbench.synthetic.styles import BANDS, CAUSES, Ranges, Style, colours
from kdbench.synthetic.vocabulary import MATERIAL

SIZE = (64, 128)
INTEGERS = ("palette", "bands")


@cache
def val(domain: str) -> tuple[Scene, ...]:
    return tuple(draw(domain, "val", index, SIZE) for index in range(16))


def span(box: Ranges, field: str) -> tuple[float, float]:
    default = float(getattr(Style(), field))
    low, high = box.get(field, (default, default))
    return (float(int(low)), float(int(high))) if field in INTEGERS else (low, high)


def apart(one: Ranges, other: Ranges) -> bool:
    for field in Style.__dataclass_fields__:
        (a, b), (c, d) = span(one, field), span(other, field)
        if b < c or d < a:
            return True
    return False


@pytest.mark.parametrize(("one", "other"), list(combinations(BOXES, 2)))
def test_no_two_domains_share_a_style(one: str, other: str) -> None:
    assert all(apart(a, b) for (_, a), (_, b) in product(BOXES[one], BOXES[other]))


def test_ranges_run_upwards_and_weights_sum_to_one() -> None:
    assert set(BOXES) == set(DOMAINS)
    for boxes in BOXES.values():
        assert sum(weight for weight, _ in boxes) == pytest.approx(1)
        assert all(low <= high for _, box in boxes for low, high in box.values())


def test_bands_are_a_matter_of_the_sensor() -> None:
    assert "bands" in CAUSES["sensor"]
    shown = {name: {span(box, "bands") for _, box in boxes} for name, boxes in BOXES.items()}
    assert shown.pop("potsdam-irrg") == shown.pop("vaihingen-irrg") == {(1, 1)}
    assert shown.pop("web") == {(0, 0), (2, 2), (3, 3), (4, 4)}
    assert all(bands == {(0, 0)} for bands in shown.values())
    assert sum(weight for weight, box in BOXES["web"] if "bands" in box) == pytest.approx(0.24)


@pytest.mark.parametrize("bands", range(len(BANDS)))
def test_bands_select_from_infrared_red_green_blue(bands: int) -> None:
    rgb, _ = colours(Style(), Rng("x"))
    table, _ = colours(Style(bands=bands), Rng("x"))
    for channel, source in enumerate(BANDS[bands]):
        assert source == 0 or np.allclose(table[channel], rgb[source - 1], atol=1e-5)


def test_infrared_is_high_on_plants_and_absent_on_water() -> None:
    table, _ = colours(Style(bands=1), Rng("x"))
    infrared = {name: float(table[0, 16 * k : 16 * k + 16].mean()) for name, k in MATERIAL.items()}
    red = {name: float(table[1, 16 * k : 16 * k + 16].mean()) for name, k in MATERIAL.items()}
    assert infrared["water"] < 0.1 < infrared["asphalt"] < infrared["needle"] < infrared["leaf"]
    assert all(infrared[name] > 1.3 * red[name] for name in ("grass", "leaf", "needle"))
    # Minerals and paints answer about as they do in red.
    assert all(infrared[name] == pytest.approx(1.1 * red[name], rel=0.05) for name in ("asphalt", "roof", "tiles"))


def ground(domain: str, label: int) -> NDArray[np.float64]:
    colour = np.concatenate([scene.image[scene.label == label] for scene in val(domain)]).mean(axis=0)
    return np.asarray(colour, np.float64)


@pytest.mark.parametrize("domain", ["potsdam-irrg", "vaihingen-irrg"])
def test_infrared_pictures_can_be_read(domain: str) -> None:
    image = np.stack([scene.image for scene in val(domain)]).astype(float)
    assert 75 < image.mean() < 150
    assert np.mean(image.max(axis=-1) < 20) < 0.03
    assert np.mean(image.min(axis=-1) > 250) < 0.01
    # Lawns are withered more often than trees, and show soil.
    for label, ratio in ((2, 1.02), (3, 1.1)):
        red, green, blue = ground(domain, label)
        assert red > ratio * max(green, blue)
    for label in (0, 1):
        red, green, _ = ground(domain, label)
        assert red < 1.2 * green


def test_snow_lies_on_pavements_more_than_on_the_road() -> None:
    road, walk, terrain = (np.mean(ground("acdc-snow", label)) for label in (0, 1, 9))
    assert road + 15 < walk
    assert road + 15 < terrain
    assert np.mean(ground("acdc-rain", 0)) < road


def test_night_is_dark_yet_not_black() -> None:
    image = np.stack([scene.image for scene in val("acdc-night")]).astype(float)
    assert 20 < image.mean() < 70
    assert image.max(axis=-1).std() > 15
