"""DKD: the divergence of logit distillation in two parts, which get weights of their own."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from kdbench.losses import kl, labels_at, other_classes
from kdbench.method import LogitMethod, MethodConfig
from kdbench.types import IGNORE, Batch

FIRST = 1 / 20
"""Share of the weight at the very start: mdistiller's first of 20 warm-up epochs."""


class DKDConfig(MethodConfig):
    alpha: float = Field(1.0, ge=0, description="weight of the target part. Source: mdistiller, alpha = 1 throughout")
    beta: float = Field(
        0.5,
        ge=0,
        description="weight of the other classes' part. Source: mdistiller for ImageNet, ResNet-34 to 18, 0.5 "
        "(ResNet-50 to MobileNetV1: 2; CIFAR: 2 to 8)",
    )
    temperature: float = Field(
        1.0, gt=0, description="softmax temperature T. Source: mdistiller for ImageNet, T = 1 (CIFAR: 4)"
    )
    warmup: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of the stage over which the weights grow. Source: kdbench (mdistiller: CIFAR 8 %, ImageNet "
        "none)",
    )


def split(logits: Tensor, label: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Split logits (B, K, h, w) into those of "the label's class or any other", tempered, and the K - 1 others."""
    rest = other_classes(logits, label)
    binary = torch.cat(
        (logits.gather(1, label[:, None]) / temperature, (rest / temperature).logsumexp(1, keepdim=True)), 1
    )
    return binary, rest


class DKD(LogitMethod[DKDConfig]):
    r"""Whether the student sees the label's class, and how it ranks all other classes, follow the teacher separately.

    Formula:
    At a pixel with label $y$, $p$ is the softmax of the logits / $T$, $b = (p_y, 1 - p_y)$, and $\hat p$ the softmax
    over the other $K - 1$ classes.

    $$ L = r(t) \cdot T^2 \left( \alpha \cdot \mathrm{KL}(b_t \Vert b_s)
    + \beta \cdot \mathrm{KL}(\hat p_t \Vert \hat p_s) \right) $$

    Both divergences are means over labelled pixels; labels are brought to the logits' grid by nearest neighbour. The
    factor $r$ grows linearly from 1/20 to 1 over the first 5 % of the stage.

    Deviations: the paper classifies images; labelled pixels as samples are ours. mdistiller's warm-up grows by epochs.
    mdistiller takes logarithms of softmaxes and shifts the label's logit by -1000; here both stay in log space, which
    is the same without the underflow. mmrazor sums over samples by mistake.

    Compared: mdistiller's distillers/DKD.py on the labelled pixels of random maps: equal to 2.8e-7.
    """

    paper = "Zhao, Cui, Song, Qiu, Liang, Decoupled Knowledge Distillation, CVPR 2022 (arXiv 2203.08679)"

    def terms(self, batch: Batch, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        label = labels_at(batch.label, student.shape[-2:])
        labelled, temperature = label != IGNORE, self.config.temperature
        weight = self._ramp(batch.progress) * labelled / labelled.sum().clamp(min=1)
        (ours, our_rest), (theirs, their_rest) = (
            split(logits.float(), label * labelled, temperature) for logits in (student, teacher)
        )
        target = temperature**2 * kl(ours, theirs, temperature=1, dim=1)
        rest = kl(our_rest, their_rest, temperature, dim=1)
        return {
            "dkd_target": self.config.alpha * (weight * target).sum(),
            "dkd_rest": self.config.beta * (weight * rest).sum(),
        }

    def _ramp(self, progress: float) -> float:
        """Never zero, so that a stage of a single step distils too."""
        if progress >= self.config.warmup:
            return 1.0
        return FIRST + (1 - FIRST) * progress / self.config.warmup
