"""Structured distillation: the pair-wise term."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.losses import last_maps, pixel_kl, product, tokens
from kdbench.method import FeatureMethod, PresetConfig
from kdbench.types import Batch, Features


class SKDConfig(PresetConfig):
    weight: float = Field(10.0, ge=0, description="weight of the pair-wise loss. Source: CIRKD, 10")
    pool: int = Field(2, ge=1, description="side of a node, in positions. Source: CIRKD, 2")


def affinities(map_: Tensor, pool: int) -> Tensor:
    """(B, C, h, w) to (B, N, N): cosines between all nodes of an image."""
    nodes = F.normalize(tokens(F.max_pool2d(map_, pool, ceil_mode=True)), dim=2)
    return product(nodes, nodes.mT)


class SKD(FeatureMethod[SKDConfig]):
    r"""Any two places of an image are as alike to the student as they are to the teacher.

    Formula:
    The last map, max-pooled over blocks of 2 x 2 positions (incomplete ones at the border count), gives $N$ nodes
    $f_i$ an image; $a_{ij}$ is their cosine.

    $$ a_{ij} = \frac{f_i^\top f_j}{\lVert f_i \rVert \lVert f_j \rVert} \qquad
    L = \frac{w}{B N^2} \sum_{b,i,j} (a_{ij}^s - a_{ij}^t)^2 $$

    The student's map is first resized to the teacher's grid; widths need not agree.

    Deviations: CIRKD's form. The official code pools each map into 2 x 2 nodes, keeps the norm out of the gradient and
    weighs the term 1. The map is the encoder's last, not the feature before the classifier; its channels are signed in
    transformers, where the maximum prefers positive values. The paper's adversarial term is left out; its logit
    distillation, with weight 1 at T = 1 as CIRKD has it, is preset=published.

    Compared: CIRKD's losses/skd.py on random maps: values equal, gradients to 2e-7.
    """

    paper = "Liu et al., Structured Knowledge Distillation for Semantic Segmentation, CVPR 2019 (arXiv 1903.04197)"
    auxiliary_losses: ClassVar = {"logit_kd": pixel_kl}

    def terms(self, batch: Batch, student: Features, teacher: Features) -> dict[str, Tensor]:
        ours, goal = (affinities(map_, self.config.pool) for map_ in last_maps(student, teacher))
        return {"skd": self.config.weight * F.mse_loss(ours, goal)}
