"""Softmax regression representation learning for dense maps: the teacher's decoder judges the student's features."""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.losses import LevelProjectors
from kdbench.method import Method, MethodConfig
from kdbench.types import Batch, PairSpec, Segmentor


class SRRLConfig(MethodConfig):
    feature_weight: float = Field(1.0, ge=0, description="weight of the features' means. Source: SRRL, alpha = 1")
    logit_weight: float = Field(
        1.0, ge=0, description="weight of the logits. Source: SRRL, beta = 1 on ImageNet (CIFAR: 5)"
    )


def linear(inputs: int, outputs: int) -> nn.Sequential:
    """SRRL's projector, less the ReLU at its end: levels of transformers are signed."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


class SRRL(Method[SRRLConfig]):
    r"""The student's features, projected, have to give the teacher's logits in the teacher's frozen decoder.

    Formula:
    $P_l$ predicts each of the $n$ levels $F_t^l$ that the teacher's decoder $D$ reads from the student's level: a 1x1
    convolution without bias and batch norm. $\bar F$ is the mean over positions.

    $$ L = \frac{\alpha}{n} \sum_{l=1}^{n} \mathrm{mse}( \overline{P_l(F_s^l)}, \overline{F_t^l} )
    + \beta \cdot \mathrm{mse}(D(P(F_s)), D(F_t)) $$

    The gradient flows through the decoder into projectors and student. The task loss beside them trains the student's
    own decoder, which is deployed.

    Deviations: SRRL feeds a linear classifier of one pooled map; for a decoder of several levels each has its
    projector, and the decoder reads maps instead of a mean. The ReLU at the projector's end is left out, since levels
    of transformers are signed. A finer student level is pooled by whole steps before its projector, and projected
    levels are resized to the teacher's grids. A student with more levels leaves out its shallowest; in one with fewer
    the deepest serves several of the teacher's.

    Compared: cls_KD's mmcls/models/dis_losses/srrl.py and the form in SimKD's models/util.py, less their last ReLU, on
    one level of random maps with a linear decoder: equal to the last bit, with its gradient.
    """

    paper = "Yang, Martinez, Bulat, Tzimiropoulos, Softmax Regression Representation Learning, ICLR 2021"

    def __init__(self, config: SRRLConfig, pair: PairSpec) -> None:
        super().__init__(config, pair)
        self.projectors = LevelProjectors(pair.student, pair.teacher, linear)

    def loss(self, batch: Batch, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
        output, theirs = student(batch.image), teacher(batch.image)
        goals = theirs.features.levels
        levels = self.projectors(output.features.levels, [goal.shape[-2:] for goal in goals])
        means = [F.mse_loss(_mean(a), _mean(b)) for a, b in zip(levels, goals, strict=True)]
        judged = teacher.decode(replace(output.features, levels=levels))
        return {
            **student.task_loss(output, batch.label),
            "srrl_features": self.config.feature_weight * sum(means[1:], means[0]) / len(means),
            "srrl_logits": self.config.logit_weight * F.mse_loss(judged.logits.float(), theirs.logits.float()),
        }


def _mean(level: Tensor) -> Tensor:
    return level.float().mean((2, 3))
