"""Double similarity distillation: what changes from layer to layer, and which classes share places."""

from __future__ import annotations

from itertools import combinations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.losses import attention, matched_levels, product, resize
from kdbench.method import Method, MethodConfig
from kdbench.types import Batch, Segmentor


class DSDConfig(MethodConfig):
    pixel_mean_weight: float = Field(
        1e3 / (64 * 128),
        ge=0,
        description="weight of the change of attention. Source: CIRKD, 1000 on a mean over positions too, of which its "
        "maps have 64 x 128; divided by those",
    )
    class_overlap_weight: float = Field(
        10 / (32 * 64) ** 2,
        ge=0,
        description="weight of the classes' overlaps. Source: CIRKD, 10 on overlaps that fall with the positions, of "
        "which its pooled maps have 32 x 64; divided by their square",
    )
    temperature: float = Field(4.0, gt=0, description="temperature T of the overlaps. Source: CIRKD, 4")


def changes(maps: list[Tensor]) -> Tensor:
    """(pairs, B, h * w): how the attention differs from each map to each later one, scaled to norm one."""
    # Attentions have norm one: a smaller difference is rounding, whose direction must not reach the student enlarged.
    pairs = combinations(map(attention, maps), 2)
    return torch.stack([F.normalize(later - earlier, eps=1e-6) for earlier, later in pairs])


def class_affinities(logits: Tensor, temperature: float) -> Tensor:
    """(B, K, h, w) to (B, K, K): overlaps of the classes' distributions over N pooled positions, times N."""
    pooled = F.avg_pool2d(logits, 2, ceil_mode=True).flatten(2)
    places = F.softmax(pooled / temperature, dim=2)
    return product(places.shape[2] * places, places.mT)


class DSD(Method[DSDConfig]):
    r"""The change of attention between layers, and the overlap of classes in space, follow the teacher's.

    Formula:
    Three maps of each network in order: the second-deepest level, the last map and the logits, all resized to the grid
    of the teacher's last map. $a_l$ is the attention of map $l$ (see at), $P$ $(B, K, N)$ the softmax over positions of
    the logits / $T$, average-pooled over 2 x 2 positions.

    $$ r_{lm} = \frac{a_m - a_l}{\lVert a_m - a_l \rVert} \qquad
    L_1 = \frac{1}{3 B} \sum_b \sum_{l \lt m} \lVert r_{lm}^s - r_{lm}^t \rVert^2 \qquad
    A = N P P^\top \qquad L_2 = \frac{1}{B K^2} \sum (A^s - A^t)^2 $$

    Deviations: CIRKD takes a mean over positions in $L_1$ and has no factor $N$ in $A$, which ties both weights to the
    grid; here they are converted. At the published weight the second term hardly counts. CIRKD's maps come at one
    stride from one kind of head: an auxiliary output, the feature before the classifier, the logits. kdbench's decoders
    share no such layers, so encoder maps are read; with networks of a single level one pair of maps remains.

    Compared: CIRKD's losses/dsd.py on three random maps on one grid, the first term times the positions / 8192, the
    second times the square of the pooled positions / 2048: values equal to 2e-7, gradients to 2e-6.
    """

    paper = "Feng, Sun, Diao, Li, Gao, Double Similarity Distillation for Semantic Image Segmentation, IEEE TIP 2021"

    def loss(self, batch: Batch, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
        output, target = student(batch.image), teacher(batch.image)
        size = target.features.final.shape[-2:]
        pairs = [
            *matched_levels(output.features, target.features)[-2:-1],
            (output.features.final, target.features.final),
            (output.logits, target.logits),
        ]
        ours, theirs = ([resize(map_.float(), size) for map_ in maps] for maps in zip(*pairs, strict=True))
        distance = (changes(ours) - changes(theirs)).square().sum(-1)
        overlap, goal = (class_affinities(maps[-1], self.config.temperature) for maps in (ours, theirs))
        return {
            **student.task_loss(output, batch.label),
            "dsd_pixels": self.config.pixel_mean_weight * distance.mean(),
            "dsd_classes": self.config.class_overlap_weight * F.mse_loss(overlap, goal),
        }
