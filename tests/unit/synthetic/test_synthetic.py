"""Scenes of the built-in world: pure, of every class, at every size. How they look is frozen in test_world.py."""

from __future__ import annotations

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
COLLECTIONS = [name for name, spec in DOMAINS.items() if spec.kind == "collection"]
LABELLED = [name for name in DOMAINS if name not in COLLECTIONS]
PRINTS = """
import hashlib
from kdbench.synthetic import DOMAINS, draw
def prints(domains):
    for domain in domains:
        scene = draw(domain, "val", 5, (64, 128))
        arrays = (scene.image, scene.label, scene.coarse, scene.depth)
        yield domain, hashlib.sha256(b"".join(a.tobytes() for a in arrays) + str(scene.object).encode()).hexdigest()
"""


@cache
def val(domain: str) -> tuple[Scene, ...]:
    return tuple(draw(domain, "val", index, SIZE) for index in range(48))


def test_another_process_draws_the_same() -> None:
    scope: dict[str, Callable[..., object]] = {}
    exec(PRINTS, scope)
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(Path(synthetic.__file__).parents[2])}
    code = [sys.executable, "-c", PRINTS + "for found in prints(reversed(DOMAINS)): print(*found)"]
    done = subprocess.run(code, env=environment, capture_output=True, text=True, check=True)
    assert dict(line.split() for line in done.stdout.splitlines()) == dict(scope["prints"](DOMAINS))


@pytest.mark.parametrize("domain", DOMAINS)
def test_scenes_differ_and_have_their_shapes_types_and_ranges(domain: str) -> None:
    scenes = [*(draw(domain, "train", index, SIZE) for index in range(12)), *val(domain)[:12]]
    assert len({scene.depth.tobytes() + scene.image.tobytes() for scene in scenes}) == 24
    for scene in scenes:
        assert scene.image.shape == (*SIZE, 3)
        assert {array.shape for array in (scene.label, scene.coarse, scene.depth)} == {SIZE}
        assert {array.dtype for array in (scene.image, scene.label, scene.coarse, scene.depth)} == {np.dtype(np.uint8)}
        assert scene.image.flags.c_contiguous
        assert np.all((scene.label < DOMAINS[domain].classes) | (scene.label == 255))
        assert np.all((scene.coarse < len(COARSE)) | (scene.coarse == 255))
        assert (scene.object == -1) == (domain in LABELLED)
        assert scene.object < OBJECTS


@pytest.mark.parametrize("domain", LABELLED)
def test_every_class_shows_in_a_small_validation_split(domain: str) -> None:
    counts = np.bincount(np.concatenate([scene.label.ravel() for scene in val(domain)]), minlength=256)
    assert np.all(counts[: DOMAINS[domain].classes] >= 40), counts[: DOMAINS[domain].classes]


def test_rare_classes_take_turns_within_any_sixteen_indices() -> None:
    rare = [12, 14, 15, 16, 17, 18]
    for start in range(0, 33):
        seen = np.concatenate([scene.label.ravel() for scene in val("gtav")[start : start + 16]])
        assert np.all(np.bincount(seen, minlength=256)[rare] >= 60)


def test_collections_carry_image_labels_only() -> None:
    for domain in COLLECTIONS:
        assert all(np.all(scene.label == 255) for scene in val(domain))
        assert len({scene.object for scene in val(domain)}) > 10
        assert all(np.all(scene.coarse < len(COARSE)) for scene in val(domain) if scene.object < OBJECTS - 2)


@pytest.mark.parametrize("domain", ["cityscapes", "potsdam-rgb"])
def test_coarse_groups_merge_the_classes_of_both_label_spaces(domain: str) -> None:
    label, coarse = (np.concatenate([getattr(s, name).ravel() for s in val(domain)]) for name in ("label", "coarse"))
    pairs = {(int(a), int(b)) for a, b in np.unique(np.stack((label, coarse)), axis=1).T if a != 255}
    assert len(pairs) == len({a for a, _ in pairs})
    assert len({b for _, b in pairs}) < len(pairs)


def test_potsdam_shows_the_same_ground_in_other_bands() -> None:
    for rgb, infrared in zip(val("potsdam-rgb")[:6], val("potsdam-irrg")[:6], strict=True):
        assert np.array_equal(rgb.label, infrared.label)
        assert np.array_equal(rgb.depth, infrared.depth)
        assert not np.array_equal(rgb.image, infrared.image)


@pytest.mark.parametrize("size", [(32, 64), (33, 47), (256, 512)])
@pytest.mark.parametrize("domain", ["mapillary", "acdc-night", "acdc-rain", "vaihingen-irrg", "web"])
def test_other_sizes(domain: str, size: tuple[int, int]) -> None:
    scene = draw(domain, "train", 1, size)
    assert scene.image.shape == (*size, 3)
    assert scene.depth.shape == size


@pytest.mark.parametrize("domain", ["cityscapes", "potsdam-rgb"])
def test_a_scene_keeps_its_content_at_every_size(domain: str) -> None:
    small, large = draw(domain, "val", 7, (64, 128)).label, draw(domain, "val", 7, (128, 256)).label
    assert np.mean(small == large[1::2, 1::2]) > 0.9


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (("cityscape", "val", 0, SIZE), "Did you mean 'cityscapes'"),
        (("gtav", "test", 0, SIZE), "train, val"),
        (("gtav", "val", -1, SIZE), "0 or more"),
        (("gtav", "val", 0, (8, 8)), "16 x 16"),
        (("gtav", "val", 0, (512, 1024)), "256 x 512"),
    ],
)
def test_wrong_requests_name_what_exists(request_: tuple[str, str, int, tuple[int, int]], words: str) -> None:
    with pytest.raises(KdbenchError, match=words):
        draw(*request_)
