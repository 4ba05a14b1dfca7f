"""NST: the places that channels select, compared as two sets."""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.losses import last_maps, product
from kdbench.method import FeatureMethod, MethodConfig
from kdbench.types import Batch, Features


class NSTConfig(MethodConfig):
    weight: float = Field(50.0, ge=0, description="weight of the discrepancy. Source: mdistiller, 50 for each map")


def kernel(a: Tensor, b: Tensor) -> Tensor:
    """Mean over images and pairs of channels of (a . b)^2, for channels (B, C, N)."""
    return product(a, b.mT).square().mean()


class NST(FeatureMethod[NSTConfig]):
    r"""The student's channels, as patterns over the image, are distributed like the teacher's, in any order and number.

    Formula:
    $f_c$ is channel $c$ of an image's last map, over its positions, scaled to Euclidean norm one. The loss is the
    squared maximum mean discrepancy of the two sets of channels under the polynomial kernel $k$; mean over images. The
    student is resized to the teacher's grid; the widths may differ.

    $$ k(a, b) = (a^\top b)^2 \qquad
    L = w \left( \frac{1}{C_t^2} \sum_{c,d} k(f_t^c, f_t^d) + \frac{1}{C_s^2} \sum_{c,d} k(f_s^c, f_s^d)
    - \frac{2}{C_s C_t} \sum_{c,d} k(f_s^c, f_t^d) \right) $$

    Deviations: mdistiller sums three stages of small networks with this weight each, and pools the larger map down to a
    square; here it is the encoder's last map alone. Its channels have both signs, unlike activations after a ReLU, and
    the kernel does not tell a channel from its negative.

    Compared: mdistiller's distillers/NST.py (one stage) on random maps: equal to 3.1e-7.
    """

    paper = "Huang, Wang, Knowledge Distill via Neuron Selectivity Transfer, 2017 (arXiv 1707.01219)"

    def terms(self, batch: Batch, student: Features, teacher: Features) -> dict[str, Tensor]:
        ours, theirs = (F.normalize(map_.flatten(2), dim=2) for map_ in last_maps(student, teacher))
        discrepancy = kernel(theirs, theirs) + kernel(ours, ours) - 2 * kernel(ours, theirs)
        return {"nst": self.config.weight * discrepancy}
