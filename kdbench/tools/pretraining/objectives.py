"""Pretraining objectives of toy models. Each holds the encoder and its own heads, and returns losses."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.models.backbones import Encoder
from kdbench.synthetic import COARSE, MATERIALS, OBJECTS
from kdbench.tools.pretraining.batches import PretrainBatch
from kdbench.types import IGNORE, Features

DETAIL = 4
"""Predictions a token and side: targets finer than the grid make tokens carry what lies inside their patch."""


class Objective(nn.Module):
    """An encoder with what trains it; its sub-modules are what a checkpoint holds."""

    views: ClassVar[int] = 1
    result: ClassVar[str] = "encoder"
    """The sub-module that is kept in the end."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def loss(self, batch: PretrainBatch) -> dict[str, Tensor]:
        """Return named scalars whose sum is minimised."""
        raise NotImplementedError


class InverseRendering(Objective):
    """Predict what the renderer knows of every pixel, and its mean over the picture from the pooled feature.

    depth; albedo, the materials' colours before palette, light, weather and sensor; coarse, the groups of COARSE;
    material, which of the renderer's materials it is.
    """

    CHANNELS: ClassVar = {"depth": 1, "albedo": 3, "coarse": len(COARSE), "material": MATERIALS}
    WEIGHTS: ClassVar = {"depth": 5.0, "albedo": 5.0, "coarse": 1.0, "material": 1.0}
    """Mean absolute errors of quantities in [0, 1] are about a fifth of a cross-entropy."""

    def __init__(self, encoder: Encoder, targets: Sequence[str]) -> None:
        super().__init__(encoder)
        self.targets = tuple(targets)
        self._widths = [self.CHANNELS[name] for name in self.targets]
        channels = encoder.spec.final_channels
        self.dense = nn.Conv2d(channels, sum(self._widths) * DETAIL**2, 1)
        self.whole = nn.Linear(channels, sum(self._widths))

    def loss(self, batch: PretrainBatch) -> dict[str, Tensor]:
        """Return cross-entropies of groups and materials, and mean absolute errors of the rest."""
        features = self.encoder(batch.views[0])
        dense = torch.split(F.pixel_shuffle(self.dense(features.final), DETAIL).float(), self._widths, 1)
        whole = torch.split(self.whole(features.pooled).float(), self._widths, 1)
        terms: dict[str, Tensor] = {}
        for name, fine, mean in zip(self.targets, dense, whole, strict=True):
            compare = _plane if name in ("depth", "albedo") else _choice
            local, overall = compare(fine, mean, getattr(batch, name))
            terms[name] = self.WEIGHTS[name] * local
            terms[f"mean {name}"] = self.WEIGHTS[name] * overall
        return terms


