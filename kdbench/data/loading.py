"""From sets of samples to batches.

Which samples a step sees, and how they are drawn, is a function of the seed and the step alone: the number of workers,
a restart in the middle and the method have no say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdbench.data.domainset import DomainSet
from kdbench.data.transforms import make_views
from kdbench.errors import KdbenchError
from kdbench.identity import seed_from
from kdbench.protocol import Recipe
from kdbench.types import Batch, Phase

PREFETCH = 4
"""Batches that each worker holds ready."""
PATIENCE = 20
"""Neighbours that are tried in place of a sample that cannot be read."""


@dataclass(frozen=True)
class SampleIndex:
    """One place in a step's batch. again: how often the same sample stands earlier in that batch."""

    step: int
    sample: int
    again: int = 0


class Sampler:
    """Chooses every step's samples: a fresh permutation for each pass over the data; repeats stand side by side."""

    def __init__(self, samples: int, recipe: Recipe, seed: int, phase: str) -> None:
        self._samples, self._recipe, self._purpose = samples, recipe, (seed, phase, "order")
        self._epoch = recipe.epoch(samples)
        self._passes: dict[int, list[int]] = {}

    def step(self, step: int) -> list[SampleIndex]:
        """Return the samples of one step's batch."""
        recipe, count = self._recipe, self._samples
        if recipe.epochs:
            # As DeiT's sampler: what is left of an epoch's order when its views are drawn is not seen in it.
            order, start = self._pass(step // self._epoch), step % self._epoch * recipe.batch
            samples = [order[place // recipe.repeats % count] for place in range(start, start + recipe.batch)]
        else:
            start = step * recipe.batch
            samples = [self._pass(place // count)[place % count] for place in range(start, start + recipe.batch)]
        return [SampleIndex(step, sample, samples[:place].count(sample)) for place, sample in enumerate(samples)]

    def _pass(self, number: int) -> list[int]:
        if number not in self._passes:
            generator = torch.Generator().manual_seed(seed_from(*self._purpose, number))
            self._passes = {number: torch.randperm(self._samples, generator=generator).tolist()}
        return self._passes[number]


class StepBatches(Dataset[tuple[Batch | KdbenchError, list[str]]]):
    """Batches of random views of the samples of several domains, concatenated.

    Errors are returned: a worker that raised one would wrap it into its traceback.
    """

    def __init__(
        self, sets: Sequence[DomainSet], recipe: Recipe, size: tuple[int, int], seed: int, phase: Phase
    ) -> None:
        self._sets = sets
        self._views = make_views(recipe.augmentation, size)
        self._purpose, self._labelled = (seed, phase, "view"), phase.labelled
        self.samples = sum(map(len, sets))

    def __getitem__(self, drawn: Sequence[SampleIndex]) -> tuple[Batch | KdbenchError, list[str]]:
        """Return views of the samples, images as bytes, and the errors of unreadable samples that others replace."""
        skipped: list[str] = []
        try:
            # Repeats are decoded once.
            read = {sample: self._read(sample, skipped) for sample in dict.fromkeys(index.sample for index in drawn)}
        except KdbenchError as error:
            return error, []
        samples, domains, indices = zip(*(read[index.sample] for index in drawn), strict=True)
        seeds = [
            seed_from(*self._purpose, index.step, index.sample, *[index.again] * bool(index.again)) for index in drawn
        ]
        images, labels = self._views(samples, seeds)
        return Batch(images, labels if self._labelled else None, domains, torch.tensor(indices)), skipped

    def _read(self, sample: int, skipped: list[str]) -> tuple[tuple[Tensor, Tensor], str, int]:
        """Return a sample, or the next that can be read, with its domain and its index there."""
        errors: list[str] = []
        for place in range(PATIENCE):
            samples, index = self._locate((sample + place) % self.samples)
            try:
                read = samples.read(index)
            except KdbenchError as error:
                errors.append(str(error))
                continue
            skipped += errors
            return read, samples.domain, index
        raise KdbenchError(f"{PATIENCE} neighbours cannot be read, the first: {errors[0]}")

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
    *,
    workers: int = 0,
    device: torch.device | None = None,
    skipped: list[str] | None = None,
    share: slice = slice(None),
) -> Iterator[Batch]:
    """Yield the batches of steps start..steps-1 on the device; labels only where the phase has them.

    Args:
        workers: processes that read ahead; the batches do not depend on their number.
        skipped: gets the error of every sample that could not be read; the next sample of the set takes its place.
        share: the places of each batch that this process takes.
    """
    batches = StepBatches(sets, recipe, size, seed, phase)
    sampler = Sampler(batches.samples, recipe, seed, phase)
    device, skipped = device or torch.device("cpu"), [] if skipped is None else skipped
    loader: DataLoader[Any] = DataLoader(
        batches,
        batch_size=None,
        sampler=(sampler.step(step)[share] for step in range(start, steps)),
        num_workers=workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=PREFETCH if workers else None,
    )
    for step, (batch, errors) in enumerate(loader, start):
        skipped += errors
        if isinstance(batch, KdbenchError):
            raise batch
        # Bytes cross the bus: a quarter of the floats.
        batch.image = batch.image.to(device, non_blocking=True).float().div_(255)
        batch.label = None if batch.label is None else batch.label.to(device, non_blocking=True).long()
        batch.index = batch.index.to(device, non_blocking=True)
        batch.progress = step / steps
        yield batch
