"""Variational information distillation: a Gaussian of the teacher's features, given the student's."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.losses import matched_levels, resize_as
from kdbench.method import FeatureMethod, MethodConfig
from kdbench.types import Batch, Features, PairSpec

FLOOR = 1e-5
"""Smallest variance (mdistiller, torchdistill)."""


class VIDConfig(MethodConfig):
    weight: float = Field(1.0, ge=0, description="weight of the loss. Source: mdistiller and torchdistill, 1 a level")
    variance: float = Field(5.0, gt=FLOOR, description="variance to begin with. Source: mdistiller and torchdistill, 5")


class Gaussian(nn.Module):
    """The teacher's map given the student's: a mean for each position and channel, a variance for each channel."""

    def __init__(self, student: int, teacher: int, variance: float) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(student, teacher, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher, teacher, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher, teacher, 1, bias=False),
        )
        start = variance - FLOOR
        # The inverse of softplus, in the form that does not overflow.
        self.scale = nn.Parameter(torch.full((teacher,), start + math.log(-math.expm1(-start))))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean negative log-likelihood of the teacher's map, without the constant."""
        mean = resize_as(self.mean(student), teacher).float()
        variance = F.softplus(self.scale.float()).view(-1, 1, 1) + FLOOR
        return 0.5 * ((mean - teacher.float()).square() / variance + variance.log()).mean()


class VID(FeatureMethod[VIDConfig]):
    r"""The student's levels predict the teacher's as Gaussians, with an uncertainty that is learnt for each channel.

    Formula:
    For each level, $\mu$ is three 1x1 convolutions without bias with ReLUs between them, from the student's width to
    the teacher's, resized to the teacher's grid; $a_c$ is learnt for each channel $c$ of the teacher's map $t$.

    $$ \sigma_c^2 = \log(1 + e^{a_c}) + 10^{-5} \qquad
    L = w \sum_{levels} \frac{1}{B C h w} \sum_{b,c,i}
    \frac{1}{2} \left( \frac{(\mu_{c,i} - t_{c,i})^2}{\sigma_c^2} + \log \sigma_c^2 \right) $$

    It can be negative.

    Deviations: mdistiller keeps the a_c where its optimiser does not find them, so that its variances stay at 5; here
    they are trained, as in the paper and in torchdistill. mdistiller pools the larger of two maps down to the smaller
    one's height; here the student's is resized. Levels of transformers are blocks before the last norm.

    Compared: torchdistill's models/wrapper.py with losses/mid_level.py, and mdistiller's distillers/VID.py, on random
    maps of one grid with random variances: equal to 4e-6.
    """

    paper = "Ahn, Hu, Damianou, Lawrence, Dai, Variational Information Distillation, CVPR 2019 (arXiv 1904.05835)"

    def __init__(self, config: VIDConfig, pair: PairSpec) -> None:
        super().__init__(config, pair)
        self.gaussians = nn.ModuleList(Gaussian(*both, config.variance) for both in pair.level_channels)

    def terms(self, batch: Batch, student: Features, teacher: Features) -> dict[str, Tensor]:
        maps = zip(self.gaussians, matched_levels(student, teacher), strict=True)
        return {"vid": self.config.weight * torch.stack([gaussian(*level) for gaussian, level in maps]).sum()}
