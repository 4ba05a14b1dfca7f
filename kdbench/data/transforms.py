"""Random views of a training sample, image and label in step, on torchvision v2."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from kdbench.protocol import Augmentation


class RandomView:
    """Crop, flip and colour jitter as a function of a seed, at the protocol's size (H, W)."""

    def __init__(self, augmentation: Augmentation, size: tuple[int, int]) -> None:
        aspect = size[1] / size[0]
        self._transform = v2.Compose([
            v2.RandomResizedCrop(size, augmentation.scale, ratio=(0.8 * aspect, 1.25 * aspect), antialias=True),
            v2.RandomHorizontalFlip(augmentation.flip),
            v2.ColorJitter(
                augmentation.brightness, augmentation.contrast, augmentation.saturation, augmentation.hue
            ),
            v2.RandomGrayscale(augmentation.grey),
        ])  # fmt: skip

    def __call__(self, image: Tensor, label: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """image (3, h, w) and label (..., h', w'), uint8, to one size; the global generator is left as it was."""
        if label.shape[-2:] != image.shape[-2:]:
            label = v2.functional.resize(tv_tensors.Mask(label), list(image.shape[-2:]))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            view, mask = self._transform(tv_tensors.Image(image), tv_tensors.Mask(label))
        return view.as_subclass(Tensor), mask.as_subclass(Tensor)
