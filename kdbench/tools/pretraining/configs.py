"""How each toy model is pretrained: architecture, collection, objective and numbers.

They make the set toy-v2, in FOLDER. Protocols take toy-v1 (kdbench.models.registry) until all of it is trained.

The largest of a family comes first and teaches the rest. Foundation models learn on "web", local ones on "proxy" alone.
None ever sees a benchmark's images or label maps; docs/mini.md says what the coarse groups and the main objects have in
common with a benchmark's classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from kdbench.errors import unknown
from kdbench.models.registry import LAYER_SCALE, MODELS, ModelSpec
from kdbench.models.toy import SHIPPED
from kdbench.protocol import Augmentation, Recipe

ObjectiveName = Literal[
    "self-distillation",
    "class distillation",
    "rendering",
    "rendering + coarse",
    "rendering + coarse + materials",
    "features",
    "masked features",
    "objects",
]
IMAGES = {"web": 128000, "proxy": 8000}
FOLDER = SHIPPED.with_name("weights-v2")


def _vit(width: int, **more: Any) -> dict[str, Any]:
    return {"embedding": "convolutions", "embed_dim": width, "depth": 6, "num_heads": width // 32, **more}


def _eva(width: int) -> dict[str, Any]:
    return _vit(width, mlp_ratio=8 / 3, swiglu_mlp=True, use_rot_pos_emb=True)


NETWORKS = {
    "dinov2-s": _vit(96, **LAYER_SCALE),
    "dinov2-b": _vit(128, **LAYER_SCALE),
    "dinov2-l": _vit(160, **LAYER_SCALE),
    "eva02-s": _eva(64),
    "eva02-b": _eva(96),
    "eva02-l": _eva(128),
    "deit-s": _vit(96),
    "deit-b": _vit(128),
    "dino-s": _vit(64),
    "dino-b": _vit(96),
}
"""Sizes of the transformers, as ModelSpec.toy; the convolutional networks and MiT are those of toy-v1."""


@dataclass(frozen=True)
class PretrainConfig:
    """How one toy model is pretrained. teacher: the model whose finished features it learns, where it does."""

    name: str
    collection: Literal["web", "proxy"]
    objective: ObjectiveName
    recipe: Recipe
    teacher: str | None = None

    @property
    def spec(self) -> ModelSpec:
        """The model with its network of this set."""
        known = MODELS[self.name]
        return replace(known, toy=NETWORKS.get(self.name, known.toy))


_COLOURS = Augmentation(hue=0.1, grey=0.1)
_VIEWS = Augmentation(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grey=0.15)


def _foundation(steps: int) -> Recipe:
    return Recipe(steps=steps, batch=16, lr=1.5e-3, warmup=100, clip=1.0, weight_decay=0.02, augmentation=_COLOURS)


def _local(steps: int) -> Recipe:
    return Recipe(steps=steps, batch=32, lr=1e-3, warmup=50, clip=1.0)


def _views(steps: int) -> Recipe:
    return Recipe(steps=steps, batch=24, lr=2e-3, warmup=100, clip=1.0, augmentation=_VIEWS)


CONFIGS = {
    config.name: config
    for config in (
        PretrainConfig("dinov2-l", "web", "rendering + coarse + materials", _foundation(16000)),
        PretrainConfig("dinov2-b", "web", "features", _foundation(12000), "dinov2-l"),
        PretrainConfig("dinov2-s", "web", "features", _foundation(8000), "dinov2-l"),
        PretrainConfig("eva02-l", "web", "masked features", _foundation(8000), "dinov2-l"),
        PretrainConfig("eva02-b", "web", "masked features", _foundation(8000), "eva02-l"),
        PretrainConfig("eva02-s", "web", "masked features", _foundation(6000), "eva02-l"),
        PretrainConfig("deit-b", "proxy", "objects", _local(600)),
        PretrainConfig("deit-s", "proxy", "objects", _local(600)),
        PretrainConfig("dino-b", "proxy", "class distillation", _views(500)),
        PretrainConfig("dino-s", "proxy", "class distillation", _views(500)),
        PretrainConfig("resnet18", "proxy", "objects", _local(600)),
        PretrainConfig("resnet50", "proxy", "objects", _local(600)),
        PretrainConfig("mit-b0", "proxy", "objects", _local(600)),
    )
}


ABLATION: tuple[tuple[ObjectiveName, Recipe], ...] = (
    ("self-distillation", _views(1500)),
    ("rendering", _foundation(1500)),
    ("rendering + coarse", _foundation(1500)),
    ("rendering + coarse + materials", _foundation(1500)),
)
"""The objectives tried for a foundation model, label-free first, each with the numbers that its kind has in CONFIGS."""


def find_config(name: str) -> PretrainConfig:
    """Return a toy model's configuration; an unknown one is an error that lists those that exist."""
    if name not in CONFIGS:
        raise unknown("toy model", name, CONFIGS)
    return CONFIGS[name]
