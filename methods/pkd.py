"""PKD: correlation of features, channel by channel."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from kdbench.losses import align, resize_as
from kdbench.method import FeatureMethod, MethodConfig
from kdbench.types import Batch, Features, PairSpec

FLAT = 1e-4
"""The deviation below which a channel is constant, and its direction noise."""


class PKDConfig(MethodConfig):
    weight: float = Field(
        10.0, ge=0, description="weight of the loss. Source: mmrazor, 10 an FPN level (single-stage detectors; else 6)"
    )


def standardised(map_: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, h, w) as rows (C, B h w) of zero mean and unit deviation, and whether each row varies at all (C, 1)."""
    rows = map_.float().transpose(0, 1).flatten(1)
    deviation = rows.std(1, keepdim=True)
    return (rows - rows.mean(1, keepdim=True)) / (deviation + 1e-6), deviation >= FLAT


class PKD(FeatureMethod[PKDConfig]):
    r"""Each channel of the student's last feature map correlates with the teacher's over the positions of the batch.

    Formula:
    Every channel $f_c$ is standardised over all $n$ positions of all images of the batch. Half the mean squared
    difference is $(n - 1) / n$ times one minus the mean of Pearson's correlation $\rho$.

    $$ \hat f_c = \frac{f_c - \mathrm{mean}(f_c)}{\mathrm{std}(f_c) + 10^{-6}} \qquad
    L = \frac{w}{2 n C} \sum_c \lVert \hat f_c^s - \hat f_c^t \rVert^2
    = w \frac{n - 1}{n} \left( 1 - \frac{1}{C} \sum_c \rho(f_c^s, f_c^t) \right) $$

    Where the widths differ, a linear map without bias projects the student first; it is resized to the teacher's grid.

    Deviations: the reference distils each level of a detector's FPN, of one width in both networks, and has no code for
    segmentation; here it is the encoder's last map with one published weight. The projector has neither bias nor
    LayerNorm, because the loss does not see what is added to a channel. Channels with a deviation below 1e-4 on either
    side are left out; there, the reference divides by 1e-6.

    Compared: mmrazor's losses/pkd_loss.py on random maps: equal to 2.0e-7.
    """

    paper = "Cao, Zhang, Gao, Cheng, Cheng, Zhang, PKD, NeurIPS 2022 (arXiv 2207.02039)"

    def __init__(self, config: PKDConfig, pair: PairSpec) -> None:
        super().__init__(config, pair)
        inputs, outputs = pair.final_channels
        self.projector = align(inputs, outputs, bias=False)

    def terms(self, batch: Batch, student: Features, teacher: Features) -> dict[str, Tensor]:
        ours, we_vary = standardised(resize_as(self.projector(student.final), teacher.final))
        theirs, they_vary = standardised(teacher.final)
        vary = we_vary & they_vary
        error = (ours - theirs).square().mean(1, keepdim=True)
        return {"pkd": self.config.weight / 2 * (vary * error).sum() / vary.sum().clamp(min=1)}
