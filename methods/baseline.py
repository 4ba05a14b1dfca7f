"""The student alone: what every distilled student has to beat."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kdbench.method import Method, MethodConfig, Stage, task_stage


class BaselineConfig(MethodConfig):
    encoder: Literal["fine-tuned", "frozen"] = Field(
        "fine-tuned",
        description="whether the encoder learns the task. Source: GKD's configs/dinov2 (fine-tuned) and "
        "configs/frozen_vfms (frozen)",
    )


class Baseline(Method[BaselineConfig]):
    """The student alone on the labelled source, its encoder fine-tuned or frozen."""

    role = "undistilled"

    def stages(self) -> tuple[Stage, ...]:
        return (task_stage(self.config.encoder == "frozen"),)
