"""Logit distillation after standardising the logits of each pixel."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from kdbench.losses import pixel_kl
from kdbench.method import LogitMethod, MethodConfig
from kdbench.types import Batch


class LogitStdConfig(MethodConfig):
    temperature: float = Field(
        2.0, gt=0, description="softmax temperature T. Source: Sun et al. (CIFAR-100) and torchdistill's sample, 2"
    )
    weight: float = Field(
        9.0,
        ge=0,
        description="weight of the loss. Source: Sun et al.'s ImageNet command and "
        "torchdistill's sample, 9 to the labels' 1 (their CIFAR-100 command: 90 to 1)",
    )


def standardised(logits: Tensor) -> Tensor:
    """Zero mean and unit deviation over the classes of each pixel."""
    logits = logits.float()
    return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + 1e-7)


class LogitStd(LogitMethod[LogitStdConfig]):
    r"""The student has to order the classes as the teacher does and space them in proportion, on any scale of its own.

    Formula:
    The logits $z$ of every pixel are standardised over the $K$ classes, in student and teacher; logit distillation
    follows, with $\sigma$ the softmax over the classes.

    $$ \hat z = \frac{z - \mathrm{mean}(z)}{\mathrm{std}(z) + 10^{-7}} \qquad
    L = \frac{w T^2}{B h w} \sum_i \mathrm{KL}(\sigma(\hat z_t^i / T) \Vert \sigma(\hat z_s^i / T)) $$

    Deviations: the paper classifies images; pixels stand for samples here, and ignored ones count, as in logit
    distillation. The authors give some pairs T = 3; torchdistill's sample halves the task loss beside the same weight.
    torchdistill's code standardises the last axis, which in a map is its width and not the classes.

    Compared: torchdistill's losses/mid_level.py (LogitStdKDLoss) on the pixels of random maps as rows: equal to 4.5e-7.
    """

    paper = "Sun, Ren, Li, Wang, Cao, Logit Standardization in Knowledge Distillation, CVPR 2024 (arXiv 2403.01427)"

    def terms(self, batch: Batch, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        divergence = pixel_kl(standardised(student), standardised(teacher), self.config.temperature)
        return {"logit_std": self.config.weight * divergence}
