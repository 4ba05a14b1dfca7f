"""How a real image is brought to the size at which networks see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from kdbench.benchmark import InputSize


class Sizing:
    """Brings image (3, H, W) and label (h, w), uint8, to the sizes at which they are used."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Return the rule's name and numbers."""
        return {"rule": type(self).__name__.lower(), **asdict(self)}  # type: ignore[call-overload]

    def __call__(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return the image resized, and the label, resized too where the rule says so."""
        raise NotImplementedError


@dataclass(frozen=True)
class Native(Sizing):
    """The image as stored, for views that are cut from it; a label of another size is brought to the image's."""

    def __call__(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        return image, nearest(label, image.shape[-2:])


@dataclass(frozen=True)
class Cover(Sizing):
    """The image at the smallest size of its ratio that covers (height, width), antialiased; the label as stored."""

    size: tuple[int, int]

    def __call__(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        scale = max(self.size[0] / image.shape[1], self.size[1] / image.shape[2])
        return vision.resize(image, [round(side * scale) for side in image.shape[1:]], antialias=True), label


@dataclass(frozen=True)
class Evaluated(InputSize, Sizing):
    """The image as a benchmark evaluates it; the label as stored, or half of it where the benchmark halves both."""

    def __call__(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return the image resized as by mmcv, bilinear and not antialiased, and the label."""
        if self.halved:
            half = [side // 2 for side in image.shape[-2:]]
            image = vision.resize(image, half, InterpolationMode.BICUBIC, antialias=True)
            # As Pillow's nearest: the pixel right and below of the middle of each two by two.
            half = [side // 2 for side in label.shape]
            label = F.interpolate(label[None, None], size=half, mode="nearest-exact")[0, 0]
        size = [self.height, self.width]
        if self.keep_ratio:  # bounded by long and short edge, as in mmcv
            stored = image.shape[-2:]
            factor = min(max(size) / max(stored), min(size) / min(stored))
            size = [int(side * factor + 0.5) for side in stored]
        # In floating point: the library's whole-number resize rounds twice, which brightens by half a level.
        resized: Tensor = vision.resize(image.float(), size, antialias=False)
        return resized.round_().to(torch.uint8), label


def nearest(label: Tensor, size: Sequence[int]) -> Tensor:
    """Return a label (..., h, w) at another size, no value mixed with another."""
    if tuple(label.shape[-2:]) == tuple(size):
        return label
    resized: Tensor = vision.resize(tv_tensors.Mask(label), list(size))
    return resized.as_subclass(torch.Tensor)
