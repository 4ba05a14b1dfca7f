"""Decoders: each turns an encoder's levels into class logits and has the loss that trains it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.types import IGNORE, Features, FeatureSpec, SegOutput

RAREST = 1e-4
"""The share of a batch's pixels below which a class weighs no more."""


def pixel_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Return the weighted cross-entropy over the labelled pixels of (B, H, W); 0 where none is labelled.

    L = Σ w_y (-log p_y) / Σ w_y over pixels of class y, with w_k = 1 / √max(share of class k in the batch, RAREST);
    logits (B, K, h, w) are resized to the label. By pixels alone, a budget of some hundred steps ends before anything
    is learnt of poles, riders and lights, which are most of the classes of an mIoU.
    """
    # With the channels last, resizing and softmax take two thirds of their time on a CPU.
    logits = logits.float().contiguous(memory_format=torch.channels_last)
    logits = F.interpolate(logits, size=label.shape[-2:], mode="bilinear", align_corners=False)
    classes = logits.shape[1]
    # One class more takes the ignored pixels; scattered, because a bincount waits for the device.
    flat = label.where(label != IGNORE, classes).flatten()
    counts = flat.new_zeros(classes + 1).scatter_add_(0, flat, torch.ones_like(flat))[:classes]
    weight = (counts / counts.sum().clamp(min=1)).clamp(min=RAREST).rsqrt()
    rows = logits.permute(0, 2, 3, 1).flatten(0, 2)
    total = F.cross_entropy(rows, label.flatten(), weight, ignore_index=IGNORE, reduction="sum")
    return total / (weight * counts).sum().clamp(min=1)


class PixelDecoder(nn.Module):
    """A decoder that is trained by the cross-entropy over labelled pixels."""

    def loss(self, output: SegOutput, label: Tensor) -> dict[str, Tensor]:
        """Return pixel_cross_entropy as `task`."""
        return {"task": pixel_cross_entropy(output.logits, label)}


class LightDecoder(PixelDecoder):
    """A light head like SegFormer's: levels to one width and the finest grid, summed, upsampled by sub-pixel steps.

    Sub-pixel steps (Shi et al., CVPR 2016) let a token say what lies where inside its patch: poles and riders are
    smaller than a patch of the mini protocol's images.
    """

    WIDTH = 64
    STRIDE = 2

    def __init__(self, spec: FeatureSpec, classes: int) -> None:
        super().__init__()
        middle = max(1, min(spec.strides) // (2 * self.STRIDE))
        self.project = nn.ModuleList(nn.Conv2d(channels, self.WIDTH, 1) for channels in spec.channels)
        self.norm = nn.GroupNorm(8, self.WIDTH)
        self.refine = nn.Sequential(
            nn.Conv2d(self.WIDTH, self.WIDTH * middle**2, 1), nn.PixelShuffle(middle),
            nn.Conv2d(self.WIDTH, self.WIDTH, 3, padding=1), nn.GroupNorm(8, self.WIDTH), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.classify = nn.Sequential(nn.Conv2d(self.WIDTH, classes * 4, 1), nn.PixelShuffle(2))

    def forward(self, features: Features) -> SegOutput:
        """Return logits (B, K, h, w) at stride 2 (at half the finest level's stride where that is finer)."""
        size = max(tuple(level.shape[-2:]) for level in features.levels)
        levels = [project(level) for project, level in zip(self.project, features.levels, strict=True)]
        fused = F.relu(self.norm(_sum_by_grid(levels, (size[0], size[1]))))
        return SegOutput(features, self.classify(self.refine(fused)))


def _sum_by_grid(levels: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Sum maps at one size; those of one grid are added first, because resizing is linear and each costs time."""
    by_grid: dict[torch.Size, Tensor] = {}
    for level in levels:
        grid = level.shape[-2:]
        by_grid[grid] = by_grid[grid] + level if grid in by_grid else level
    resized = [F.interpolate(m, size=size, mode="bilinear", align_corners=False) for m in by_grid.values()]
    return torch.stack(resized).sum(0) if len(resized) > 1 else resized[0]


class LinearDecoder(PixelDecoder):
    """A linear classifier of the last level's positions; it shows what the features hold by themselves."""

    def __init__(self, spec: FeatureSpec, classes: int) -> None:
        super().__init__()
        self.classify = nn.Sequential(nn.GroupNorm(1, spec.channels[-1]), nn.Conv2d(spec.channels[-1], classes, 1))

    def forward(self, features: Features) -> SegOutput:
        """Return logits (B, K, h, w) at the last level's stride."""
        return SegOutput(features, self.classify(features.levels[-1]))


def _mask2former(spec: FeatureSpec, classes: int) -> nn.Module:
    # transformers takes seconds to load.
    from kdbench.models.mask2former import Mask2FormerDecoder

    return Mask2FormerDecoder(spec, classes)


DECODERS: dict[str, Callable[[FeatureSpec, int], nn.Module]] = {
    "linear": LinearDecoder,
    "light": LightDecoder,
    "mask2former": _mask2former,
}
