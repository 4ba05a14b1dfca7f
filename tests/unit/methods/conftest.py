"""A segmentor whose features and logits are given, and calls of a method's loss on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from closed_forms import GRID, array
from torch import Tensor

from kdbench.method import LogitMethod
from kdbench.models.decoders import pixel_cross_entropy
from kdbench.types import Batch, Features, FeatureSpec, PairSpec, SegOutput


class FakeSegmentor:
    """Gives the tensors it was made with, and remembers the masks it was asked for."""

    def __init__(
        self,
        logits: Tensor | None = None,
        final: Tensor | None = None,
        pooled: Tensor | None = None,
        masked: Tensor | None = None,
        levels: Sequence[Tensor] = (),
        blocks: Sequence[Tensor] = (),
    ) -> None:
        self.logits, self.final, self.pooled, self.masked = logits, final, pooled, masked
        self.levels, self.blocks = tuple(levels), blocks
        self.masks: list[Tensor] = []

    def encode(self, image: Tensor, mask: Tensor | None = None, blocks: Sequence[int] = ()) -> Features:
        if mask is not None:
            self.masks.append(mask)
        final: Any = self.final if mask is None else self.masked
        pooled: Any = self.pooled
        if mask is not None and self.final is not None and len(image) > len(self.final):
            # The masked images stand behind the whole ones, in one batch.
            further = len(image) - len(self.final)
            assert self.masked is not None
            final, pooled = torch.cat((self.final, self.masked[:further])), torch.cat((pooled, pooled[:further]))
        return Features(self.levels, final, pooled, {block: self.blocks[block] for block in blocks})

    def decode(self, features: Features) -> SegOutput:
        logits = torch.zeros(len(features.final), 4, 2, 2) if self.logits is None else self.logits
        return SegOutput(features, logits)

    def __call__(self, image: Tensor) -> SegOutput:
        return self.decode(self.encode(image))

    def task_loss(self, output: SegOutput, label: Tensor) -> dict[str, Tensor]:
        return {"task": pixel_cross_entropy(output.logits, label)}


@pytest.fixture
def fake() -> type[FakeSegmentor]:
    return FakeSegmentor


@pytest.fixture
def make_pair() -> Callable[..., PairSpec]:
    """A pair by its final channels; every level of a network is as wide as its last."""

    def make(
        student: int = 3, teacher: int = 5, convolutional: bool = False, levels: int = 1, classes: int = 4
    ) -> PairSpec:
        def spec(width: int, cnn: bool) -> FeatureSpec:
            return FeatureSpec((width,) * levels, (8,) * levels, width, 8, not cnn, convolutional=cnn, batch_norms=cnn)

        return PairSpec(spec(teacher, False), spec(student, convolutional), classes)

    return make


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """Black images with given labels (B, H, W), or labels that are all one class."""

    def make(images: int = 2, label: int | Tensor = 0, progress: float = 0.5) -> Batch:
        label = label if isinstance(label, Tensor) else torch.full((images, 8, 8), label)
        return Batch(torch.zeros(images, 3, 8, 8), label, ("here",) * images, torch.arange(images), progress)

    return make


@pytest.fixture
def distil(
    request: pytest.FixtureRequest,
    make_pair: Callable[..., PairSpec],
    make_batch: Callable[..., Batch],
) -> Callable[..., Any]:
    """Terms beside the task loss of the test module's METHOD with options, or of a given method.

    student, teacher: logits of a method on logits, last maps of others, lists of levels, or fake segmentors. Returns
    the term, or a dict where there are several.
    """
    kind = request.module.METHOD

    def run(*inputs: Any, label: int | Tensor = 0, progress: float = 0.5, **options: Any) -> Any:
        *given, student, teacher = inputs
        method = given[0] if given else kind(kind.Config(**options), make_pair())

        def side(value: Any) -> FakeSegmentor:
            if isinstance(value, list):
                return FakeSegmentor(final=value[-1], levels=value)
            if isinstance(value, Tensor):
                on_logits = isinstance(method, LogitMethod)
                return FakeSegmentor(value, value) if on_logits else FakeSegmentor(final=value)
            return value

        ours, theirs = side(student), side(teacher)
        images = len(ours.logits if ours.final is None else ours.final)
        terms = method.loss(make_batch(images, label, progress), ours, theirs)
        terms.pop("task", None)
        return next(iter(terms.values())) if len(terms) == 1 else terms

    return run


@pytest.fixture
def random() -> Callable[..., Tensor]:
    """Standard normal tensors, other ones at each call, the same in each test."""
    generator = torch.Generator().manual_seed(5)
    return lambda *shape: torch.randn(*shape, generator=generator)


@pytest.fixture(params=[GRID, (2, 3), (8, 12)], ids=["equal", "coarser", "finer"])
def student_grid(request: pytest.FixtureRequest) -> tuple[int, int]:
    """Grids of a student beside a teacher's GRID."""
    return tuple(request.param)


@pytest.fixture
def resized(bilinear: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """A map on the teacher's grid, in float64."""
    return lambda map_, size=GRID: bilinear(array(map_), size)


@pytest.fixture
def labelled_logits(random: Callable[..., Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Student and teacher logits of 4 classes on 3 x 5, and labels on 6 x 10 of which a third is ignored."""
    label = (random(2, 3, 5).mul(100).long() % 4).where(random(2, 3, 5) < 0.5, 255)
    return 2 * random(2, 4, 3, 5), 2 * random(2, 4, 3, 5), label.repeat_interleave(2, 1).repeat_interleave(2, 2)
