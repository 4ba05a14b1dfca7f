"""Attention transfer on the deepest level."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from kdbench.losses import attention, pixel_kl, resize_as
from kdbench.method import FeatureMethod, PresetConfig
from kdbench.types import Batch, Features


class ATConfig(PresetConfig):
    mean_weight: float = Field(
        1e4 / (64 * 128),
        ge=0,
        description="weight w of the distance. Source: CIRKD's script, 1e4 on a mean over positions too, of which its "
        "maps have 64 x 128; divided by those",
    )


class AT(FeatureMethod[ATConfig]):
    r"""The student spreads its energy over the positions of an image as the teacher does.

    Formula:
    $F$ $(B, C, h, w)$ is an encoder's deepest level, before any last norm, the student's resized to the teacher's grid.
    The attention $a$ of an image is its energy at each position $i$, scaled to Euclidean norm one; the widths $C$ may
    differ.

    $$ m_i(F) = \frac{1}{C} \sum_c F_{c,i}^2 \qquad a(F) = \frac{m(F)}{\lVert m(F) \rVert} \qquad
    L = \frac{w}{B} \sum_{b=1}^{B} \lVert a(F_s^b) - a(F_t^b) \rVert^2 $$

    Deviations: CIRKD takes the mean over positions too, which ties its weight to the grid; here they are summed and the
    weight is converted. CIRKD reads the last feature before the classifier; here it is the encoder's deepest level:
    behind a transformer's last norm all tokens have nearly the same energy, so that there is nothing to transfer. Eq. 2
    of the paper does not square the distance; its code and all others do.

    Compared: CIRKD's losses/at.py and mmrazor's at_loss.py on random maps, times the positions / 8192: equal to 2e-7.
    """

    paper = "Zagoruyko, Komodakis, Paying More Attention to Attention, ICLR 2017 (arXiv 1612.03928)"
    auxiliary_losses: ClassVar = {"logit_kd": pixel_kl}

    def terms(self, batch: Batch, student: Features, teacher: Features) -> dict[str, Tensor]:
        goal = teacher.levels[-1].float()
        ours, theirs = attention(resize_as(student.levels[-1].float(), goal)), attention(goal)
        distance = (ours - theirs).square().sum(1)
        return {"at": self.config.mean_weight * distance.mean()}
