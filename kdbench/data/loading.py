"""From sets of samples to batches.

Which samples a step sees, and how they are drawn, is a function of the seed and the step alone: the number of workers,
a restart in the middle and the method have no say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdbench.data.domainset import DomainSet
from kdbench.data.transforms import make_view
from kdbench.errors import KdbenchError
from kdbench.identity import seed_from
from kdbench.protocol import Recipe
from kdbench.types import Batch, Phase

PREFETCH = 4
"""Batches that each worker holds ready."""
PATIENCE = 20
"""Neighbours that are tried in place of a sample that cannot be read."""


@dataclass(frozen=True)
class Draw:
    """One place in a batch: the step, which sample stands there, and how often it stood there before in this step."""

    step: int
    sample: int
    again: int = 0


class Order:
    """The samples of every step: each pass over the data in a fresh order; a recipe's repeats stand side by side."""

    def __init__(self, samples: int, recipe: Recipe, seed: int, phase: str) -> None:
        self._samples, self._recipe, self._purpose = samples, recipe, (seed, phase, "order")
        self._epoch = recipe.epoch(samples)
        self._passes: dict[int, list[int]] = {}

    def step(self, step: int) -> list[Draw]:
        """The batch of one step."""
        samples = self._in_epochs(step) if self._recipe.epochs else self._in_passes(step)
        return [Draw(step, sample, samples[:place].count(sample)) for place, sample in enumerate(samples)]

    def _in_passes(self, step: int) -> list[int]:
        places = range(step * self._recipe.batch, (step + 1) * self._recipe.batch)
        return [self._pass(place // self._samples)[place % self._samples] for place in places]

    def _in_epochs(self, step: int) -> list[int]:
        """As DeiT's sampler: what is left of an epoch's order when its views are drawn is not seen in it."""
        order, start = self._pass(step // self._epoch), step % self._epoch * self._recipe.batch
        places = range(start, start + self._recipe.batch)
        return [order[place // self._recipe.repeats % self._samples] for place in places]

    def _pass(self, number: int) -> list[int]:
        if number not in self._passes:
            generator = torch.Generator().manual_seed(seed_from(*self._purpose, number))
            self._passes = {number: torch.randperm(self._samples, generator=generator).tolist()}
        return self._passes[number]


@dataclass(frozen=True)
class Seen:
    """A random view of one sample. broken: the errors of the samples that stood in its place and could not be read."""

    image: Tensor
    label: Tensor
    domain: str
    index: int
    broken: tuple[str, ...] = ()


class TrainingViews(Dataset[Seen | KdbenchError]):
    """Random views of the samples of several domains, concatenated.

    An error is passed on: a worker that raises it would wrap it into its traceback.
    """

    def __init__(self, sets: Sequence[DomainSet], recipe: Recipe, size: tuple[int, int], seed: int, phase: str) -> None:
        self._sets = sets
        self._view = make_view(recipe.augmentation, size)
        self._purpose = (seed, phase, "view")

    def __len__(self) -> int:
        return sum(len(samples) for samples in self._sets)

    def __getitem__(self, draw: Draw) -> Seen | KdbenchError:
        broken: list[str] = []
        for place in range(PATIENCE):
            samples, index = self._locate((draw.sample + place) % len(self))
            try:
                image, label = samples.read(index)
            except KdbenchError as error:
                broken.append(str(error))
                continue
            seed = seed_from(*self._purpose, draw.step, draw.sample, *[draw.again] * bool(draw.again))
            return Seen(*self._view(image, label, seed), samples.domain, index, tuple(broken))
        return KdbenchError(f"{PATIENCE} neighbours cannot be read, the first: {broken[0]}")

    def _locate(self, sample: int) -> tuple[DomainSet, int]:
        for samples in self._sets:
            if sample < len(samples):
                return samples, sample
            sample -= len(samples)
        raise IndexError(sample)


@dataclass
class SkippedFiles:
    """Files that could not be read while a stage trained; more than `most` of them stop it."""

    most: int
    note: Callable[[str], None] = lambda text: None
    errors: list[str] = field(default_factory=list)

    def add(self, errors: Iterable[str]) -> None:
        """Names each file once."""
        for error in errors:
            if error in self.errors:
                continue
            self.errors.append(error)
            self.note(f"skipped ({len(self.errors)} of at most {self.most}): {error}")
            if len(self.errors) > self.most:
                raise KdbenchError(
                    f"{len(self.errors)} training files cannot be read, and the protocol allows {self.most}. The last: "
                    f"{error} `kdbench data verify` lists all of them."
                )


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
    broken: SkippedFiles | None = None,
    mine: slice = slice(None),
) -> Iterator[Batch]:
    """The batches of steps start..steps-1 on the device; labels only where the phase has them.

    workers: processes that read ahead; the batches do not depend on their number. A sample that cannot be read is
    replaced by the next one of the set and reported to `broken`. mine: the places of a batch that this process takes.
    """
    views = TrainingViews(sets, recipe, size, seed, phase)
    order = Order(len(views), recipe, seed, phase)
    device, broken = device or torch.device("cpu"), broken or SkippedFiles(0)
    loader: DataLoader[Any] = DataLoader(
        views,
        batch_sampler=(order.step(step)[mine] for step in range(start, steps)),
        collate_fn=partial(_collate, labelled=phase.labelled),
        num_workers=workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=PREFETCH if workers else None,
    )
    for step, (batch, errors) in enumerate(loader, start):
        broken.add(errors)
        if isinstance(batch, KdbenchError):
            raise batch
        # As bytes over the bus: a quarter of the floats.
        batch.image = batch.image.to(device, non_blocking=True).float().div_(255)
        batch.label = None if batch.label is None else batch.label.to(device, non_blocking=True).long()
        batch.progress = step / steps
        yield batch


def _collate(seen: Sequence[Seen | KdbenchError], labelled: bool) -> tuple[Batch | KdbenchError, list[str]]:
    for one in seen:
        if isinstance(one, KdbenchError):
            return one, []
    return _stack([one for one in seen if isinstance(one, Seen)], labelled)


def _stack(seen: Sequence[Seen], labelled: bool) -> tuple[Batch, list[str]]:
    batch = Batch(
        image=torch.stack([one.image for one in seen]),
        label=torch.stack([one.label for one in seen]) if labelled else None,
        domain=tuple(one.domain for one in seen),
        index=torch.tensor([one.index for one in seen]),
        progress=0.0,
    )
    return batch, [error for one in seen for error in one.broken]
