"""Channel-wise distillation of logits, features or both."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from kdbench.losses import Projector, channel_kl, pixel_kl, resize, same_grid
from kdbench.method import Method, PresetConfig
from kdbench.types import Batch, PairSpec, Segmentor


class CWDConfig(PresetConfig):
    """What is distilled, how softly and how strongly."""

    target: Literal["logits", "features", "both"] = Field(
        "logits", description="TorchDistiller's headline command: logits only"
    )
    temperature: float = Field(4.0, gt=0, description="TorchDistiller README and CIRKD script: T = 4")
    logit_weight: float = Field(3.0, ge=0, description="TorchDistiller README and CIRKD script: 3")
    feature_weight: float = Field(50.0, ge=0, description="CIRKD script: 50")


def projector(inputs: int, outputs: int, convolutional: bool) -> nn.Module:
    """Where the widths differ, a projector without biases, which no gradient would reach."""
    if inputs == outputs:
        return nn.Identity()
    made = Projector(inputs, outputs, convolutional)
    for layer in (made.norm, made.linear):
        layer.register_parameter("bias", None)
    return made


class CWD(Method[CWDConfig]):
    """Each channel is a distribution over positions, and the student's follows the teacher's.

    Formula: T^2 times KL(teacher || student) of the softmax over the positions of each channel of a map / T, mean over
    samples and channels. The map is the logits, the last feature map, or each of them. Features are first projected to
    the teacher's width where the widths differ, a student of tokens by a layer norm and a linear map, a convolutional
    one by a 1x1 convolution, and resized to the teacher's grid.

    Deviations: CIRKD divides the feature term by the student's channels, which makes it C_t / C_s times larger behind a
    projector; here it is the teacher's. The projector has no biases, because the softmax over positions does not see
    them. The numbers of CIRKD's tables come from both targets with logit distillation and an adversarial term; recipe =
    paper is the first three, logit distillation with weight 1 at T = 1.

    Compared: CIRKD's losses/cwd.py on random maps of equal width: equal to 1.4e-7, relative.
    """

    paper = "Shu, Liu, Gao, Yan, Shen, ICCV 2021 (arXiv 2011.13256)"

    def __init__(self, config: CWDConfig, pair: PairSpec) -> None:
        super().__init__(config, pair)
        self._combined = config.preset == "published"
        self.reads_teacher_logits = self._combined or config.target != "features"
        self._on_features = self._combined or config.target != "logits"
        inputs, outputs = pair.final_channels
        if self._on_features:
            self.projector = projector(inputs, outputs, pair.student.convolutional)

    def loss(self, batch: Batch, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
        ours, theirs = student(batch.image), teacher.encode(batch.image)
        terms, config = student.task_loss(ours, batch.label), self.config
        if self.reads_teacher_logits:
            logits = same_grid(ours.logits, teacher.decode(theirs).logits)
            terms["cwd_logits"] = config.logit_weight * channel_kl(*logits, config.temperature)
            if self._combined:
                terms["logit_kd"] = pixel_kl(*logits)
        if self._on_features:
            projected = resize(self.projector(ours.features.final), theirs.final.shape[-2:])
            terms["cwd_features"] = config.feature_weight * channel_kl(projected, theirs.final, config.temperature)
        return terms
