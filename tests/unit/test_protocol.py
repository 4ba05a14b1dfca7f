"""A protocol's id names its numbers."""

from __future__ import annotations

import json

import pytest

from kdbench.protocol import (
    MINI,
    PROTOCOLS,
    Augmentation,
    DistillationViews,
    Frozen,
    Protocol,
    Recipe,
    SegmentationViews,
    find_protocol,
)
from kdbench.types import Phase

# Numbers at these values are in no id. A new field may be added here; a value that is here must never change.
DEFAULTS = {
    Augmentation: {
        "kind": "plain", "scale": [0.4, 1.0], "flip": 0.5, "brightness": 0.3, "contrast": 0.3, "saturation": 0.3,
        "hue": 0.0, "grey": 0.0,
    },
    DistillationViews: {
        "kind": "distillation", "crop": 512, "scale": [0.08, 1.0], "ratio": [0.75, 4 / 3], "flip": 0.5,
        "rand_augment": "rand-m9-mstd0.5-inc1", "erase": 0.25,
    },
    SegmentationViews: {
        "kind": "segmentation", "crop": 512, "long_edge": 2048, "largest_class": 0.75, "flip": 0.5, "brightness": 32.0,
        "short_edges": [256, 307, 358, 409, 460, 512, 563, 614, 665, 716, 768, 819, 870, 921, 972, 1024],
        "contrast": [0.5, 1.5], "saturation": [0.5, 1.5], "hue": 36.0,
    },
    Recipe: {
        "steps": 0, "epochs": 0, "repeats": 1, "min_lr": 0.0, "decay": "matrices", "patch": None,
        "encoder_lr": 1.0, "weight_decay": 0.05, "warmup": 0, "schedule": "cosine", "clip": None,
        "augmentation": json.loads(Augmentation().model_dump_json()),
    },
    Protocol: {
        "precision": "32-true", "native": False, "label_maps": {}, "most_broken": 10, "keep": [0.25, 0.5, 0.75, 1.0],
        "checkpoint_every": 50, "resampling": "bicubic", "track": "paper", "passes": 0,
    },
}  # fmt: skip


@pytest.mark.parametrize("model", DEFAULTS, ids=lambda model: model.__name__)
def test_no_default_has_changed(model: type[Frozen]) -> None:
    fields = {name: field for name, field in model.model_fields.items() if not field.is_required()}
    blank = model.model_construct(**{name: field.default for name, field in fields.items()})
    assert json.loads(blank.model_dump_json(include=set(fields), warnings=False)) == DEFAULTS[model]


def test_every_number_is_in_the_id_and_words_are_not() -> None:
    assert MINI.model_copy(update={"summary": "other words", "checkpoint_every": 7}).id == MINI.id
    recipe = MINI.recipes[Phase.TASK]
    others = [
        MINI.model_copy(update={"train_images": 1}),
        MINI.model_copy(update={"native": True}),
        MINI.model_copy(update={"recipes": {**MINI.recipes, Phase.TASK: recipe.model_copy(update={"lr": 1.0})}}),
    ]
    for views in (Augmentation(), DistillationViews(), SegmentationViews()):
        changed = recipe.model_copy(update={"augmentation": views})
        others.append(MINI.model_copy(update={"recipes": {**MINI.recipes, Phase.TASK: changed}}))
    ids = {protocol.id for protocol in (*others, *PROTOCOLS.values())}
    assert len(ids) == len(others) + len(PROTOCOLS)
    assert all(protocol.id.startswith(f"{name}-") for name, protocol in PROTOCOLS.items())


def test_the_equal_track_is_another_protocol_under_the_same_name() -> None:
    for name in PROTOCOLS:
        paper, equal = find_protocol(name), find_protocol(name, "equal")
        assert paper is PROTOCOLS[name]
        assert equal.name == name
        assert equal.id.startswith(f"{name}-equal-")
        assert equal.passes > 0
        assert equal.recipes == paper.recipes
