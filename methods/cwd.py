"""Channel-wise distillation of logits, features or both."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from kdbench.losses import Projector, kl, resize, same_grid
from kdbench.method import FIT_TEACHER, Knobs, Method, Stage, knob
from kdbench.types import STUDENT, Batch, PairSpec, Part, Segmentor


class ChannelKnobs(Knobs):
    """What is distilled, how softly and how strongly."""

    target: Literal["logits", "features", "both"] = knob("logits", "TorchDistiller's headline command: logits only")
    temperature: float = knob(4.0, "TorchDistiller README and CIRKD script: T = 4", gt=0)
    logit_weight: float = knob(3.0, "TorchDistiller README and CIRKD script: 3", ge=0)
    feature_weight: float = knob(50.0, "CIRKD script: 50", ge=0)


def channel_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Shu et al. 2021, eq. 3-4: KL over the positions of each channel, mean over B and the teacher's C."""
    return kl(student.flatten(2), teacher.flatten(2), temperature, dim=2).mean()


class CWD(Method):
    """Each channel is a distribution over positions, and the student's follows the teacher's."""

    paper = "Shu, Liu, Gao, Yan, Shen, ICCV 2021 (arXiv 2011.13256)"
    Config = ChannelKnobs

    def __init__(self, config: Any, pair: PairSpec) -> None:
        super().__init__(config, pair)
        inputs, outputs = pair.student.final_channels, pair.teacher.final_channels
        if config.target != "logits":
            same = inputs == outputs
            self.projector: nn.Module = (
                nn.Identity() if same else Projector(inputs, outputs, convolutional=pair.student.convolutional)
            )

    def stages(self) -> tuple[Stage, ...]:
        if self.config.target == "features":
            return (self.joint(uses=STUDENT | {Part.TEACHER_ENCODER}),)
        return (FIT_TEACHER, self.joint())

    def loss(self, batch: Batch, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
        ours, theirs = student(batch.image), teacher.encode(batch.image)
        assert batch.label is not None
        terms = student.task_loss(ours, batch.label)
        temperature = self.config.temperature
        if self.config.target != "features":
            logits = same_grid(ours.logits, teacher.decode(theirs).logits)
            terms["cwd_logits"] = self.config.logit_weight * channel_divergence(*logits, temperature)
        if self.config.target != "logits":
            projected = resize(self.projector(ours.features.final), theirs.final.shape[-2:])
            divergence = channel_divergence(projected, theirs.final, temperature)
            terms["cwd_features"] = self.config.feature_weight * divergence
        return terms
