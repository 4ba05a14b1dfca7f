"""A protocol's id names its numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from kdbench.benchmark import InputSize
from kdbench.engine.trainer import lr_scale
from kdbench.errors import KdbenchError
from kdbench.plugins import load_benchmark
from kdbench.protocol import (
    MINI,
    PROTOCOLS,
    Augmentation,
    Protocol,
    as_yaml,
    find_protocol,
)
from kdbench.types import Phase

GOLDEN = Path(__file__).parents[1] / "golden" / "protocols"


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda protocol: protocol.id)
def test_a_shipped_version_keeps_its_numbers(protocol: Protocol) -> None:
    """Changed numbers need a new version: raise it and add a file; the files of earlier versions stay."""
    held = json.loads((GOLDEN / f"{protocol.id}.json").read_text(encoding="utf-8"))
    # A field that is younger than the file has its default.
    words = {name: getattr(protocol, name) for name in ("summary", "checkpoint_every")}
    assert Protocol.model_validate(held | words) == protocol


def test_a_protocol_that_differs_from_the_shipped_one_says_so_in_its_id() -> None:
    assert MINI.id == "mini-v2"
    assert MINI.model_copy(update={"summary": "other words", "checkpoint_every": 7}).id == MINI.id
    recipe = MINI.recipes[Phase.TASK]
    others = [
        MINI.model_copy(update={"train_images": 1}),
        MINI.model_copy(update={"recipes": {**MINI.recipes, Phase.TASK: recipe.model_copy(update={"lr": 1.0})}}),
    ]
    ids = {protocol.id for protocol in (*others, *PROTOCOLS.values())}
    assert len(ids) == len(others) + len(PROTOCOLS)
    assert all(protocol.id.startswith("mini-v2+") for protocol in others)


def test_the_equal_budget_is_another_protocol_under_the_same_name() -> None:
    for name in PROTOCOLS:
        published, equal = find_protocol(name), find_protocol(name, "equal")
        assert published is PROTOCOLS[name]
        assert equal.name == name
        assert equal.id == f"{published.id}-equal"
        assert equal.student_forwards > 0
        assert equal.recipes == published.recipes


TASK = {
    "steps": 40_000, "epochs": 0, "batch": 4, "lr": 1e-4, "encoder_lr": 0.1, "schedule": "poly", "min_lr": 0.0,
    "warmup": 0, "clip": None, "weight_decay": 0.05, "decay": "release", "patch": 16, "repeats": 1,
    "shared": False,
}  # fmt: skip
DISTILLATION = {
    "steps": 0, "warmup": 0, "clip": None, "weight_decay": 0.05, "min_lr": 1e-5, "encoder_lr": 1.0, "decay": "timm",
    "shared": True,
}  # fmt: skip
AS_RUN = {"repeats": 3, "schedule": "cosine-epochs"}
AS_WRITTEN = {"repeats": 1, "schedule": "cosine-epochs-on-time"}
PROXY = {"epochs": 100, "batch": 512, "lr": 5e-4, "patch": 14, **DISTILLATION}
SOURCE = {"epochs": 300, "batch": 128, "patch": 16, **DISTILLATION}
PUBLISHED: dict[str, dict[Phase, dict[str, Any]]] = {
    "paper": {
        Phase.FIT_TEACHER: TASK, Phase.TASK: TASK, Phase.PROXY: PROXY | AS_RUN,
        Phase.SOURCE: SOURCE | AS_RUN | {"lr": 1.25e-4},
    },
    "paper-text": {
        Phase.FIT_TEACHER: TASK, Phase.TASK: TASK, Phase.PROXY: PROXY | AS_WRITTEN,
        Phase.SOURCE: SOURCE | AS_WRITTEN | {"lr": 5e-4},
    },
}  # fmt: skip
"""Every number of each phase but its views: of GKD's released code (paper) and of its text (paper-text)."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_are_those_of_gkds_code_and_text(name: str) -> None:
    recipes = PROTOCOLS[name].recipes
    assert set(recipes) == set(PUBLISHED[name])
    for phase, expected in PUBLISHED[name].items():
        assert recipes[phase].model_dump(exclude={"augmentation"}) == expected, phase


