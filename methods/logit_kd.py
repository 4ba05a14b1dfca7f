"""Logit distillation, pixel by pixel."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from kdbench.losses import pixel_kl
from kdbench.method import LogitMethod, MethodConfig
from kdbench.types import Batch


class LogitKDConfig(MethodConfig):
    """Temperature and weight."""

    temperature: float = Field(1.0, gt=0, description="CIRKD and Af-DCD (Cityscapes): T = 1")
    weight: float = Field(1.0, ge=0, description="CIRKD and Af-DCD (Cityscapes): lambda = 1")


class LogitKD(LogitMethod[LogitKDConfig]):
    """The student's class posterior at every pixel follows the teacher's softened one.

    Formula: T^2 times the divergence KL(teacher || student) of the softmax over classes of logits / T, mean over all
    pixels of the larger of the two logit maps.

    Deviations: none from CIRKD's form. Other repositories divide by the classes too (TorchDistiller, with weight 10)
    or sum over the pixels (mmrazor). Ignored pixels count, as there.

    Compared: CIRKD's losses/kd.py on random logits: equal to 1.2e-7, relative.
    """

    paper = "Hinton, Vinyals, Dean 2014 (arXiv 1503.02531); per pixel in Liu et al., CVPR 2019"

    def terms(self, batch: Batch, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        return {"logit_kd": self.config.weight * pixel_kl(student, teacher, self.config.temperature)}
