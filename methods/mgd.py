"""Masked generative distillation: the teacher's whole map from a part of the student's."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.losses import align, channel_kl, generator, resize_as
from kdbench.method import FeatureMethod, PresetConfig
from kdbench.types import Batch, Features, PairSpec


class MGDConfig(PresetConfig):
    mask_ratio: float = Field(
        0.75, ge=0, le=1, description="chance that a position is hidden. Source: MGD for segmentation, lambda = 0.75"
    )
    weight_on_mean: float = Field(
        167.8,
        ge=0,
        description="weight of the error. Source: MGD for segmentation, alpha = 2e-5 on a sum over 2048 x 64 x 64 "
        "elements (PSPNet-R101, crops of 512 at stride 8); here on their mean",
    )


def channel_wise(student: Tensor, teacher: Tensor) -> Tensor:
    """Channel-wise distillation of the logits, as MGD's segmentor adds it: T = 4, weight 3."""
    return 3 * channel_kl(student, teacher, temperature=4.0)


class MGD(FeatureMethod[MGDConfig]):
    r"""The student's last map, with positions hidden at random, has to regenerate the whole map of the teacher.

    Formula:
    $A$ brings the student's last map to the teacher's width (1x1 convolution; identity where the widths agree) and
    grid. $m$ sets each position to zero with probability 0.75, in all channels at once, without rescaling the others.
    $G$ is two 3x3 convolutions of the teacher's width with a ReLU between them. The error counts all positions.

    $$ L = \frac{w}{B C_t h w} \lVert G(m \odot A(F_s)) - F_t \rVert^2 $$

    Deviations: the paper sums over channels and positions; the mean with the coefficient of its segmentation setting
    holds the weight of an element's mean error fixed for other crops, patches and widths. The released sum would weigh
    a map of 96 x 8 x 16 by 0.25 in place of 167.8. The map is the encoder's last, for the backbone's fourth
    stage. The published segmentation numbers add channel-wise distillation of logits with weight 3 at T = 4. Masking
    channels, as for classification, is left out.

    Compared: MGD's seg/mmseg/distillation/losses/mgd.py on random maps, with the same masks: equal to 1e-7.
    """

    paper = "Yang, Li, Shao, Shi, Yuan, Yuan, Masked Generative Distillation, ECCV 2022 (arXiv 2205.01529)"
    auxiliary_losses: ClassVar = {"cwd": channel_wise}

    def __init__(self, config: MGDConfig, pair: PairSpec) -> None:
        super().__init__(config, pair)
        inputs, outputs = pair.final_channels
        self.align = align(inputs, outputs)
        self.generator = generator(outputs)

    def terms(self, batch: Batch, student: Features, teacher: Features) -> dict[str, Tensor]:
        goal = teacher.final
        aligned = resize_as(self.align(student.final), goal)
        seen = torch.rand_like(aligned[:, :1], dtype=torch.float32) >= self.config.mask_ratio
        error = F.mse_loss(self.generator(aligned * seen).float(), goal.float())
        return {"mgd": self.config.weight_on_mean * error}