def _plane(fine: Tensor, mean: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    target = F.interpolate(target, size=fine.shape[-2:], mode="area")
    return F.l1_loss(fine, target), F.l1_loss(mean, target.mean((2, 3)))


def _choice(fine: Tensor, mean: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return cross-entropies of a class by pixel and of the classes' shares in the picture."""
    count = fine.shape[1]
    label = F.interpolate(target[:, None].float(), size=fine.shape[-2:], mode="nearest")[:, 0].long()
    known = (label != IGNORE)[:, None]
    shares = (F.one_hot(label.clamp(max=count - 1), count).movedim(-1, 1) * known).float().mean((2, 3))
    # Poles and people are few: by the root of their rarity they weigh more.
    rarity = shares.mean(0).clamp(min=1e-3).rsqrt()
    return F.cross_entropy(fine, label, rarity, ignore_index=IGNORE), -(shares * mean.log_softmax(1)).sum(1).mean()


class Objects(Objective):
    """Classify the picture's main object, as supervised pretraining on ImageNet does."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self.head = nn.Linear(encoder.spec.final_channels, OBJECTS)

    def loss(self, batch: PretrainBatch) -> dict[str, Tensor]:
        """Return the cross-entropy."""
        return {"object": F.cross_entropy(self.head(self.encoder(batch.views[0]).pooled), batch.object)}


class FeatureModelling(Objective):
    """Predict another encoder's final features, layer-normalised, where the picture is seen and where it is hidden.

    With nothing hidden this is how DINOv2's smaller models are made (Oquab et al. 2023, section 5); with a part hidden
    it is the masked feature modelling of EVA-02 (Fang et al. 2023), here on all tokens.
    """

    def __init__(self, encoder: Encoder, target: Encoder, hidden: float) -> None:
        super().__init__(encoder)
        width = target.spec.final_channels
        self.dense = nn.Linear(encoder.spec.final_channels, width)
        self.whole = nn.Linear(encoder.spec.final_channels, width)
        self._hidden = hidden
        # Not a sub-module: it neither trains nor stands in a checkpoint.
        self._target = (target.requires_grad_(False).eval(),)

    def loss(self, batch: PretrainBatch) -> dict[str, Tensor]:
        """Return smooth absolute errors of the tokens and of the pooled feature."""
        image = batch.views[0]
        with torch.no_grad():
            target: Features = self._target[0](image)
        goal = _normalised(target.final.flatten(2).transpose(1, 2))
        grid = target.final.shape[-2:]
        mask = random_masks(len(image), (grid[0], grid[1]), self._hidden, 1.0, image.device) if self._hidden else None
        features = self.encoder(image, mask)
        tokens = F.interpolate(features.final, grid, mode="bilinear").flatten(2).transpose(1, 2)
        return {
            "tokens": F.smooth_l1_loss(self.dense(tokens).float(), goal),
            "pooled": F.smooth_l1_loss(self.whole(features.pooled).float(), _normalised(target.pooled)),
        }


class SelfDistillation(Objective):
    """Follow a slow average of itself across views and on hidden tokens, without labels.

    The class token's loss is DINO's (Caron et al. 2021), the hidden tokens' is iBOT's (Zhou et al. 2022), with the
    Sinkhorn-Knopp assignment and the separate heads of DINOv2 (Oquab et al. 2023). The slow average is what is kept.
    """

    views = 2
    result = "slow"
    PROTOTYPES = 256
    STUDENT_TEMPERATURE = 0.1
    TEACHER_TEMPERATURE = 0.05
    MOMENTUM = 0.97
    """Below the originals' 0.99 and more: their slow network would outlast a training of 500 steps."""
    HIDDEN = 0.4

    def __init__(self, encoder: Encoder, tokens: bool = True) -> None:
        super().__init__(encoder)
        width = encoder.spec.final_channels
        self.head = _projection(width, self.PROTOTYPES)
        self.token_head = _projection(width, self.PROTOTYPES) if tokens else nn.Identity()
        self.slow = copy.deepcopy(encoder).requires_grad_(False)
        self.slow_head = copy.deepcopy(self.head).requires_grad_(False)
        self.slow_token_head = copy.deepcopy(self.token_head).requires_grad_(False)
        self._tokens = tokens

    def loss(self, batch: PretrainBatch) -> dict[str, Tensor]:
        """Return cross-entropies to the slow network's assignments."""
        self._follow(batch.progress)
        image = batch.views.flatten(0, 1)
        with torch.no_grad():
            target: Features = self.slow(image)
            classes = sinkhorn(self.slow_head(target.pooled), self.TEACHER_TEMPERATURE)
        grid = (target.final.shape[-2], target.final.shape[-1])
        count = batch.views.shape[1]
        masks = [random_masks(count, grid, self.HIDDEN, 0.5, image.device) for _ in batch.views]
        mask = torch.cat(masks) if self._tokens else None
        features: Features = self.encoder(image, mask)
        swapped = torch.cat(classes.chunk(2)[::-1])
        terms = {"class": self._entropy(swapped, self.head(features.pooled))}
        if mask is not None:
            theirs, ours = (f.final.flatten(2).transpose(1, 2)[mask.flatten(1)] for f in (target, features))
            with torch.no_grad():
                assigned = sinkhorn(self.slow_token_head(theirs), self.TEACHER_TEMPERATURE)
            terms["token"] = self._entropy(assigned, self.token_head(ours))
        return terms

    def _entropy(self, target: Tensor, scores: Tensor) -> Tensor:
        return -(target * (scores.float() / self.STUDENT_TEMPERATURE).log_softmax(1)).sum(1).mean()

    @torch.no_grad()
    def _follow(self, progress: float) -> None:
        momentum = 1 - (1 - self.MOMENTUM) * 0.5 * (1 + math.cos(math.pi * progress))
        pairs = ((self.slow, self.encoder), (self.slow_head, self.head), (self.slow_token_head, self.token_head))
        for slow, fast in pairs:
            for average, value in zip(slow.parameters(), fast.parameters(), strict=True):
                average.lerp_(value, 1 - momentum)


class Prototypes(nn.Module):
    """Return cosines with learnt unit vectors."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(count, width), dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width) to (N, count)."""
        return F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))


def _projection(width: int, prototypes: int) -> nn.Module:
    # Batch-normalised as MoCo v3's head (Chen et al. 2021): pictures whose features share a large mean have almost
    # equal cosines, and nothing to tell them apart by.
    return nn.Sequential(
        nn.Linear(width, 2 * width),
        nn.BatchNorm1d(2 * width),
        nn.GELU(),
        nn.Linear(2 * width, 64),
        nn.BatchNorm1d(64, affine=False),
        Prototypes(64, prototypes),
    )


@torch.no_grad()
def sinkhorn(scores: Tensor, temperature: float, rounds: int = 3) -> Tensor:
    """Return assignments (N, P) with rows of sum one and columns of about equal sum (Caron et al., SwAV, 2020)."""
    scores = scores.float() / temperature
    plan = (scores - scores.max()).exp()
    for _ in range(rounds):
        plan = plan / plan.sum(0, keepdim=True).clamp(min=1e-12)
        plan = plan / plan.sum(1, keepdim=True).clamp(min=1e-12)
    return plan


def random_masks(batch: int, grid: tuple[int, int], hidden: float, share: float, device: torch.device) -> Tensor:
    """Draw masks (B, h, w): the first `share` of the images hide a part of their tokens, the rest nothing."""
    count = grid[0] * grid[1]
    mask = torch.rand(batch, count, device=device).argsort(1).argsort(1) < round(count * hidden)
    mask[round(batch * share) :] = False
    return mask.reshape(batch, *grid)


def _normalised(features: Tensor) -> Tensor:
    return F.layer_norm(features.float(), features.shape[-1:])
