"""Appearance: domains with disjoint styles, and reflectance in and beyond the visible bands."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest

from kdbench.synthetic import DOMAINS, NEUTRAL
from kdbench.synthetic.appearances import BOXES, WEB_FROM_ABOVE
from kdbench.synthetic.canvas import Rng
from kdbench.synthetic.styles import BANDS, Ranges, Style, colours, sample
from kdbench.synthetic.vocabulary import BASE, MATERIAL, MATERIALS


def apart(one: Ranges, other: Ranges) -> bool:
    """Return whether some field's ranges do not overlap; palettes and bands are numbered by the whole part."""
    for field, neutral in NEUTRAL.items():
        (a, b), (c, d) = (
            (int(low), int(high)) if field in ("palette", "bands") else (low, high)
            for low, high in (box.get(field, (neutral, neutral)) for box in (one, other))
        )
        if b < c or d < a:
            return True
    return False


@pytest.mark.parametrize(("one", "other"), list(combinations(BOXES, 2)))
def test_no_two_domains_share_a_style(one: str, other: str) -> None:
    assert all(apart(a, b) for (_, a), (_, b) in product(DOMAINS[one].boxes, DOMAINS[other].boxes))


def test_ranges_run_upwards_and_weights_sum_to_one() -> None:
    assert set(BOXES) == set(DOMAINS)
    for boxes in (*BOXES.values(), WEB_FROM_ABOVE):
        assert sum(weight for weight, _ in boxes) == pytest.approx(1)
        assert all(low <= high for _, box in boxes for low, high in box.values())


def test_nothing_but_the_infrared_benchmarks_shows_their_bands() -> None:
    shown = {name: {int(box.get("bands", (0, 0))[0]) for _, box in spec.boxes} for name, spec in DOMAINS.items()}
    assert {name for name, bands in shown.items() if 1 in bands} == {"potsdam-irrg", "vaihingen-irrg"}


@pytest.mark.parametrize("bands", range(len(BANDS)))
def test_bands_select_from_infrared_red_green_blue(bands: int) -> None:
    rgb, _ = colours(Style(), Rng("x"))
    table, _ = colours(Style(bands=bands), Rng("x"))
    for channel, source in enumerate(BANDS[bands]):
        assert source == 0 or np.allclose(table[channel], rgb[source - 1], atol=1e-5)


def test_fields_since_version_2_leave_version_1_as_it_was() -> None:
    """They draw no number where no domain names them: else every later number of a scene would be another."""
    box = DOMAINS["gtav"].styles[0][1]
    plain, rng = sample(box, Rng("test")), Rng("test")
    assert sample({**box, "season": (0.2, 0.4)}, rng) == replace(plain, season=pytest.approx(0.3, abs=0.1))
    assert plain.season == plain.mineral == 0


def test_minerals_go_on_into_the_infrared_as_they_rise_and_plants_wither() -> None:
    """A brick that reflects twice as much red as green against a grey one, by hand; plants against their table."""
    style = Style(bands=1, mineral=1.0, season=0.0)
    table = colours(style, Rng("x"))[0].reshape(3, MATERIALS, 16)
    brick, stone = MATERIAL["tiles"], MATERIAL["asphalt"]
    # The thirteenth tile is (130, 92, 80): 1.1 * 130 / 255 * 130 / 92. Asphalt is as red as it is green.
    assert table[0, brick, 12] == pytest.approx(0.79241, abs=1e-5)
    assert table[0, stone] == pytest.approx(1.1 * BASE[stone, :, 0], rel=1e-5)
    withered = colours(replace(style, season=1.0), Rng("x"))[0].reshape(3, MATERIALS, 16)
    leaf = MATERIAL["leaf"]
    assert withered[1, leaf, -1] == pytest.approx(124 / 255 * 1.07, rel=1e-5)
    red = withered[1, leaf]
    assert withered[0, leaf, 8:] == pytest.approx(0.52 * (0.4 + 0.6 * red / red.mean())[8:], rel=1e-5)
    assert withered[1:, leaf, 0] == pytest.approx(table[1:, leaf, 0])
