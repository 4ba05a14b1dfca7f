"""Feature distillation: the hint of FitNets on the last map."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from kdbench.losses import Projector, resize
from kdbench.method import Knobs, Method, Stage, knob
from kdbench.types import STUDENT, Batch, PairSpec, Part, Segmentor


class FeatureKnobs(Knobs):
    """The weight of the hint."""

    weight: float = knob(10.0, "CIRKD: lambda = 10 beside the task loss", ge=0)


class FeatureKD(Method):
    """The student's last feature map, projected to the teacher's width, follows the teacher's in squared error."""

    paper = "Romero et al., FitNets, ICLR 2015 (arXiv 1412.6550)"
    Config = FeatureKnobs

    def __init__(self, config: Any, pair: PairSpec) -> None:
        super().__init__(config, pair)
        widths = pair.student.final_channels, pair.teacher.final_channels
        self.projector = Projector(*widths, convolutional=pair.student.convolutional)

    def stages(self) -> tuple[Stage, ...]:
        return (self.joint(uses=STUDENT | {Part.TEACHER_ENCODER}),)

    def loss(self, batch: Batch, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
        output, target = student(batch.image), teacher.encode(batch.image).final
        assert batch.label is not None
        projected = resize(self.projector(output.features.final), target.shape[-2:])
        hint = F.mse_loss(projected.float(), target.float())
        return {**student.task_loss(output, batch.label), "feature_kd": self.config.weight * hint}