@pytest.mark.parametrize("name", PUBLISHED)
def test_views_and_windows_are_those_of_gkds_code(name: str) -> None:
    """Hue in degrees, of which OpenCV's 8 bits hold half as many."""
    protocol = PROTOCOLS[name]
    views = {phase: recipe.augmentation for phase, recipe in protocol.recipes.items()}
    erased = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "flip": 0.5, "erase": 0.25}
    policy = {"kind": "distillation", "rand_augment": "rand-m9-mstd0.5-inc1"}
    assert views[Phase.PROXY].model_dump() == {"crop": 224, **erased, **policy}
    assert views[Phase.SOURCE].model_dump() == {"crop": 512, **erased, **policy}
    edges = (256, 307, 358, 409, 460, 512, 563, 614, 665, 716, 768, 819, 870, 921, 972, 1024)
    photometry = {"brightness": 32, "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": 2 * 18}
    scaling = {"crop": 512, "short_edges": edges, "long_edge": 2048, "largest_class": 0.75, "flip": 0.5}
    for phase in (Phase.FIT_TEACHER, Phase.TASK):
        assert views[phase].model_dump() == {"kind": "segmentation", **scaling, **photometry}
    assert (protocol.evaluation.window, protocol.evaluation.stride) == ((512, 512), (341, 341))
    assert protocol.image_size == (512, 512)
    assert (protocol.decoder, protocol.native, protocol.resampling) == ("mask2former", True, "bicubic")


SIZES = {
    "g2c": {"cityscapes": InputSize(512, 1024)},
    "g2b": {"bdd100k": InputSize(720, 1280)},
    "g2m": {"mapillary": InputSize(512, 1024, keep_ratio=True, halved=True)},
    "c2a": {f"acdc-{c}": InputSize(540, 960) for c in ("night", "snow", "fog", "rain")},
    "p2r": {"potsdam-irrg": InputSize(512, 512), "vaihingen-irrg": InputSize(512, 512)},
}
"""Sizes (height, width) at which GKD's code tests the targets."""


@pytest.mark.parametrize("name", SIZES)
def test_targets_are_tested_at_the_sizes_of_gkds_code(name: str) -> None:
    targets = {domain.name: domain.real for domain in load_benchmark(name).targets}
    for protocol in PUBLISHED:
        stated_under = PROTOCOLS[protocol].overrides_of or protocol
        found = {target: real and real.under_protocol(stated_under).size for target, real in targets.items()}
        assert found == SIZES[name]


