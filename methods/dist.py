"""DIST: correlation of the predictions, class by class and pixel by pixel, in place of a divergence."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor
from torch.linalg import vector_norm

from kdbench.losses import tokens
from kdbench.method import LogitMethod, MethodConfig
from kdbench.types import Batch


class DISTConfig(MethodConfig):
    inter: float = Field(
        1.0, ge=0, description="weight beta of the relations between classes. Source: code for segmentation, 1"
    )
    intra: float = Field(
        1.0, ge=0, description="weight gamma of the relations within a class. Source: code for segmentation, 1"
    )


def pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Pearson's correlation along dim; 0 where one of the two is constant."""
    a, b = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    correlation: Tensor = (a * b).sum(dim) / (vector_norm(a, dim=dim) * vector_norm(b, dim=dim) + 1e-8)
    return correlation


class DIST(LogitMethod[DISTConfig]):
    r"""The student's class probabilities correlate with the teacher's, over the classes and over the pixels.

    Formula:
    $P$ $(n, K)$ is the softmax of the logits, with all $n$ pixels of the batch as rows and the $K$ classes as columns;
    $\rho$ is Pearson's correlation, with 1e-8 added to the product of its norms.

    $$ L = \beta \left( 1 - \frac{1}{n} \sum_i \rho(P_s^{i,:}, P_t^{i,:}) \right)
    + \gamma \left( 1 - \frac{1}{K} \sum_k \rho(P_s^{:,k}, P_t^{:,k}) \right) $$

    There is no temperature, as in the paper's code for segmentation.

    Deviations: that code also compares the logits of an auxiliary head, at 0.4 times the weight; kdbench's decoders
    share none. Ignored pixels count, as there. mmrazor and torchdistill have a temperature, and correlate maps over
    the batch's images in place of its pixels.

    Compared: hunto/DIST_KD's segmentation/losses/dist_kd.py on random maps: equal to 1.3e-7.
    """

    paper = "Huang, You, Wang, Qian, Xu, Distillation from A Stronger Teacher, NeurIPS 2022 (arXiv 2205.10536)"

    def terms(self, batch: Batch, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        ours, theirs = (tokens(logits).flatten(0, 1).float().softmax(1) for logits in (student, teacher))
        return {
            "dist_inter": self.config.inter * (1 - pearson(ours, theirs, dim=1).mean()),
            "dist_intra": self.config.intra * (1 - pearson(ours, theirs, dim=0).mean()),
        }
