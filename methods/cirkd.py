"""Cross-image relational distillation: similarities of pixels across images, in a batch and in a memory."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.losses import kl, labels_at, pixel_kl, product, resize, tokens
from kdbench.method import FeatureMethod, PresetConfig
from kdbench.types import IGNORE, Batch, Features, PairSpec

POSITIONS = 1024
"""Positions of a map beyond which it is pooled for the similarities within a batch, whose cost is their square."""


class CIRKDConfig(PresetConfig):
    batch_weight: float = Field(1.0, ge=0, description="weight of the relations in a batch. Source: CIRKD's script, 1")
    pixel_weight: float = Field(
        0.1, ge=0, description="weight of the relations to remembered pixels. Source: CIRKD's script, 0.1"
    )
    region_weight: float = Field(
        0.1, ge=0, description="weight of the relations to remembered regions. Source: CIRKD's script, 0.1"
    )
    temperature: float = Field(
        0.1, gt=0, description="temperature tau of the cosines in all terms. Source: CIRKD's script, 0.1"
    )
    kd_temperature: float = Field(
        1.0, gt=0, description="temperature T of the memory's divergences. Source: CIRKD's script, T = 1"
    )
    pixel_queue: int = Field(
        2000, ge=1, description="remembered pixels of a class. Source: CIRKD's SegFormer script, 2000 (else 20000)"
    )
    region_queue: int = Field(2000, ge=1, description="remembered regions of a class. Source: CIRKD's script, 2000")
    samples: int = Field(
        16, ge=1, description="most pixels of a class of an image that are remembered. Source: CIRKD's code, 16"
    )
    pixel_contrast: int = Field(
        4096, ge=1, description="pixels compared with, // classes + 1 of each class. Source: CIRKD's script, 4096"
    )
    region_contrast: int = Field(
        1024, ge=1, description="regions compared with, // classes + 1 of each class. Source: CIRKD's script, 1024"
    )


def ranks(groups: Tensor) -> Tensor:
    """For each entry of (M,), how many earlier ones are of the same group."""
    order = groups.argsort(stable=True)
    ordered = groups[order]
    places = torch.arange(len(groups), device=groups.device) - torch.searchsorted(ordered, ordered)
    return places[order.argsort()]


class ClassMemory(nn.Module):
    """A ring of unit vectors for each class, filled with random ones at first."""

    vectors: Tensor
    pointer: Tensor

    def __init__(self, classes: int, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("vectors", F.normalize(torch.randn(classes, size, width), dim=2))
        self.register_buffer("pointer", torch.zeros(classes, dtype=torch.long))

    def push(self, vectors: Tensor, classes: Tensor) -> None:
        """Vectors (M, C) of classes (M,), in this order, in place of the oldest."""
        size = self.vectors.shape[1]
        counts, rank = torch.bincount(classes, minlength=len(self.pointer)), ranks(classes)
        # No slot is written twice: on a GPU, either value could stay.
        newest = rank >= counts[classes] - size
        slots = (self.pointer[classes] + rank) % size
        self.vectors[classes[newest], slots[newest]] = vectors[newest]
        self.pointer.add_(counts).remainder_(size)

    def draw(self, count: int) -> Tensor:
        """The vectors (M, C) of so many random slots, the same ones of every class."""
        slots = torch.randperm(self.vectors.shape[1], device=self.vectors.device)[:count]
        return self.vectors[:, slots].flatten(0, 1)


def unit(map_: Tensor) -> Tensor:
    """(B, C, h, w) as tokens (B, N, C) of length 1."""
    return F.normalize(tokens(map_.float()), dim=2)


def pooled(map_: Tensor) -> Tensor:
    """Mean-pooled by the smallest square window that leaves about POSITIONS positions."""
    window = math.ceil(math.sqrt(map_.shape[-2] * map_.shape[-1] / POSITIONS))
    return map_ if window == 1 else F.avg_pool2d(map_, window, ceil_mode=True)


class CIRKD(FeatureMethod[CIRKDConfig]):
    r"""How similar a pixel is to the pixels of other images, and to remembered ones of every class, is passed on.

    Formula:
    Features are scaled to unit length at every position, so that an inner product is a cosine. In a batch of $B$
    images, $S^{ij}$ $(N, N)$ holds the cosines of the $N$ positions of image $i$ with those of image $j$, divided by
    $\tau = 0.1$, with $i = j$ among the pairs; $\sigma$ is the softmax of a row.

    $$ L_{batch} = \frac{1}{B^2 N} \sum_{i,j,n} \mathrm{KL}(\sigma(S_t^{ij})_n \Vert \sigma(S_s^{ij})_n) $$

    For the memory the student's map passes a projector (1x1 convolution, batch norm, ReLU, 1x1 convolution).
    $l$ holds a labelled position's cosines with remembered teacher vectors $q_m$, divided by $\tau$.

    $$ l_m = \langle f, q_m \rangle / \tau \qquad
    L_{pixels} = T^2 \cdot \mathrm{mean} \cdot \mathrm{KL}(\sigma(l_t / T) \Vert \sigma(l_s / T)) $$

    $L_{regions}$ is the same with remembered regions, the normalised mean of a class's unit vectors in an image. Before
    that, the memory takes the batch's regions and at most 16 random pixels of every class of every image, first in,
    first out for each class; the same randomly drawn slots of every class are compared with.

    Deviations: the released code draws the pixels of a class from the whole image; here they are the class's own. A
    full ring goes on at its start without the code's step back. Maps of more than 1024 positions are mean-pooled for
    the term within a batch by the smallest window that leaves about so many (the code: twofold for SegFormer, fourfold
    from 256 x 256 on). Without labelled positions the memory's terms are 0, where the code's are not a number. The
    encoder's last map takes the place of the feature before the classifier. With several processes batch norm sees a
    process's own images and the memory holds those of the first; the code gathers all of them. CIRKDv2's relations of
    channels are not here.

    Compared: CIRKD's losses/cirkd_mini_batch.py and losses/cirkd_memory.py, four steps on random maps with equal
    weights and queues, the latter with the draw of pixels corrected and all slots compared with: terms and their
    gradient equal to 3e-7.
    """

    paper = "Yang, Zhou, An, Jiang, Xu, Zhang, Cross-Image Relational KD, CVPR 2022 (arXiv 2204.06986)"
    auxiliary_losses: ClassVar = {"logit_kd": pixel_kl}

    def __init__(self, config: CIRKDConfig, pair: PairSpec) -> None:
        super().__init__(config, pair)
        width = pair.teacher.final_channels
        self.projector = nn.Sequential(
            nn.Conv2d(pair.student.final_channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 1, bias=False),
        )  # fmt: skip
        self.pixel_queue = ClassMemory(pair.classes, config.pixel_queue, width)
        self.region_queue = ClassMemory(pair.classes, config.region_queue, width)

    def terms(self, batch: Batch, student: Features, teacher: Features) -> dict[str, Tensor]:
        config, size = self.config, teacher.final.shape[-2:]
        labels = labels_at(batch.label, size).flatten(1)
        projected, goal = unit(resize(self.projector(student.final), size)), unit(teacher.final)
        self._remember(goal, labels)
        pixels = self.pixel_queue.draw(config.pixel_contrast // self.pair.classes + 1)
        regions = self.region_queue.draw(config.region_contrast // self.pair.classes + 1)
        return {
            "cirkd_batch": config.batch_weight * self._within_batch(resize(student.final, size), teacher.final),
            "cirkd_pixels": config.pixel_weight * self._with_memory(projected, goal, pixels, labels),
            "cirkd_regions": config.region_weight * self._with_memory(projected, goal, regions, labels),
        }

    def _within_batch(self, student: Tensor, teacher: Tensor) -> Tensor:
        def rows(map_: Tensor) -> Tensor:
            """(B, N, B, N): every position of every image, with the positions of each image."""
            vectors = unit(pooled(map_))
            return self._cosines(vectors, vectors.flatten(0, 1)).view(*vectors.shape[:2], *vectors.shape[:2])

        return kl(rows(student), rows(teacher), 1.0, dim=3).mean()

    def _with_memory(self, student: Tensor, teacher: Tensor, memory: Tensor, labels: Tensor) -> Tensor:
        divergence = kl(
            self._cosines(student, memory), self._cosines(teacher, memory), self.config.kd_temperature, dim=2
        )
        labelled = labels != IGNORE
        return (divergence * labelled).sum() / labelled.sum().clamp(min=1)

    def _cosines(self, ours: Tensor, others: Tensor) -> Tensor:
        return product(ours, others.T) / self.config.temperature

    @torch.no_grad()
    def _remember(self, vectors: Tensor, labels: Tensor) -> None:
        """The classes of every image, as regions and as pixels: unit vectors (B, N, C), labels (B, N)."""
        labelled = labels != IGNORE
        image = torch.arange(len(labels), device=labels.device)[:, None]
        group = (image * self.pair.classes + labels)[labelled]
        vectors = vectors[labelled]
        sums = vectors.new_zeros(labels.shape[0] * self.pair.classes, vectors.shape[1]).index_add_(0, group, vectors)
        present = torch.unique(group)
        self.region_queue.push(F.normalize(sums[present], dim=1), present % self.pair.classes)
        shuffled = torch.randperm(len(group), device=group.device)
        chosen = shuffled[ranks(group[shuffled]) < self.config.samples]
        self.pixel_queue.push(vectors[chosen], group[chosen] % self.pair.classes)
