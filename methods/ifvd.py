"""Distillation of the variation within classes."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.losses import labels_at, last_maps, pixel_kl, tokens
from kdbench.method import FeatureMethod, PresetConfig
from kdbench.types import IGNORE, Batch, Features


class IFVDConfig(PresetConfig):
    weight: float = Field(20.0, ge=0, description="weight of the loss. Source: CIRKD, 20 beside logits at 1")


def variation(map_: Tensor, label: Tensor, classes: int) -> Tensor:
    """Cosine (B, h * w) of each position with the centre of its class in its image; one where ignored."""
    rows, ignored = tokens(map_), label.flatten(1) == IGNORE
    index = torch.where(ignored, classes, label.flatten(1))[..., None].expand_as(rows)
    # A centre's length does not matter to a cosine, so the sum stands for the mean.
    sums = rows.new_zeros(len(rows), classes + 1, rows.shape[2]).scatter_add(1, index, rows)
    return F.cosine_similarity(rows, sums.gather(1, index), dim=2).masked_fill(ignored, 1.0)


class IFVD(FeatureMethod[IFVDConfig]):
    r"""Every position is as close to the centre of its class as it is for the teacher.

    Formula:
    $F_i$ is the last map's vector at position $i$ of an image, $y_i$ its label (on the teacher's grid, by nearest
    neighbour), $\mu_k$ the mean vector of class $k$ in that image, through which the gradient flows.

    $$ u_i = \cos(F_i, \mu_{y_i}) \qquad L = \frac{w}{B h w} \sum_i (u_i^s - u_i^t)^2 $$

    $u_i = 1$ where the label is ignored, so that such positions add nothing. The student's map is resized to the
    teacher's grid; widths need not agree.

    Deviations: the map is the encoder's last, not the feature before the classifier. The official code weighs the term
    200 beside logit distillation at 10; CIRKD's 20 beside 1 are taken. The adversarial term of both is left out.

    Compared: CIRKD's losses/ifvd.py and the official utils/criterion.py (YukangWang/IFVD) on random maps with ignored
    pixels: values equal to 3e-7, gradients to 6e-7.
    """

    paper = "Wang, Zhou, Jiang, Bai, Xu, Intra-class Feature Variation Distillation, ECCV 2020"
    auxiliary_losses: ClassVar = {"logit_kd": pixel_kl}

    def terms(self, batch: Batch, student: Features, teacher: Features) -> dict[str, Tensor]:
        maps, label = last_maps(student, teacher), labels_at(batch.label, teacher.final.shape[-2:])
        ours, goal = (variation(map_, label, self.pair.classes) for map_ in maps)
        return {"ifvd": self.config.weight * F.mse_loss(ours, goal)}
