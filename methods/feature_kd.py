"""Feature distillation: the hint of FitNets on the last map."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.losses import Projector, pixel_kl, resize_as
from kdbench.method import FeatureMethod, PresetConfig
from kdbench.types import Batch, Features, PairSpec


class FeatureKDConfig(PresetConfig):
    weight: float = Field(10.0, ge=0, description="weight of the error. Source: CIRKD, lambda = 10")


class FeatureKD(FeatureMethod[FeatureKDConfig]):
    r"""The student's last feature map, projected to the teacher's width, follows the teacher's in squared error.

    Formula:
    $F$ $(B, C, h, w)$ is an encoder's last map, $P$ a projector: LayerNorm and a linear map for token networks, a 1x1
    convolution without bias for convolutional ones. The projected map is resized to the teacher's grid. FitNets, eq. 3.

    $$ L = \frac{\lambda}{B C_t h w} \lVert P(F_s) - F_t \rVert^2 $$

    Deviations: CIRKD reads the last feature before the classifier; kdbench's decoders share no such layer, so the
    encoder's last map is read. The published numbers add logit distillation with weight 1 at T = 1.

    Compared: CIRKD's losses/fitnet.py on random maps, for a convolutional student: equal to 1.9e-7, relative.
    """

    paper = "Romero et al., FitNets, ICLR 2015 (arXiv 1412.6550)"
    auxiliary_losses: ClassVar = {"logit_kd": pixel_kl}

    def __init__(self, config: FeatureKDConfig, pair: PairSpec) -> None:
        super().__init__(config, pair)
        widths = pair.final_channels
        self.projector = Projector(*widths, convolutional=pair.student.convolutional)

    def terms(self, batch: Batch, student: Features, teacher: Features) -> dict[str, Tensor]:
        projected = resize_as(self.projector(student.final), teacher.final)
        return {"feature_kd": self.config.weight * F.mse_loss(projected.float(), teacher.final.float())}
