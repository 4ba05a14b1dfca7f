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
    """Brings image (3, H, W) and label (h, w), uint8, to the sizes at which they are used."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Return the rule's name and numbers."""

    def __call__(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return the image resized, and the label, resized too where the rule says so."""


@dataclass(frozen=True)
class Native:
    """The image as stored, for views that are cut from it; a label of another size is brought to the image's."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Return the rule's name."""
        return {"rule": "native"}

    def __call__(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return the image, and the label at the image's size."""
        return image, nearest(label, (image.shape[-2], image.shape[-1]))


@dataclass(frozen=True)
class Cover:
    """The image at the smallest size of its ratio that covers (height, width), antialiased; the label as stored."""

    size: tuple[int, int]

    @property
    def identity(self) -> Mapping[str, Any]:
        """Return the rule's name and numbers."""
        return {"rule": "cover", **asdict(self)}

    def __call__(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return the image resized, and the label."""
        scale = max(self.size[0] / image.shape[1], self.size[1] / image.shape[2])
        return vision.resize(image, [round(side * scale) for side in image.shape[1:]], antialias=True), label


@dataclass(frozen=True)
class Evaluated:
    """The image as a benchmark evaluates it; the label as stored, or half of it where the benchmark halves both."""

    rule: InputSize

    @property
    def identity(self) -> Mapping[str, Any]:
        """Return the rule's name and numbers."""
        return {"rule": "evaluated", **asdict(self.rule)}

    def __call__(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return the image resized as by mmcv, bilinear and not antialiased, and the label."""
        if self.rule.halved:
            half = (image.shape[-2] // 2, image.shape[-1] // 2)
            image = vision.resize(image, list(half), InterpolationMode.BICUBIC, antialias=True)
            # As Pillow's nearest: the pixel right and below of the middle of each two by two.
            half = (label.shape[-2] // 2, label.shape[-1] // 2)
            label = F.interpolate(label[None, None], size=half, mode="nearest-exact")[0, 0]
        size = _fitted((image.shape[-2], image.shape[-1]), self.rule)
        # In floating point: the library's whole-number resize rounds twice, which brightens by half a level.
        resized: Tensor = vision.resize(image.float(), list(size), antialias=False)
        return resized.round_().to(torch.uint8), label


def _fitted(size: tuple[int, int], rule: InputSize) -> tuple[int, int]:
    """Return the size that an image of that size gets; kept ratios are bounded by long and short edge, as in mmcv."""
    if not rule.keep_ratio:
        return rule.height, rule.width
    factor = min(max(rule.height, rule.width) / max(size), min(rule.height, rule.width) / min(size))
    return int(size[0] * factor + 0.5), int(size[1] * factor + 0.5)


def nearest(label: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a label (..., h, w) at another size, no value mixed with another."""
    if tuple(label.shape[-2:]) == size:
        return label
    resized: Tensor = vision.resize(tv_tensors.Mask(label), list(size))
    return resized.as_subclass(torch.Tensor)
