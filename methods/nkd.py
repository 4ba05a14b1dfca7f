"""NKD: a soft target for the label's class, and a normalised one for all others."""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.losses import labels_at, other_classes
from kdbench.method import LogitMethod, MethodConfig
from kdbench.types import IGNORE, Batch


class NKDConfig(MethodConfig):
    gamma: float = Field(
        1.5, ge=0, description="weight of the other classes' part. Source: cls_KD for ImageNet, CNNs, 1.5 (DeiT: 1)"
    )
    temperature: float = Field(1.0, gt=0, description="temperature T of that part. Source: cls_KD for ImageNet, T = 1")


class NKD(LogitMethod[NKDConfig]):
    r"""The teacher's probability of the label's class weighs a cross-entropy; the other classes follow it normalised.

    Formula:
    At a pixel with label $y$, $p$ is the softmax of the logits, $\hat p$ the softmax of the other $K - 1$ logits / $T$.

    $$ L = - p_t^y \log p_s^y - \gamma T^2 \sum_{k \ne y} \hat p_t^k \log \hat p_s^k $$

    Both are means over labelled pixels; labels are brought to the logits' grid by nearest neighbour. As
    cross-entropies, neither is zero where student and teacher agree.

    Deviations: the paper classifies images; taking labelled pixels for samples is ours. Ignored pixels do not count.

    Compared: cls_KD's dis_losses/nkd.py on the labelled pixels of random maps: equal to 2.3e-7.
    """

    paper = "Yang et al., From Knowledge Distillation to Self-Knowledge Distillation, ICCV 2023 (arXiv 2303.13005)"

    def terms(self, batch: Batch, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        label = labels_at(batch.label, student.shape[-2:])
        labelled, temperature = label != IGNORE, self.config.temperature
        share, label = labelled / labelled.sum().clamp(min=1), label * labelled
        ours, theirs = student.float(), teacher.float()
        place = label[:, None]
        target = theirs.softmax(1).gather(1, place) * ours.log_softmax(1).gather(1, place)
        rest = F.softmax(other_classes(theirs, label) / temperature, 1) * F.log_softmax(
            other_classes(ours, label) / temperature, 1
        )
        return {
            "nkd_target": -(share * target.squeeze(1)).sum(),
            "nkd_rest": -self.config.gamma * temperature**2 * (share * rest.sum(1)).sum(),
        }
