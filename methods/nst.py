"""NST: the places that channels select, compared as two sets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.losses import resize
from kdbench.method import FeatureMethod, MethodConfig
from kdbench.types import Batch, Features


class NSTConfig(MethodConfig):
    """The weight of the discrepancy."""

    weight: float = Field(50.0, ge=0, description="mdistiller: 50 for each of its maps")


def kernel(a: Tensor, b: Tensor) -> Tensor:
    """Mean over images and pairs of channels of (a . b)^2, for channels (B, C, N)."""
    # In single precision also under autocast: the discrepancy is a small difference of large means.
    with torch.autocast(a.device.type, enabled=False):
        return (a @ b.transpose(1, 2)).square().mean()


class NST(FeatureMethod[NSTConfig]):
    """The student's channels, as patterns over the image, are distributed like the teacher's, in any order and number.

    Formula: every channel of the last feature map is divided by its Euclidean norm over the positions of the image. The
    loss is the squared maximum mean discrepancy under the kernel k(a, b) = (a . b)^2: the mean over images of the
    mean of k over pairs of teacher channels, plus that over pairs of student channels, minus twice that over pairs of
    a student with a teacher channel. The student is resized to the teacher's grid; the widths may differ.

    Deviations: mdistiller sums three stages of small networks with this weight each, and pools the larger map down to a
    square; here it is the encoder's last map alone. Its channels have both signs, unlike activations after a ReLU, and
    the kernel does not tell a channel from its negative.

    Compared: mdistiller's distillers/NST.py (one stage) on random maps: equal to 3.1e-7.
    """

    paper = "Huang, Wang, Knowledge Distill via Neuron Selectivity Transfer, 2017 (arXiv 1707.01219)"

    def terms(self, batch: Batch, student: Features, teacher: Features) -> dict[str, Tensor]:
        maps = resize(student.final, teacher.final.shape[-2:]), teacher.final
        ours, theirs = (F.normalize(map_.float().flatten(2), dim=2) for map_ in maps)
        discrepancy = kernel(theirs, theirs) + kernel(ours, ours) - 2 * kernel(ours, theirs)
        return {"nst": self.config.weight * discrepancy}
