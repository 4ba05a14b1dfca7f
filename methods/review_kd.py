"""Knowledge review: the student's levels, fused from deep to shallow, follow the teacher's at several scales."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.losses import matched_levels
from kdbench.method import FeatureMethod, MethodConfig
from kdbench.types import Batch, Features, PairSpec

POOLS = (4, 2, 1)
"""Sides of the pooled maps of the hierarchical loss."""


class ReviewKDConfig(MethodConfig):
    weight: float = Field(
        1.0,
        ge=0,
        description="weight of the loss. Source: mdistiller for ImageNet, ResNet-34 to 18, 1 "
        "(ResNet-50 to MobileNetV1: 8; CIFAR-100: 5)",
    )
    warm_up: float = Field(
        0.01,
        ge=0,
        le=1,
        description="share of the stage over which the weight grows. Source: mdistiller for ImageNet, 1 epoch of 100",
    )


def convolution(inputs: int, outputs: int, side: int) -> nn.Sequential:
    """A convolution without bias and its batch norm, drawn as mdistiller draws it."""
    layer = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False)
    nn.init.kaiming_uniform_(layer.weight, a=1)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Fusion(nn.Module):
    """Attention-based fusion: a student's level joined with what came up from the deeper ones."""

    def __init__(self, student: int, middle: int, teacher: int, deepest: bool) -> None:
        super().__init__()
        self.reduce = convolution(student, middle, 1)
        self.attention = None if deepest else nn.Conv2d(2 * middle, 2, 1)
        self.expand = convolution(middle, teacher, 3)

    def forward(self, map_: Tensor, deeper: Tensor, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """(what is compared with the teacher's level of this size, what goes on to the next shallower level)."""
        fused = self.reduce(map_)
        if self.attention is not None:
            deeper = F.interpolate(deeper, size=fused.shape[-2:], mode="nearest")
            own, other = self.attention(torch.cat((fused, deeper), 1)).sigmoid().chunk(2, 1)
            fused = own * fused + other * deeper
        fused = F.interpolate(fused, size=size, mode="nearest")
        return self.expand(fused), fused


def hierarchical_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Weighted mean of the squared errors of the maps and of what they are when pooled to 4x4, 2x2 and 1x1."""
    difference = student.float() - teacher.float()
    sides = [side for side in POOLS if side < min(difference.shape[-2:])]
    scales = [difference, *(F.adaptive_avg_pool2d(difference, side) for side in sides)]
    weights = [0.5**number for number in range(len(scales))]
    errors = [weight * scale.square().mean() for weight, scale in zip(weights, scales, strict=True)]
    return torch.stack(errors).sum() / sum(weights)


class ReviewKD(FeatureMethod[ReviewKDConfig]):
    r"""Each level of the student, reviewed together with all deeper ones, follows the teacher's level at four scales.

    Formula:
    From the deepest level up, $x$ is the student's level, $m$ its deepest width (512 at most), $y$ what came up from
    below (nearest neighbour to $x$'s size); $\odot$ multiplies each position.

    $$ e = \mathrm{BN}(\mathrm{conv}_{1 \times 1}(x)) \qquad
    (z_1, z_2) = \mathrm{sigmoid}(\mathrm{conv}_{1 \times 1}([e, y])) \qquad
    y' = z_1 \odot e + z_2 \odot y \qquad o = \mathrm{BN}(\mathrm{conv}_{3 \times 3}(y')) $$

    At the deepest level $y' = e$. $y'$ is brought to the teacher's size first (nearest neighbour) and is the next $y$;
    $o$ is compared with the teacher's level $F_t$ at four scales, $P_k$ being average pooling to $k \times k$ and $P$
    without index the identity.

    $$ L_{level} = \frac{1}{\sum_k w_k} \sum_{k} w_k \cdot \mathrm{mse}(P_k(o), P_k(F_t)), \quad
    w = 1, \frac{1}{2}, \frac{1}{4}, \frac{1}{8} \quad \mathrm{for} \quad P, P_4, P_2, P_1 $$

    A pooled size that is not below the shorter side is left out, and the weights move up. The loss is the sum over the
    levels times min(1, progress / warm_up).

    Deviations: no level of pooled features, as in mdistiller's code for detection; its code for classification has one,
    and reads the teacher before its activation. Its weight grows in steps of an epoch, counted from 1, so that one
    epoch of warm-up is none; here the weight grows from zero through that share of the stage. The shorter side decides
    on the pooled sizes, there it is the height. Levels of transformers are blocks before the last norm.

    Compared: mdistiller's detection/model/reviewkd.py on random maps, also of one grid and not square, and the modules
    of its mdistiller/distillers/ReviewKD.py where the teacher's grids differ: the same floats.
    """

    paper = "Chen, Liu, Zhao, Jia, Distilling Knowledge via Knowledge Review, CVPR 2021 (arXiv 2104.09044)"

    def __init__(self, config: ReviewKDConfig, pair: PairSpec) -> None:
        super().__init__(config, pair)
        middle = min(512, pair.student.channels[-1])
        self.fusions = nn.ModuleList(
            Fusion(ours, middle, theirs, deepest=not depth)
            for depth, (ours, theirs) in enumerate(reversed(pair.level_channels))
        )

    def terms(self, batch: Batch, student: Features, teacher: Features) -> dict[str, Tensor]:
        errors, residual = [], student.levels[-1]
        for fusion, (ours, theirs) in zip(self.fusions, reversed(matched_levels(student, teacher)), strict=True):
            output, residual = fusion(ours, residual, theirs.shape[-2:])
            errors.append(hierarchical_error(output, theirs))
        warm_up = self.config.warm_up
        ramp = min(1.0, batch.progress / warm_up) if warm_up else 1.0
        return {"review_kd": self.config.weight * ramp * torch.stack(errors).sum()}
