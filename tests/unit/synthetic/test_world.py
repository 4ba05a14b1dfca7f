"""The world is frozen: label maps hash as they did, pictures look as they did, and causes can be adjusted by name."""

from __future__ import annotations

import importlib.util
import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdbench.data.rendered import RenderedSet
from kdbench.data.sources import DataSources
from kdbench.errors import KdbenchError
from kdbench.plugins import load_benchmark
from kdbench.protocol import SMOKE
from kdbench.synthetic import DOMAINS, NEUTRAL, describe, draw
from kdbench.synthetic.canvas import Rng
from kdbench.synthetic.domains import _style_box
from kdbench.synthetic.styles import sample

GOLDEN = Path(__file__).parents[2] / "golden"
SIZE = (64, 128)
script = importlib.util.spec_from_file_location("draw_world", GOLDEN / "draw_world.py")
draw_world = importlib.util.module_from_spec(script)
script.loader.exec_module(draw_world)


@pytest.mark.parametrize("domain", DOMAINS)
def test_label_maps_hash_as_frozen(domain: str) -> None:
    frozen = json.loads((GOLDEN / DOMAINS[domain].world / "labels.json").read_text())
    assert draw_world.label_hashes(domain) == frozen[domain]


@pytest.mark.parametrize("domain", DOMAINS)
def test_pictures_agree_within_two_grey_levels_on_all_but_a_thousandth_of_the_pixels(domain: str) -> None:
    """In every box of styles that the domain has; the depths too."""
    folder = GOLDEN / DOMAINS[domain].world
    for name, picture in draw_world.examples(domain).items():
        frozen = np.asarray(Image.open(folder / f"{name}.png")).astype(int).reshape(*SIZE, -1)
        gap = np.abs(np.asarray(picture).astype(int).reshape(*SIZE, -1) - frozen).max(axis=-1)
        assert (gap > 2).mean() <= 0.001, name


def test_a_cause_is_adjusted_by_name_and_leaves_the_labels() -> None:
    clear = draw("cityscapes", "val", 4, SIZE)
    misty = draw("cityscapes", "val", 4, SIZE, {"fog": (0.05, 0.05)})
    assert np.array_equal(clear.label, misty.label)
    sharpness = [np.abs(np.diff(scene.image.astype(int), axis=1)).mean() for scene in (clear, misty)]
    assert sharpness[1] < 0.75 * sharpness[0]


def test_geometry_is_adjusted_by_name() -> None:
    near, far = (draw("cityscapes", "val", 4, SIZE, {"focal": (f, f)}).label for f in (0.8, 2.0))
    assert not np.array_equal(near, far)
    wide = draw("potsdam-rgb", "val", 0, SIZE, {"extent": (90, 90)})
    assert not np.array_equal(wide.label, draw("potsdam-rgb", "val", 0, SIZE).label)


@pytest.mark.parametrize(
    ("adjust", "message"),
    [
        ({"fogg": (0, 1)}, "fogg.*fog"),
        ({"fog": (1, 0)}, "the smaller first"),
        ({"fog": 0.02}, "two numbers"),
        ({"fog": (0, float("nan"))}, "two numbers"),
        ({"bands": (5, 5)}, "from 0 to 4"),
        ({"focal": (0, 1)}, "from 0.05"),
        ({"extent": (1, 2)}, "extent"),
    ],
)
def test_a_wrong_adjustment_says_what_to_do(adjust: dict[str, tuple[float, float]], message: str) -> None:
    with pytest.raises(KdbenchError, match=message):
        draw("cityscapes", "val", 0, SIZE, adjust)


def test_the_published_ranges_hold_every_style() -> None:
    for name, spec in DOMAINS.items():
        ranges = describe()[name]
        for styles, index in product(filter(None, (spec.styles, spec.styles_from_above)), range(60)):
            rng = Rng("test", name, index)
            style = sample(_style_box(styles, rng), rng)
            for field, value in vars(style).items():
                low, high = ranges.get(field, (NEUTRAL[field],) * 2)
                assert low <= value <= high, (name, field)


def test_an_adjusted_set_is_another_set(tmp_path: Path) -> None:
    plain, misty = (
        RenderedSet("city", "cityscapes", "val", 2, SIZE, tmp_path, adjust) for adjust in ({}, {"fog": (0.05, 0.05)})
    )
    assert plain.identity != misty.identity
    assert not np.array_equal(plain.arrays["image"], misty.arrays["image"])
    assert np.array_equal(plain.arrays["label"], misty.arrays["label"])


@pytest.mark.parametrize(("name", "data_source"), [("c2a", "synthetic-v1"), ("p2r", "synthetic-v2")])
def test_a_benchmark_is_of_the_version_of_its_domains(tmp_path: Path, name: str, data_source: str) -> None:
    data_sources, benchmark = DataSources(SMOKE, tmp_path), load_benchmark(name)
    assert data_sources.data_source_of(benchmark) == data_source
    assert {data_sources.val(domain).data_source for domain in benchmark.evaluated()} == {data_source}
    assert data_sources.proxy(benchmark.proxy).data_source == "synthetic-v1"