def test_the_rate_of_the_text_falls_with_the_epochs_and_that_of_the_code_an_epoch_later() -> None:
    epoch, steps = 7, 7 * 100
    for name, late in (("paper", 1), ("paper-text", 0)):
        recipe = PROTOCOLS[name].recipes[Phase.PROXY]
        for step in (0, 6, 7, 13, 14, 350, 699):
            part = max(0, step // epoch - late) / 100
            rate = 1e-5 + (5e-4 - 1e-5) * (1 + math.cos(math.pi * part)) / 2
            assert recipe.lr * lr_scale(recipe, step, steps, epoch) == pytest.approx(rate)


def test_an_epoch_of_the_text_is_one_of_images_and_that_of_the_code_one_of_views() -> None:
    """GTAV at batch 128: 194 steps of rounded views each image three times; and 24966 // 128 = 195."""
    assert PROTOCOLS["paper"].recipes[Phase.SOURCE].epoch(24_966) == 194
    assert PROTOCOLS["paper-text"].recipes[Phase.SOURCE].epoch(24_966) == 195


def test_another_resampling_or_label_map_is_another_protocol_under_the_same_name() -> None:
    for name in ("paper", "paper-text"):
        other = find_protocol(name, resampling="pseudo-inverse")
        assert other.resampling == "pseudo-inverse"
        assert other.id.startswith(f"{name}-v2-pseudo-inverse")
        assert other.recipes == PROTOCOLS[name].recipes
        both = find_protocol(name, "equal", resampling="pseudo-inverse")
        assert both.id.startswith(f"{name}-v2-equal-pseudo-inverse")
    assert find_protocol("paper", label_maps={"mapillary": "robustnet"}).id.startswith("paper-v2-mapillary.robustnet")


def test_a_resampling_without_patches_that_change_is_refused() -> None:
    with pytest.raises(KdbenchError, match=r"--resampling pseudo-inverse .* under protocol 'mini' none does"):
        find_protocol("mini", resampling="pseudo-inverse")


# ---- users' own protocols


@pytest.fixture
def own(tmp_path: Path) -> Any:
    """Write a protocol's file; return its path."""

    def write(text: str, name: str = "lab.yaml") -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_a_file_changes_what_it_names_and_nothing_else(own: Any) -> None:
    path = own("base: paper-text\nrecipes: {task: {steps: 7, lr: 2e-3, augmentation: {crop: 64}}}\nval_images: 3\n")
    found, base = find_protocol(path), PROTOCOLS["paper-text"]
    task = base.recipes[Phase.TASK]
    views = task.augmentation.model_copy(update={"crop": 64})
    recipes = base.recipes | {Phase.TASK: task.model_copy(update={"steps": 7, "lr": 0.002, "augmentation": views})}
    changed = {"name": "lab", "val_images": 3, "recipes": recipes, "base": "paper-text", "version": 1}
    summary = "paper-text-v2 with other recipes, val_images"
    assert found == base.model_copy(update=changed | {"overrides_of": "paper", "summary": summary})
    assert found.id.startswith("lab-v1+")


def test_views_of_another_kind_replace_the_bases(own: Any) -> None:
    found = find_protocol(own("base: paper\nrecipes: {task: {augmentation: {kind: plain, flip: 0}}}\n"))
    assert found.recipes[Phase.TASK].augmentation == Augmentation(flip=0)


def test_an_id_is_of_the_numbers_and_of_the_base(own: Any) -> None:
    ids = [
        find_protocol(own(text)).id
        for text in (
            "base: smoke", "base: smoke\nval_images: 3", "base: smoke\nval_images: 4", "base: smoke\nval_images: 8",
            "base: smoke\nsummary: other words", "base: mini",
        )
    ]  # fmt: skip
    # smoke has 8 images: the fourth changes no number, nor does the fifth.
    assert ids[3] == ids[4] == ids[0]
    assert len(set(ids)) == 4
    path = own("base: smoke")
    assert find_protocol(path, "equal").id == ids[0].replace("+", "-equal+")
    assert find_protocol(path, "equal").student_forwards == find_protocol("smoke", "equal").student_forwards
    assert find_protocol(path, steps_scale=0.5).id == ids[0].replace("+", "-steps0.5+")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_what_is_shown_of_a_protocol_is_a_file_of_it(name: str, own: Any) -> None:
    shown = as_yaml(PROTOCOLS[name]).replace(f"name: {name}", f"name: lab\nbase: {name}")
    found, bare = find_protocol(own(shown)), find_protocol(own(f"base: {name}"))
    assert found == bare.model_copy(update={"summary": PROTOCOLS[name].summary})
    assert found.id == bare.id


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: smok", "unknown protocol 'smok' as the base of protocol 'lab'. Did you mean 'smoke'"),
        ("val_images: 3", "unknown protocol '' as the base"),
        ("base: smoke\nname: mini", "cannot be called 'mini'"),
        ("base: smoke\nname: a/b", "cannot be called 'a/b'"),
        ("base: smoke\nval_image: 3", "unknown field 'val_image' of protocol 'lab'. Did you mean 'val_images'"),
        ("base: smoke\nbudget: equal", "unknown field 'budget'"),
        ("base: smoke\nrecipes: {tusk: {steps: 3}}", "recipes.tusk"),
        (
            "base: smoke\nrecipes: {task: {stops: 3}}",
            "recipes.task.stops of protocol 'lab' cannot be 3: there is no such",
        ),
        (
            "base: smoke\nrecipes: {task: {lr: -1}}",
            "recipes.task.lr of protocol 'lab' cannot be -1: it has to be greater",
        ),
        ("base: smoke\nrecipes: {task: {steps: 0}}", "recipes.task of protocol 'lab' has neither steps nor epochs"),
        ("base: smoke\ndecoder: big", "decoder of protocol 'lab' cannot be 'big'"),
        ("- base", "has to hold `base: NAME`"),
        ("base: [", "cannot be read"),
    ],
)
def test_a_file_with_a_fault_is_told_where_it_is(own: Any, text: str, message: str) -> None:
    with pytest.raises(KdbenchError) as told:
        find_protocol(own(text))
    assert message in str(told.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(KdbenchError, match=r"none\.yaml cannot be read"):
        find_protocol(str(tmp_path / "none.yaml"))
