"""How each toy model is pretrained: architecture, collection, objective and numbers.

The largest of a family comes first and teaches the rest. Foundation models learn on "web", local ones on "proxy" alone.
None ever sees a benchmark's images or label maps; docs/mini.md says what the coarse groups and the main objects have in
common with a benchmark's classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from kdbench.errors import unknown
from kdbench.models.registry import MODELS, ModelSpec
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


@dataclass(frozen=True)
class PretrainConfig:
    """How one toy model is pretrained. teacher: the model whose finished features it learns, where it does."""

    spec: ModelSpec
    collection: Literal["web", "proxy"]
    objective: ObjectiveName
    recipe: Recipe
    teacher: str | None = None

    @property
    def name(self) -> str:
        """The model that it makes."""
        return self.spec.name


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
        PretrainConfig(MODELS["dinov2-l"], "web", "rendering + coarse + materials", _foundation(16000)),
        PretrainConfig(MODELS["dinov2-b"], "web", "features", _foundation(12000), "dinov2-l"),
        PretrainConfig(MODELS["dinov2-s"], "web", "features", _foundation(8000), "dinov2-l"),
        PretrainConfig(MODELS["eva02-l"], "web", "masked features", _foundation(2000), "dinov2-l"),
        PretrainConfig(MODELS["eva02-b"], "web", "masked features", _foundation(1500), "eva02-l"),
        PretrainConfig(MODELS["eva02-s"], "web", "masked features", _foundation(1500), "eva02-l"),
        PretrainConfig(MODELS["deit-b"], "proxy", "objects", _local(600)),
        PretrainConfig(MODELS["deit-s"], "proxy", "objects", _local(600)),
        PretrainConfig(MODELS["dino-b"], "proxy", "class distillation", _views(500)),
        PretrainConfig(MODELS["dino-s"], "proxy", "class distillation", _views(500)),
        PretrainConfig(MODELS["resnet18"], "proxy", "objects", _local(600)),
        PretrainConfig(MODELS["resnet50"], "proxy", "objects", _local(600)),
        PretrainConfig(MODELS["mit-b0"], "proxy", "objects", _local(600)),
    )
}


def _tried(objective: ObjectiveName, recipe: Recipe, **toy: str) -> PretrainConfig:
    spec = MODELS["dinov2-s"]
    return PretrainConfig(replace(spec, toy={**spec.toy, **toy}), "web", objective, recipe)


ABLATION = {
    "self-distillation": _tried("self-distillation", _views(1500)),
    "rendering": _tried("rendering", _foundation(1500)),
    "rendering + coarse": _tried("rendering + coarse", _foundation(1500)),
    "rendering + coarse + materials, plain patches": _tried(
        "rendering + coarse + materials", _foundation(1500), embedding="patches"
    ),
    "rendering + coarse + materials": _tried("rendering + coarse + materials", _foundation(1500)),
}
"""What was tried for a foundation model, label-free first, each with the numbers that its kind has in CONFIGS."""


def find_config(name: str) -> PretrainConfig:
    """Return a toy model's configuration; an unknown one is an error that lists those that exist."""
    if name not in CONFIGS:
        raise unknown("toy model", name, CONFIGS)
    return CONFIGS[name]
