"""Similarity-preserving distillation: how alike the images of a batch are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.method import FeatureMethod, MethodConfig
from kdbench.types import Batch, Features


class SPConfig(MethodConfig):
    """The weight of the term."""

    row_weight: float = Field(
        3000 / 64,
        ge=0,
        description="mdistiller: 3000 on the mean over all entries of batches of 64 images; on the mean over "
        "rows that is 46.9",
    )


def similarities(map_: Tensor) -> Tensor:
    """(B, C, h, w) to (B, B): products of whole maps, each image's row scaled to Euclidean norm one."""
    rows = map_.float().flatten(1)
    with torch.autocast(rows.device.type, enabled=False):
        return F.normalize(rows @ rows.T)


class SP(FeatureMethod[SPConfig]):
    """Images that are alike to the teacher become alike to the student.

    Formula: the last map of every image as one vector, F (B, C h w); G = F F^T, each row divided by its Euclidean norm.
    The loss is the squared distance between a row of G_student and of G_teacher, mean over the B rows. Neither widths
    nor grids need agree, so nothing is projected or resized.

    Deviations: the map is the encoder's last. The rows' norm is Euclidean as in mdistiller; torchdistill passes the
    order 1 and so divides by the sum of magnitudes. As the rows have norm one, a mean over all entries, as mdistiller
    takes it, shrinks with the batch; here they are summed along a row and the weight is converted. In a batch of a few
    images the term says little. The similarities are those within one device's batch; of a single image they say
    nothing, so that a run which gives a process fewer than two is refused.

    Compared: mdistiller's distillers/SP.py on random maps, times the batch / 64: equal, value and gradient.
    """

    paper = "Tung, Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019 (arXiv 1907.09682)"
    smallest_batch = 2

    def terms(self, batch: Batch, student: Features, teacher: Features) -> dict[str, Tensor]:
        difference = similarities(student.final) - similarities(teacher.final)
        return {"sp": self.config.row_weight * difference.square().sum(1).mean()}
