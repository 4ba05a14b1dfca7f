"""Logit distillation, pixel by pixel."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from kdbench.losses import pixel_kl
from kdbench.method import LogitMethod, MethodConfig
from kdbench.types import Batch


class LogitKDConfig(MethodConfig):
    temperature: float = Field(
        1.0, gt=0, description="softmax temperature T. Source: CIRKD and Af-DCD for Cityscapes, T = 1"
    )
    weight: float = Field(1.0, ge=0, description="weight of the loss. Source: CIRKD and Af-DCD for Cityscapes, 1")


class LogitKD(LogitMethod[LogitKDConfig]):
    r"""The student's class posterior at every pixel follows the teacher's softened one.

    Formula:
    $z$ $(B, K, h, w)$ are the logits at the larger of the two networks' grids, $\sigma$ the softmax over the $K$
    classes of a pixel $i$. Hinton et al., section 2, at every pixel.

    $$ L = \frac{w T^2}{B h w} \sum_i \mathrm{KL}(\sigma(z_t^i / T) \Vert \sigma(z_s^i / T)) $$

    Deviations: none from CIRKD's form. Other repositories divide by the classes too (TorchDistiller, with weight 10)
    or sum over the pixels (mmrazor). Ignored pixels count, as there.

    Compared: CIRKD's losses/kd.py on random logits: equal to 1.2e-7, relative.
    """

    paper = "Hinton, Vinyals, Dean 2014 (arXiv 1503.02531); per pixel in Liu et al., CVPR 2019"

    def terms(self, batch: Batch, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        return {"logit_kd": self.config.weight * pixel_kl(student, teacher, self.config.temperature)}
