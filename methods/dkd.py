"""DKD: the divergence of logit distillation in two parts, which get weights of their own."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from kdbench.losses import kl, labels_at, other_classes
from kdbench.method import LogitMethod, MethodConfig
from kdbench.types import IGNORE, Batch

FIRST = 1 / 20
"""The share of the weight at the very start: mdistiller's first of 20 warm-up epochs."""


class DKDConfig(MethodConfig):
    """Weights of the two parts, temperature and warm-up."""

    alpha: float = Field(1.0, ge=0, description="mdistiller: alpha = 1 throughout")
    beta: float = Field(0.5, ge=0, description="mdistiller, ImageNet: beta = 0.5 (CIFAR: 2 to 8 by pair)")
    temperature: float = Field(1.0, gt=0, description="mdistiller, ImageNet: T = 1 (CIFAR: 4)")
    warmup: float = Field(0.05, ge=0, le=1, description="kdbench: 5 % of the stage (mdistiller: CIFAR 8 %, ImageNet 0)")


def split(logits: Tensor, label: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits (B, K, h, w) as the two logits "the label's class or any other" at a temperature, and the K - 1 others."""
    rest = other_classes(logits, label)
    binary = torch.cat(
        (logits.gather(1, label[:, None]) / temperature, (rest / temperature).logsumexp(1, keepdim=True)), 1
    )
    return binary, rest


class DKD(LogitMethod[DKDConfig]):
    """Whether the student sees the label's class, and how it ranks all other classes, follow the teacher separately.

    Formula: at every labelled pixel, with p the softmax of the logits / T, the target part is T^2 times the divergence
    KL(teacher || student) of the pair (p of the label's class, 1 - that); the other part is T^2 times the divergence
    of the softmax over the other K - 1 classes. Both are means over labelled pixels, weighted by alpha and beta. Labels
    are brought to the logits' grid by nearest neighbour. Over the first 5 % of the stage the weights grow linearly from
    a twentieth to the whole.

    Deviations: the paper classifies images; taking labelled pixels for samples is ours. mdistiller's warm-up grows by
    epochs. It takes logarithms of softmaxes and shifts the label's logit by -1000; here both stay in log space, which
    is the same without the underflow. mmrazor sums over samples by mistake.

    Compared: mdistiller's distillers/DKD.py on the labelled pixels of random maps: equal to 2.8e-7.
    """

    paper = "Zhao, Cui, Song, Qiu, Liang, Decoupled Knowledge Distillation, CVPR 2022 (arXiv 2203.08679)"

    def terms(self, batch: Batch, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        label = labels_at(batch.label, student.shape[-2:])
        labelled, temperature = label != IGNORE, self.config.temperature
        weight = self._warm(batch.progress) * labelled / labelled.sum().clamp(min=1)
        (ours, our_rest), (theirs, their_rest) = (
            split(logits.float(), label * labelled, temperature) for logits in (student, teacher)
        )
        target = temperature**2 * kl(ours, theirs, temperature=1, dim=1)
        rest = kl(our_rest, their_rest, temperature, dim=1)
        return {
            "dkd_target": self.config.alpha * (weight * target).sum(),
            "dkd_rest": self.config.beta * (weight * rest).sum(),
        }

    def _warm(self, progress: float) -> float:
        """Never zero, so that a stage of a single step distils too."""
        if progress >= self.config.warmup:
            return 1.0
        return FIRST + (1 - FIRST) * progress / float(self.config.warmup)
