"""A segmentor whose features and logits are given, and references that share no code with what they check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
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
        assert self.logits is not None
        return SegOutput(features, self.logits)

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
    """Black images with labels that are all one class."""

    def make(images: int = 2, label: int = 0) -> Batch:
        return Batch(
            torch.zeros(images, 3, 8, 8), torch.full((images, 8, 8), label), ("here",) * images, torch.arange(images)
        )

    return make


@pytest.fixture
def distil(
    request: pytest.FixtureRequest,
    make_pair: Callable[..., PairSpec],
    make_batch: Callable[..., Batch],
    fake: type[FakeSegmentor],
) -> Callable[..., Any]:
    """Terms beside the task loss of the test module's METHOD with options, or of a given method.

    student, teacher: logits of a method on logits, last maps of others. Returns the term, or a tuple of several.
    """
    kind = request.module.METHOD

    def run(*inputs: Any, label: int = 0, **options: Any) -> Any:
        *given, student, teacher = inputs
        method = given[0] if given else kind(kind.Config(**options), make_pair())
        if isinstance(method, LogitMethod):
            sides = fake(logits=student), fake(logits=teacher)
        else:
            sides = fake(torch.zeros(len(student), 4, 2, 2), student), fake(None, teacher)
        terms = method.loss(make_batch(len(student), label), *sides)
        assert terms.pop("task").ndim == 0
        return next(iter(terms.values())) if len(terms) == 1 else tuple(terms.values())

    return run


@pytest.fixture
def random() -> Callable[..., Tensor]:
    """Standard normal tensors, other ones at each call, the same in each test."""
    generator = torch.Generator().manual_seed(5)
    return lambda *shape: torch.randn(*shape, generator=generator)
