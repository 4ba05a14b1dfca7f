"""The built-in world: purity, label spaces, class presence and the causes that set its domains apart."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from kdbench import synthetic
from kdbench.errors import KdbenchError
from kdbench.synthetic import COARSE, DOMAINS, OBJECTS, Scene, draw

SIZE = (64, 128)
STREET = [name for name, spec in DOMAINS.items() if spec.kind == "street"]
AERIAL = [name for name, spec in DOMAINS.items() if spec.kind == "aerial"]
COLLECTIONS = [name for name, spec in DOMAINS.items() if spec.kind == "collection"]
ROOT = Path(synthetic.__file__).parents[2]


@cache
def val(domain: str) -> tuple[Scene, ...]:
    return tuple(draw(domain, "val", index, SIZE) for index in range(48))


def fingerprint(scene: Scene) -> str:
    arrays = (scene.image, scene.label, scene.coarse, scene.depth)
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays) + str(scene.object).encode()).hexdigest()


def test_another_process_draws_the_same() -> None:
    code = (
        "from kdbench.synthetic import DOMAINS, draw; import hashlib\n"
        "for d in reversed(DOMAINS):\n"
        "    s = draw(d, 'val', 5, (64, 128))\n"
        "    b = b''.join(a.tobytes() for a in (s.image, s.label, s.coarse, s.depth)) + str(s.object).encode()\n"
        "    print(d, hashlib.sha256(b).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(ROOT)}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert dict(line.split() for line in out.splitlines()) == {name: fingerprint(val(name)[5]) for name in DOMAINS}


@pytest.mark.parametrize("domain", DOMAINS)
def test_splits_and_indices_show_different_scenes(domain: str) -> None:
    train = [draw(domain, "train", index, SIZE) for index in range(12)]
    prints = {scene.depth.tobytes() + scene.image.tobytes() for scene in (*train, *val(domain)[:12])}
    assert len(prints) == 24
    if domain not in COLLECTIONS:
        assert len({scene.label.tobytes() for scene in (*train, *val(domain)[:12])}) == 24


@pytest.mark.parametrize("domain", DOMAINS)
def test_shapes_types_and_ranges(domain: str) -> None:
    classes = DOMAINS[domain].classes
    for scene in val(domain)[:12]:
        assert scene.image.shape == (*SIZE, 3)
        for array in (scene.label, scene.coarse, scene.depth):
            assert array.shape == SIZE
            assert array.dtype == np.uint8
        assert scene.image.dtype == np.uint8
        assert scene.image.flags.c_contiguous
        assert np.all((scene.label < classes) | (scene.label == 255))
        assert np.all((scene.coarse < len(COARSE)) | (scene.coarse == 255))
        assert np.ptp(scene.depth) > 20
        assert scene.image.std() > 4
        assert (scene.object == -1) == (domain not in COLLECTIONS)
        assert scene.object < OBJECTS


@pytest.mark.parametrize("domain", STREET + AERIAL)
def test_every_class_shows_in_a_small_validation_split(domain: str) -> None:
    counts = np.bincount(np.concatenate([scene.label.ravel() for scene in val(domain)]), minlength=256)
    assert np.all(counts[: DOMAINS[domain].classes] >= 40), counts[: DOMAINS[domain].classes]


def test_rare_classes_take_turns_within_any_sixteen_indices() -> None:
    rare = [12, 14, 15, 16, 17, 18]
    for start in range(0, 33):
        seen = np.concatenate([scene.label.ravel() for scene in val("gtav")[start : start + 16]])
        assert np.all(np.bincount(seen, minlength=256)[rare] >= 60)


@pytest.mark.parametrize("domain", STREET)
def test_streets_are_mostly_road_building_vegetation_and_sky(domain: str) -> None:
    labels = np.concatenate([scene.label.ravel() for scene in val(domain)])
    share = np.bincount(labels, minlength=256) / labels.size
    assert share[0] > 0.25
    assert share[2] > 0.1
    assert share[8] > 0.05
    assert share[10] > 0.05
    assert share[[12, 16, 17]].max() < 0.02
    assert 0 < share[255] < 0.08


def test_collections_carry_image_labels_only() -> None:
    for domain in COLLECTIONS:
        assert all(np.all(scene.label == 255) for scene in val(domain))
        assert len({scene.object for scene in val(domain)}) > 10
        assert all(np.all(scene.coarse < len(COARSE)) for scene in val(domain) if scene.object < OBJECTS - 2)


def test_coarse_groups_merge_the_classes_of_both_label_spaces() -> None:
    for domain in ("cityscapes", "potsdam-rgb"):
        groups: dict[int, set[int]] = {}
        for scene in val(domain):
            for pair in np.unique(np.stack((scene.label.ravel(), scene.coarse.ravel())), axis=1).T:
                groups.setdefault(int(pair[0]), set()).add(int(pair[1]))
        groups.pop(255, None)
        assert all(len(found) == 1 for found in groups.values())
        assert len(set().union(*groups.values())) < len(groups)


def test_potsdam_shows_the_same_ground_in_other_bands() -> None:
    for rgb, infrared in zip(val("potsdam-rgb")[:6], val("potsdam-irrg")[:6], strict=True):
        assert np.array_equal(rgb.label, infrared.label)
        assert np.array_equal(rgb.depth, infrared.depth)
        assert not np.array_equal(rgb.image, infrared.image)
    assert not np.array_equal(val("potsdam-irrg")[0].label, val("vaihingen-irrg")[0].label)


@pytest.mark.parametrize("domain", AERIAL)
def test_plants_are_green_in_visible_light_and_red_in_the_infrared(domain: str) -> None:
    image = np.concatenate([scene.image.reshape(-1, 3) for scene in val(domain)]).astype(float)
    label = np.concatenate([scene.label.ravel() for scene in val(domain)])
    plants, streets = image[(label == 2) | (label == 3)].mean(axis=0), image[label == 0].mean(axis=0)
    red, green, _ = (plants - plants.mean()) - (streets - streets.mean())
    if DOMAINS[domain].styles[0][1].get("bands"):
        assert red > 6 > 0 > green
    else:
        assert green > 6 > red


def test_street_depth_grows_towards_the_camera_and_sky_is_far() -> None:
    for scene in val("cityscapes")[:12]:
        assert np.all(scene.depth[scene.label == 10] == 0)
        road = [scene.depth[row][scene.label[row] == 0] for row in range(40, 58)]
        means = [row.mean() for row in road if row.size]
        assert means == sorted(means)


def test_domains_differ_by_the_causes_they_are_named_for() -> None:
    brightness = {name: np.mean([scene.image.mean() for scene in val(name)]) for name in STREET}
    assert brightness["acdc-night"] == min(brightness.values())
    assert brightness["acdc-night"] < 70
    contrast = {name: np.mean([scene.image[24:40].std() for scene in val(name)]) for name in STREET}
    assert contrast["acdc-fog"] < contrast["gtav"]
    colour = {name: np.mean([np.ptp(scene.image.astype(int), axis=2).mean() for scene in val(name)]) for name in STREET}
    assert colour["gtav"] > 1.5 * colour["cityscapes"]

    def ground(name: str) -> float:
        return float(np.mean([scene.image[np.isin(scene.label, (1, 9))].mean() for scene in val(name)]))

    assert ground("acdc-snow") > ground("acdc-rain")


@pytest.mark.parametrize("size", [(32, 64), (64, 64), (33, 47), (128, 256), (256, 512)])
@pytest.mark.parametrize("domain", ["mapillary", "acdc-night", "acdc-rain", "vaihingen-irrg", "web"])
def test_other_sizes(domain: str, size: tuple[int, int]) -> None:
    scene = draw(domain, "train", 1, size)
    assert scene.image.shape == (*size, 3)
    assert scene.depth.shape == size


def test_a_scene_keeps_its_content_at_every_size() -> None:
    for domain in ("cityscapes", "potsdam-rgb"):
        small, large = draw(domain, "val", 7, (64, 128)).label, draw(domain, "val", 7, (128, 256)).label
        assert np.mean(small == large[1::2, 1::2]) > 0.9


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: draw("cityscape", "val", 0, SIZE), "Did you mean 'cityscapes'"),
        (lambda: draw("gtav", "test", 0, SIZE), "train, val"),
        (lambda: draw("gtav", "val", -1, SIZE), "0 or more"),
        (lambda: draw("gtav", "val", 0, (8, 8)), "16 x 16"),
        (lambda: draw("gtav", "val", 0, (512, 1024)), "256 x 512"),
    ],
)
def test_wrong_requests_name_what_exists(call: Callable[[], Scene], words: str) -> None:
    with pytest.raises(KdbenchError, match=words):
        call()
