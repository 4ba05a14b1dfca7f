"""From sets of samples to batches.

Which samples a step sees, and how they are drawn, is a function of the seed and the step alone: the number of workers,
a restart in the middle and the method have no say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdbench.data.domainset import DomainSet
from kdbench.data.transforms import RandomView
from kdbench.identity import seed_from
from kdbench.protocol import Recipe
from kdbench.types import Batch, Phase


@dataclass(frozen=True)
class Draw:
    """One place in a batch: the step, and which sample stands there."""

    step: int
    sample: int


class Order:
    """The samples of every step: each pass over the data in a fresh order."""

    def __init__(self, samples: int, batch: int, seed: int, phase: str) -> None:
        self._samples, self._batch, self._purpose = samples, batch, (seed, phase, "order")
        self._passes: dict[int, list[int]] = {}

    def step(self, step: int) -> list[Draw]:
        """The batch of one step."""
        places = range(step * self._batch, (step + 1) * self._batch)
        return [Draw(step, self._pass(place // self._samples)[place % self._samples]) for place in places]

    def _pass(self, number: int) -> list[int]:
        if number not in self._passes:
            generator = torch.Generator().manual_seed(seed_from(*self._purpose, number))
            self._passes = {number: torch.randperm(self._samples, generator=generator).tolist()}
        return self._passes[number]


class TrainingViews(Dataset[tuple[Tensor, Tensor, str, int]]):
    """Random views of the samples of several domains, concatenated."""

    def __init__(self, sets: Sequence[DomainSet], recipe: Recipe, size: tuple[int, int], seed: int, phase: str) -> None:
        self._sets = sets
        self._view = RandomView(recipe.augmentation, size)
        self._purpose = (seed, phase, "view")

    def __len__(self) -> int:
        return sum(len(samples) for samples in self._sets)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor, str, int]:
        samples, index = self._locate(draw.sample)
        image, label = self._view(*samples.read(index), seed_from(*self._purpose, draw.step, draw.sample))
        return image, label, samples.domain, index

    def _locate(self, sample: int) -> tuple[DomainSet, int]:
        for samples in self._sets:
            if sample < len(samples):
                return samples, sample
            sample -= len(samples)
        raise IndexError(sample)


def training_batches(
    sets: Sequence[DomainSet],
    recipe: Recipe,
    steps: int,
    size: tuple[int, int],
    seed: int,
    phase: Phase,
    start: int = 0,
) -> Iterator[Batch]:
    """The batches of steps start..steps-1; labels only where the phase has them."""
    views = TrainingViews(sets, recipe, size, seed, phase)
    order = Order(len(views), recipe.batch, seed, phase)
    loader: DataLoader[tuple[Tensor, Tensor, str, int]] = DataLoader(
        views,
        batch_sampler=(order.step(step) for step in range(start, steps)),
        collate_fn=list,
    )
    for step, samples in enumerate(loader, start):
        yield _collate(samples, phase.labelled, step / steps)


def _collate(samples: Sequence[tuple[Tensor, Tensor, str, int]], labelled: bool, progress: float) -> Batch:
    images, labels, domains, indices = zip(*samples, strict=True)
    return Batch(
        image=torch.stack(images).float().div_(255),
        label=torch.stack(labels).long() if labelled else None,
        domain=domains,
        index=torch.tensor(indices),
        progress=progress,
    )
