"""ICKD: how the channels of a map correlate with each other."""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.losses import product
from kdbench.method import FeatureMethod, MethodConfig
from kdbench.types import Batch, Features, PairSpec


class ICKDConfig(MethodConfig):
    weight: float = Field(
        500 / 256,
        ge=0,
        description="weight of the correlations. Source: torchdistill's sample, 500 on a loss divided by its batch of "
        "256 once more; divided by that (CIFAR code: 2.5)",
    )


def correlations(map_: Tensor) -> Tensor:
    """Inner products of the channels of (B, C, h, w), each row of (B, C, C) brought to unit length."""
    channels = map_.flatten(2)
    return F.normalize(product(channels, channels.mT), dim=2)


class ICKD(FeatureMethod[ICKDConfig]):
    r"""Each channel of the student's adapted map relates to its other channels as the teacher's does.

    Formula:
    $F$ $(C, N)$ is an image's last map, the student's brought to the teacher's width by a 3x3 convolution without bias
    and a batch norm. $G$ holds the inner products of its channels, each row scaled to unit length. The grids may
    differ: positions are summed away.

    $$ G_c(F) = \frac{(F F^\top)_c}{\lVert (F F^\top)_c \rVert} \qquad
    L = \frac{w}{B C} \sum_{b,c} \lVert G_c(F_s^b) - G_c(F_t^b) \rVert^2 $$

    Deviations: the paper's code for ImageNet, and torchdistill's after it, divide by the batch's size twice; here it is
    once, and the weight 500 is divided by their batch of 256. The code for CIFAR divides once. The map is the encoder's
    last. The paper's segmentation also takes a matrix in each cell of a grid; no training code of that is public, and
    the single cell (1x1) of its table is what stands here.

    Compared: torchdistill's losses/mid_level.py (ChSimLoss) with models/wrapper.py (ChannelSimilarityEmbed), times the
    batch, on random maps: equal to 1.5e-7.
    """

    paper = "Liu et al., Exploring Inter-Channel Correlation for Diversity-preserved KD, ICCV 2021 (arXiv 2202.03680)"

    def __init__(self, config: ICKDConfig, pair: PairSpec) -> None:
        super().__init__(config, pair)
        inputs, outputs = pair.final_channels
        self.adapter = nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))

    def terms(self, batch: Batch, student: Features, teacher: Features) -> dict[str, Tensor]:
        difference = correlations(self.adapter(student.final)) - correlations(teacher.final)
        return {"ickd": self.config.weight * difference.square().sum(2).mean()}
