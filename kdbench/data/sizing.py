"""How a real image is brought to the size at which networks see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from kdbench.benchmark import InputSize


class Sizing(Protocol):
    """image (3, H, W) and label (h, w), uint8, to the sizes at which they are used."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What decides the result."""

    def __call__(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """The image resized; the label too where the rule says so."""


@dataclass(frozen=True)
class Native:
    """As stored; what trains cuts its own views. A label of another size than its image is brought to it."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """The rule's name."""
        return {"rule": "native"}

    def __call__(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """The label at the image's size."""
        return image, nearest(label, (image.shape[-2], image.shape[-1]))


@dataclass(frozen=True)
class Cover:
    """The smallest size of the same ratio that covers (height, width); labels keep their size."""

    size: tuple[int, int]

    @property
    def identity(self) -> Mapping[str, Any]:
        """The rule's name and numbers."""
        return {"rule": "cover", **asdict(self)}

    def __call__(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """The image resized, with antialiasing."""
        scale = max(self.size[0] / image.shape[1], self.size[1] / image.shape[2])
        return vision.resize(image, [round(side * scale) for side in image.shape[1:]], antialias=True), label


@dataclass(frozen=True)
class Evaluated:
    """As a benchmark states for its targets; labels keep their size, or half of it where the benchmark halves both."""

    rule: InputSize

    @property
    def identity(self) -> Mapping[str, Any]:
        """The rule's name and numbers."""
        return {"rule": "evaluated", **asdict(self.rule)}

    def __call__(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """The image resized as mmcv does: bilinear, without antialiasing."""
        if self.rule.halved:
            half = (image.shape[-2] // 2, image.shape[-1] // 2)
            image = vision.resize(image, list(half), InterpolationMode.BICUBIC, antialias=True)
            label = _halved(label)
        size = _fitted((image.shape[-2], image.shape[-1]), self.rule)
        # In floating point: the library's whole-number resize rounds twice, which brightens by half a level.
        resized: Tensor = vision.resize(image.float(), list(size), antialias=False)
        return resized.round_().to(torch.uint8), label


def _fitted(size: tuple[int, int], rule: InputSize) -> tuple[int, int]:
    """The size that an image of that size gets; kept ratios are bounded by long and short edge, as in mmcv."""
    if not rule.keep_ratio:
        return rule.height, rule.width
    factor = min(max(rule.height, rule.width) / max(size), min(rule.height, rule.width) / min(size))
    return int(size[0] * factor + 0.5), int(size[1] * factor + 0.5)


def nearest(label: Tensor, size: tuple[int, int]) -> Tensor:
    """A label (..., h, w) at another size, no value mixed with another."""
    if tuple(label.shape[-2:]) == size:
        return label
    resized: Tensor = vision.resize(tv_tensors.Mask(label), list(size))
    return resized.as_subclass(torch.Tensor)


def _halved(label: Tensor) -> Tensor:
    """As Pillow's nearest: the pixel right and below of the middle of each two by two."""
    size = (label.shape[-2] // 2, label.shape[-1] // 2)
    return F.interpolate(label[None, None], size=size, mode="nearest-exact")[0, 0]
