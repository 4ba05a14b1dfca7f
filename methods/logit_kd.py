"""Logit distillation, pixel by pixel."""

from __future__ import annotations

from torch import Tensor

from kdbench.losses import kl, same_grid
from kdbench.method import Knobs, Method, knob
from kdbench.types import Batch, Segmentor


class LogitKnobs(Knobs):
    """Temperature and weight."""

    temperature: float = knob(1.0, "CIRKD and Af-DCD (Cityscapes): T = 1", gt=0)
    weight: float = knob(1.0, "CIRKD and Af-DCD (Cityscapes): lambda = 1", ge=0)


class LogitKD(Method):
    """The student's class posterior at every pixel follows the teacher's softened one."""

    paper = "Hinton, Vinyals, Dean 2014 (arXiv 1503.02531); per pixel in Liu et al., CVPR 2019"
    Config = LogitKnobs

    def loss(self, batch: Batch, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
        output = student(batch.image)
        assert batch.label is not None
        ours, theirs = same_grid(output.logits, teacher(batch.image).logits)
        divergence = kl(ours, theirs, self.config.temperature, dim=1).mean()
        return {**student.task_loss(output, batch.label), "logit_kd": self.config.weight * divergence}
