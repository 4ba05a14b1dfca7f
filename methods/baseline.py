"""The student alone: what every distilled student has to beat."""

from __future__ import annotations

from typing import Literal

from kdbench.method import Method, MethodConfig, Stage, knob, task_loss
from kdbench.types import STUDENT, Part, Phase


class BaselineKnobs(MethodConfig):
    """How the undistilled student is trained."""

    encoder: Literal["fine-tuned", "frozen"] = knob(
        "fine-tuned", "GKD repository, configs/dinov2 (fine-tuned, encoder lr x 0.1); configs/frozen_vfms (frozen)"
    )


class Baseline(Method):
    """The student alone on the labelled source, its encoder fine-tuned or frozen."""

    role = "undistilled"
    Config = BaselineKnobs

    def stages(self) -> tuple[Stage, ...]:
        frozen = self.config.encoder == "frozen"
        trains = frozenset({Part.STUDENT_DECODER}) if frozen else STUDENT
        return (Stage("task", Phase.TASK, trains=trains, uses=STUDENT, loss=task_loss),)
