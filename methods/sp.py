"""Similarity-preserving distillation: how alike the images of a batch are."""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.losses import product
from kdbench.method import FeatureMethod, MethodConfig
from kdbench.types import Batch, Features


class SPConfig(MethodConfig):
    row_weight: float = Field(
        3000 / 64,
        ge=0,
        description="weight of the distance of two rows. Source: mdistiller, 3000 on the mean over all entries of "
        "batches of 64 images; divided by those",
    )


def similarities(map_: Tensor) -> Tensor:
    """(B, C, h, w) to (B, B): products of whole maps, each image's row scaled to Euclidean norm one."""
    rows = map_.flatten(1)
    return F.normalize(product(rows, rows.T))


class SP(FeatureMethod[SPConfig]):
    r"""Images that are alike to the teacher become alike to the student.

    Formula:
    $F$ $(B, C h w)$ holds the last map of every image as one vector; $G$ their inner products, each row scaled to
    Euclidean norm one. Neither widths nor grids need agree.

    $$ G_b(F) = \frac{(F F^\top)_b}{\lVert (F F^\top)_b \rVert} \qquad
    L = \frac{w}{B} \sum_b \lVert G_b(F_s) - G_b(F_t) \rVert^2 $$

    Deviations: the map is the encoder's last. torchdistill passes the order 1 for the rows' norm and so divides by the
    sum of magnitudes. A mean over all entries, as in mdistiller, shrinks with the batch; here they are summed along a
    row and the weight is converted. The similarities are those within one device's batch: of a few images they say
    little, of one nothing, so that a run which gives a process fewer than two is refused.

    Compared: mdistiller's distillers/SP.py on random maps, times the batch / 64: equal, value and gradient.
    """

    paper = "Tung, Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019 (arXiv 1907.09682)"
    smallest_batch = 2

    def terms(self, batch: Batch, student: Features, teacher: Features) -> dict[str, Tensor]:
        difference = similarities(student.final) - similarities(teacher.final)
        return {"sp": self.config.row_weight * difference.square().sum(1).mean()}
