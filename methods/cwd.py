"""Channel-wise distillation of logits, features or both."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from kdbench.losses import Projector, channel_kl, pixel_kl, resize_as, same_grid
from kdbench.method import Method, PresetConfig
from kdbench.types import Batch, PairSpec, Segmentor


class CWDConfig(PresetConfig):
    target: Literal["logits", "features", "both"] = Field(
        "logits", description="the maps that are compared. Source: TorchDistiller's headline command, logits only"
    )
    temperature: float = Field(
        4.0, gt=0, description="softmax temperature T. Source: TorchDistiller's README and CIRKD's script, T = 4"
    )
    logit_weight: float = Field(
        3.0,
        ge=0,
        description="weight of the logits' term. Source: TorchDistiller's README and CIRKD's script, 3 "
        "(CIRKD's script for SegFormer: 0.3)",
    )
    feature_weight: float = Field(
        50.0, ge=0, description="weight of the features' term. Source: CIRKD's script, 50 (its script for SegFormer: 5)"
    )


def projector(inputs: int, outputs: int, convolutional: bool) -> nn.Module:
    """A projector without biases, which no gradient would reach; the identity where the widths agree."""
    if inputs == outputs:
        return nn.Identity()
    made = Projector(inputs, outputs, convolutional)
    for layer in (made.norm, made.linear):
        layer.register_parameter("bias", None)
    return made


class CWD(Method[CWDConfig]):
    r"""Each channel is a distribution over positions, and the student's follows the teacher's.

    Formula:
    The softmax over the positions $i$ of each channel $c$ of a map $F$ is a distribution; the loss compares these
    distributions (eqs. 3 and 4 of the paper).

    $$ \phi_{c,i}(F) = \frac{\exp(F_{c,i} / T)}{\sum_j \exp(F_{c,j} / T)} \qquad
    L = \frac{T^2}{B C} \sum_{b,c,i} \phi_{c,i}(F_t^b) \log \frac{\phi_{c,i}(F_t^b)}{\phi_{c,i}(F_s^b)} $$

    $F$ is the logits, the last feature map, or both in turn; $B$ images, $C$ channels. Where the widths differ, the
    student's features are projected first (LayerNorm and linear map for tokens, 1x1 convolution otherwise); they are
    resized to the teacher's grid.

    Deviations: CIRKD divides the features' term by the student's channels, which makes it $C_t / C_s$ times larger
    behind a projector; here it is the teacher's. The projector has no biases, since the softmax does not see them.
    CIRKD's tables combine both targets with logit distillation and an adversarial term; preset=published is the first
    three, logit distillation with weight 1 at T = 1.

    Compared: CIRKD's losses/cwd.py on random maps of equal width: equal to 1.4e-7, relative.
    """

    paper = "Shu, Liu, Gao, Yan, Shen, Channel-wise Knowledge Distillation, ICCV 2021 (arXiv 2011.13256)"

    def __init__(self, config: CWDConfig, pair: PairSpec) -> None:
        super().__init__(config, pair)
        self._published = config.preset == "published"
        self.reads_teacher_logits = self._published or config.target != "features"
        self._reads_features = self._published or config.target != "logits"
        if self._reads_features:
            self.projector = projector(*pair.final_channels, pair.student.convolutional)

    def loss(self, batch: Batch, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
        ours, theirs = student(batch.image), teacher.encode(batch.image)
        terms, config = student.task_loss(ours, batch.label), self.config
        if self.reads_teacher_logits:
            logits = same_grid(ours.logits, teacher.decode(theirs).logits)
            terms["cwd_logits"] = config.logit_weight * channel_kl(*logits, config.temperature)
            if self._published:
                terms["logit_kd"] = pixel_kl(*logits)
        if self._reads_features:
            projected = resize_as(self.projector(ours.features.final), theirs.final)
            terms["cwd_features"] = config.feature_weight * channel_kl(projected, theirs.final, config.temperature)
        return terms
