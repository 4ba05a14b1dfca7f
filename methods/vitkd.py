"""ViTKD: the shallow blocks are mimicked, the last one is generated from half of its tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.losses import align, generator, resize_as, share
from kdbench.method import FeatureMethod, MethodConfig
from kdbench.types import Batch, Features, FeatureSpec, PairSpec


class ViTKDConfig(MethodConfig):
    mimicking: float = Field(
        9.03,
        ge=0,
        description="weight of the shallow blocks. Source: ViTKD, alpha = 3e-5 on a sum over two blocks of 196 tokens "
        "of width 768; here on their mean",
    )
    generation: float = Field(
        0.452,
        ge=0,
        description="weight of the generation. Source: ViTKD, beta = 3e-6 on a sum over 196 tokens of width 768; here "
        "on their mean",
    )
    mask_ratio: float = Field(0.5, ge=0, le=1, description="share of hidden tokens. Source: ViTKD, lambda = 0.5")


def is_plain(spec: FeatureSpec) -> bool:
    """Whether all blocks have one width and one stride, as those of a plain transformer."""
    return not spec.convolutional and set(spec.channels) == {spec.final_channels} and len(set(spec.strides)) == 1


def shallow_widths(spec: FeatureSpec) -> tuple[int, ...]:
    """Channels of what stands for blocks 0 and 1."""
    return (spec.final_channels,) * 2 if is_plain(spec) else spec.channels[:2]


def shallow_maps(features: Features, spec: FeatureSpec) -> tuple[Tensor, ...]:
    """Blocks 0 and 1 of a plain transformer, the two shallowest levels of other networks."""
    return (features.blocks[0], features.blocks[1]) if is_plain(spec) else features.levels[:2]


class Generation(nn.Module):
    """Fills a map whose hidden positions hold one learnt token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(width, 1, 1))
        self.generator = generator(width)

    def forward(self, map_: Tensor, hidden: Tensor) -> Tensor:
        """map_ (B, C, h, w), hidden (B, 1, h, w) bool, to (B, C, h, w)."""
        filled: Tensor = self.generator(torch.where(hidden, self.mask_token, map_))
        return filled


def random_masks(map_: Tensor, ratio: float) -> Tensor:
    """Masks (B, 1, h, w) that keep exactly floor(N (1 - ratio)) positions of each image, drawn uniformly."""
    batch, _, height, width = map_.shape
    kept = share(height * width, 1 - ratio)
    ranks = torch.rand(batch, height * width, device=map_.device).argsort(1).argsort(1)
    return (ranks >= kept).reshape(batch, 1, height, width)


class ViTKD(FeatureMethod[ViTKDConfig]):
    r"""The student mimics the teacher's first two blocks and regenerates its last map from half of the tokens.

    Formula:
    $x^l$ is the output of block $l$ (before any norm of the network's own), $F$ the last map after the last norm; $W$
    are linear maps to the teacher's width, with bias (none where the widths agree). $m$ is 1 at hidden tokens: all but
    $\lfloor N / 2 \rfloor$ of each image, drawn at random. One learnt token, which starts at zero, takes their place
    (written $m$ in the index), and $G$, two 3x3 convolutions with a ReLU between them, fills the map.

    $$ L = \frac{\alpha}{2} \sum_{l=0}^{1} \mathrm{mse}(W_l x_s^l, x_t^l)
    + \frac{\beta}{C_t \sum_i m_i} \sum_i m_i \lVert G((W F_s)_m)_i - F_{t,i} \rVert^2 $$

    Mapped student maps are resized to the teacher's grid, before tokens are hidden.

    Deviations: weights stand on means, so that they do not grow with the crop or the width; defaults convert the sums
    over 196 tokens of a teacher 768 wide (DeiT III-B to DeiT-S at 224 pixels). In networks that are no plain
    transformers the two shallowest levels stand for blocks 0 and 1. Grids need not be square. The published
    numbers are for classification, some of them with NKD, which is left out.

    Compared: cls_KD's mmcls/models/dis_losses/vitkd.py on random maps with equal weights and masks: equal to 2e-7, with
    the published weights put back on sums.
    """

    paper = "Yang, Li, Zeng, Li, Yuan, Li, ViTKD: Practical Guidelines for ViT Feature KD, 2022 (arXiv 2209.02432)"
    blocks = (0, 1)

    def __init__(self, config: ViTKDConfig, pair: PairSpec) -> None:
        super().__init__(config, pair)
        widths = zip(shallow_widths(pair.student), shallow_widths(pair.teacher), strict=False)
        self.shallow = nn.ModuleList(align(*both) for both in widths)
        self.deep = align(pair.student.final_channels, pair.teacher.final_channels)
        self.generation = Generation(pair.teacher.final_channels)
        if not is_plain(pair.student):
            self.footnote = "ViTKD from levels: kdbench's extension; the paper's students are plain ViTs"

    def terms(self, batch: Batch, student: Features, teacher: Features) -> dict[str, Tensor]:
        low = zip(
            self.shallow, shallow_maps(student, self.pair.student), shallow_maps(teacher, self.pair.teacher),
            strict=False,
        )  # fmt: skip
        errors = [F.mse_loss(resize_as(map_(s), t).float(), t.float()) for map_, s, t in low]
        last = resize_as(self.deep(student.final), teacher.final)
        hidden = random_masks(last, self.config.mask_ratio)
        misses = (self.generation(last, hidden).float() - teacher.final.float()).square().mean(1, keepdim=True)
        return {
            "mimicking": self.config.mimicking * torch.stack(errors).mean(),
            "generation": self.config.generation * (misses * hidden).sum() / hidden.sum().clamp(min=1),
        }
