"""Every method's options and stages by default: the published values, converted to means where they stood on sums."""

from __future__ import annotations

import math
from typing import Any

import pytest

from kdbench.conformance import sample_pair
from kdbench.plugins import load_method, method_names
from kdbench.records import _upgrade

LOGITS = ("fit_teacher", "joint")
FEATURES = ("joint",)
REPRESENTATION = ("proxy", "source", "task")
PLAIN = {"preset": "plain"}
GRIDS = [800 * 1344 // stride**2 if stride < 32 else 25 * 42 for stride in (4, 8, 16, 32)]


def fpn(weight: float, channels: int) -> float:
    """FBKD's weight on a root mean square, of one on a norm over 2 images, mean over the levels of an FPN."""
    return weight * sum(math.sqrt(2 * channels * grid) for grid in GRIDS) / len(GRIDS)


PUBLISHED: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "af_dcd": (LOGITS, {"kd": 1, "reconstruction": 2e-6 * 2048 * 64 * 128, "contrast": 5e-3 * 16, "mask_ratio": 0.75,
                        "temperature": 0.07, "groups": 16}),
    "at": (FEATURES, PLAIN | {"mean_weight": 1e4 / (64 * 128)}),
    "baseline": (("task",), {"encoder": "fine-tuned"}),
    "cirkd": (FEATURES, PLAIN | {"batch_weight": 1, "pixel_weight": 0.1, "region_weight": 0.1, "temperature": 0.1,
                                 "kd_temperature": 1, "pixel_queue": 2000, "region_queue": 2000, "samples": 16,
                                 "pixel_contrast": 4096, "region_contrast": 1024}),
    "cwd": (LOGITS, PLAIN | {"target": "logits", "temperature": 4, "logit_weight": 3, "feature_weight": 50}),
    "dist": (LOGITS, {"inter": 1, "intra": 1}),
    "dkd": (LOGITS, {"alpha": 1, "beta": 0.5, "temperature": 1, "warmup": 0.05}),
    "dsd": (LOGITS, {"pixel_mean_weight": 1000 / 8192, "class_overlap_weight": 10 / 2048**2, "temperature": 4}),
    "fbkd": (FEATURES, {"feature_on_rms": fpn(7e-5, 256), "channel_on_rms": 4e-3 * math.sqrt(2 * 256),
                        "spatial_on_rms": fpn(4e-3, 1), "relation_on_rms": fpn(7e-5, 256), "temperature": 0.5}),
    "feature_kd": (FEATURES, PLAIN | {"weight": 10}),
    "gkd": (REPRESENTATION, {"token": 1, "feature": 1, "patch": 1, "mask_probability": 0.5, "mask_ratio": 0.5,
                             "match": "qsd", "values": "student", "proxy": True, "encoder": "frozen",
                             "single_stage": False}),
    "ickd": (FEATURES, {"weight": 500 / 256}),
    "ifvd": (FEATURES, PLAIN | {"weight": 20}),
    "lightly": (REPRESENTATION, {"version": "v3", "temperature": 0.07, "local": 1, "queue": 8192}),
    "logit_kd": (LOGITS, {"temperature": 1, "weight": 1}),
    "logit_std": (LOGITS, {"temperature": 2, "weight": 9}),
    "mgd": (FEATURES, PLAIN | {"mask_ratio": 0.75, "weight_on_mean": 2e-5 * 2048 * 64 * 64}),
    "nkd": (LOGITS, {"gamma": 1.5, "temperature": 1}),
    "nst": (FEATURES, {"weight": 50}),
    "pkd": (FEATURES, {"weight": 10}),
    "proteus": (REPRESENTATION, {"token": 1, "feature": 1, "patch": 1, "mask_probability": 0.5, "mask_ratio": 0.5,
                                 "encoder": "fine-tuned", "proxy": True, "single_stage": False}),
    "review_kd": (FEATURES, {"weight": 1, "warm_up": 0.01}),
    "simkd": (("fit_teacher", "task"), {"weight": 1, "reduction": 2}),
    "skd": (FEATURES, PLAIN | {"weight": 10, "pool": 2}),
    "sp": (FEATURES, {"row_weight": 3000 / 64}),
    "srrl": (LOGITS, {"feature_weight": 1, "logit_weight": 1}),
    "torchdistill": (FEATURES, {"loss": "KTALoss", "weight": None}),
    "vid": (FEATURES, {"weight": 1, "variance": 5}),
    "vitkd": (FEATURES, {"mimicking": 3e-5 * 2 * 196 * 768, "generation": 3e-6 * 196 * 768, "mask_ratio": 0.5}),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted({*method_names(), *PUBLISHED}))
def test_defaults_are_the_published_ones(name: str) -> None:
    plugin = load_method(name)
    if plugin.missing:
        pytest.skip(f"optional: {plugin.missing}")
    config = plugin.method.Config()
    stages, options = PUBLISHED[name]
    assert tuple(stage.name for stage in plugin.method(config, sample_pair()).stages()) == stages
    numbers = {key: pytest.approx(v, rel=5e-3) if isinstance(v, float) else v for key, v in options.items()}
    assert config.model_dump() == numbers


def test_a_record_made_before_presets_had_their_name_is_read() -> None:
    options = {"recipe": "paper", "weight": 2.0}
    old = {"knobs": options, "variant": "recipe=paper,weight=2.0", "zoo": "mini-v1", "protocol_id": "mini-v1"}
    resolved = _upgrade({"spec": {"passed": {}, "resolved": old}})["spec"]["resolved"]
    assert resolved["options"] == {"preset": "published", "weight": 2.0}
    assert resolved["variant"] == "preset=published,weight=2.0"
