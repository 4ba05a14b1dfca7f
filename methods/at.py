"""Attention transfer on the last map."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from kdbench.losses import attention, pixel_kl, resize
from kdbench.method import FeatureMethod, PresetConfig
from kdbench.types import Batch, Features


class ATConfig(PresetConfig):
    """The weight of the distance between attention maps."""

    mean_weight: float = Field(
        1e4 / (64 * 128),
        ge=0,
        description="CIRKD: 1e4 on the mean over images and positions, of which an image has 64 x 128 there; "
        "divided by those it "
        "is 1.22 on the mean over images of the squared distance",
    )


class AT(FeatureMethod[ATConfig]):
    """The student spreads its energy over the positions of an image as the teacher does.

    Formula: the attention of an image is the mean over channels of its squared last map, as a vector over positions,
    divided by its Euclidean norm. The loss is the squared Euclidean distance between both attentions, mean over images.
    The student's map is first resized to the teacher's grid; widths need not agree.

    Deviations: CIRKD takes the mean over the positions too, which ties its weight to the grid; here they are summed and
    the weight is converted. It reads the last feature before the classifier; here it is the encoder's last map. The
    paper's eq. 2 has the distance unsquared, its code and all others square it. The published numbers add logit
    distillation with weight 1 at T = 1 (preset=published).

    Compared: CIRKD's losses/at.py and mmrazor's at_loss.py on random maps, times the positions / 8192: equal to 2e-7.
    """

    paper = "Zagoruyko, Komodakis, Paying More Attention to Attention, ICLR 2017 (arXiv 1612.03928)"
    auxiliary_losses: ClassVar = {"logit_kd": pixel_kl}

    def terms(self, batch: Batch, student: Features, teacher: Features) -> dict[str, Tensor]:
        theirs = teacher.final.float()
        ours = resize(student.final.float(), theirs.shape[-2:])
        distance = (attention(ours) - attention(theirs)).square().sum(1)
        return {"at": self.config.mean_weight * distance.mean()}
