"""Double similarity distillation: what changes from layer to layer, and which classes share places."""

from __future__ import annotations

from itertools import combinations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.losses import attention, matched_levels, resize
from kdbench.method import Method, MethodConfig
from kdbench.types import Batch, Segmentor


class DSDConfig(MethodConfig):
    """Weights of both similarities, and the temperature of the second."""

    pixel_mean_weight: float = Field(
        1e3 / (64 * 128),
        ge=0,
        description="CIRKD: 1000 on the mean over images and positions, of which an image has 64 x 128 there; "
        "divided by those it "
        "is 0.122 on the mean over images of the squared distance",
    )
    class_overlap_weight: float = Field(
        10 / (32 * 64) ** 2,
        ge=0,
        description="CIRKD: 10 on overlaps that fall with the positions, of which an image has 32 x 64 after "
        "the pooling there; "
        "divided by their square it is 2.38e-6 on overlaps times the positions",
    )
    temperature: float = Field(4.0, gt=0, description="CIRKD: 4")


def changes(maps: list[Tensor]) -> Tensor:
    """(pairs, B, h * w): how the attention differs from each map to each later one, scaled to norm one."""
    # Attentions have norm one: a smaller difference is rounding, whose direction must not reach the student enlarged.
    pairs = combinations(map(attention, maps), 2)
    return torch.stack([F.normalize(later - earlier, eps=1e-6) for earlier, later in pairs])


def class_affinities(logits: Tensor, temperature: float) -> Tensor:
    """(B, K, h, w) to (B, K, K): overlaps of the classes' distributions over N pooled positions, times N."""
    pooled = F.avg_pool2d(logits, 2, ceil_mode=True).flatten(2)
    places = F.softmax(pooled / temperature, dim=2)
    with torch.autocast(places.device.type, enabled=False):
        return places.shape[2] * places @ places.mT


class DSD(Method[DSDConfig]):
    """The change of attention between layers, and the overlap of classes in space, follow the teacher's.

    Formula: three maps of each network, in order: the second-deepest level, the last map and the logits, all resized to
    the grid of the teacher's last map. The attention of a map is the mean over channels of its square, as a vector over
    positions, divided by its Euclidean norm; the change between two maps is the difference of their attentions, later
    minus earlier, again divided by its norm. First term: the squared distance between both networks' changes, mean over
    the three pairs of maps and the images. Second term: the resized logits are average-pooled over 2 x 2 positions
    (incomplete blocks at the border are averaged over what they hold); P (B, K, N) is the softmax over the positions of
    the pooled logits / 4, A = N P P^T, and the term is the mean over the B K^2 entries of (A_student - A_teacher)^2.

    Deviations: CIRKD takes the mean over the positions too, which ties the weight of the first term to the grid; here
    they are summed and the weight is converted. CIRKD's A is P P^T, whose entries fall with the positions, so that its
    second term is 16 times smaller where the grid is twice as fine; here A is times N and the weight is converted. At
    the published weight the second term hardly counts. CIRKD's maps come at one stride from one kind of head: an
    auxiliary output (logits in DeepLab), the feature before the classifier, the logits. kdbench's decoders share no
    such layers, so encoder maps stand in; with networks of a single level that level is dropped and one pair remains.

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
