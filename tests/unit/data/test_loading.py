"""What a step sees is a function of seed, phase and step."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from kdbench.data.loading import Sampler, training_batches
from kdbench.errors import KdbenchError
from kdbench.protocol import Augmentation, Recipe
from kdbench.types import Batch, Phase

SIZE = (16, 32)


class Numbered:
    """Images that tell where each pixel came from: red its row, green its column, blue the sample's number."""

    data_source, identity = "none", {}

    def __init__(self, domain: str, count: int, first: int = 0, broken: tuple[int, ...] = ()) -> None:
        self.domain, self._count, self._first, self._broken = domain, count, first, broken

    def __len__(self) -> int:
        return self._count

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        if index in self._broken:
            raise KdbenchError(f"sample {index} is broken")
        row = torch.arange(SIZE[0], dtype=torch.uint8).view(-1, 1).expand(SIZE)
        column = torch.arange(SIZE[1], dtype=torch.uint8).expand(SIZE)
        number = torch.full(SIZE, self._first + index, dtype=torch.uint8)
        return torch.stack([row, column, number]), number.clone()


PLAIN = Augmentation(scale=(1.0, 1.0), flip=0.0, brightness=0.0, contrast=0.0, saturation=0.0)
RECIPE = Recipe(steps=6, batch=4, lr=0.1, augmentation=PLAIN)
SETS = (Numbered("a", 5), Numbered("b", 3, first=100))


def batches(phase: Phase = Phase.TASK, seed: int = 0, recipe: Recipe = RECIPE) -> list[Batch]:
    return list(training_batches(SETS, recipe, 6, SIZE, seed, phase))


def test_every_pass_shows_every_sample_once_in_another_order() -> None:
    sampler = Sampler(8, RECIPE, 0, "task")
    passes = [[draw.sample for step in (2 * n, 2 * n + 1) for draw in sampler.step(step)] for n in range(3)]
    assert all(sorted(seen) == list(range(8)) for seen in passes)
    assert passes[0] != passes[1] != passes[2]
    ragged = Sampler(5, RECIPE, 0, "task")
    assert Counter(draw.sample for step in range(5) for draw in ragged.step(step)) == dict.fromkeys(range(5), 4)


def test_repeated_augmentation_as_deits_sampler_with_four_processes() -> None:
    recipe = Recipe(epochs=2, batch=64, lr=0.1, repeats=3)
    assert (recipe.epoch(600), recipe.length(600)) == (8, 16)  # 600 images: 512 views
    assert Recipe(epochs=100, batch=512, lr=0.1, repeats=3).length(1281167) == 250_200  # ImageNet as in the paper
    assert Recipe(epochs=300, batch=128, lr=0.1, repeats=3).length(24966) == 58_200  # GTAV
    sampler = Sampler(600, recipe, 0, "proxy")
    ours = [[draw.sample for draw in sampler.step(step)] for step in range(8)]
    # The sampler by its description: an order, each image three times in a row, every fourth place to a process, which
    # stops after its share of 512 and cuts it into batches of 16.
    copies = [sample for sample in sampler._pass(0) for _ in range(3)]
    shares = [copies[process::4][: 512 // 4] for process in range(4)]
    for step, seen in enumerate(ours):
        theirs = [sample for share in shares for sample in share[16 * step : 16 * (step + 1)]]
        assert Counter(seen) == Counter(theirs)
    assert [draw.again for draw in sampler.step(0)][:3] == [0, 1, 2]
    assert sampler.step(8) != sampler.step(0)


def test_every_sample_carries_its_domain_and_index() -> None:
    for batch in batches():
        for image, label, domain, index in zip(batch.image, batch.label, batch.domain, batch.index, strict=True):
            number = (100 if domain == "b" else 0) + int(index)
            assert int(label.max()) == number
            assert round(float(image[2].max()) * 255) == number


def test_labels_are_withheld_where_the_phase_says_so() -> None:
    assert all(batch.label is None for phase in (Phase.PROXY, Phase.SOURCE) for batch in batches(phase))
    assert all(batch.label is not None for phase in (Phase.FIT_TEACHER, Phase.TASK) for batch in batches(phase))


def test_phases_and_seeds_draw_differently() -> None:
    seen = {tuple(int(i) for batch in batches(phase, seed) for i in batch.index)
            for phase in (Phase.PROXY, Phase.TASK) for seed in (0, 1)}  # fmt: skip
    assert len(seen) == 4


@pytest.mark.parametrize(("start", "workers"), [(4, 0), (1, 1), (1, 2)])
def test_batches_depend_neither_on_the_start_nor_on_the_number_of_workers(start: int, workers: int) -> None:
    varied = RECIPE.model_copy(update={"augmentation": Augmentation()})
    tail = list(training_batches(SETS, varied, 6, SIZE, 0, Phase.TASK, start, workers=workers))
    for a, b in zip(batches(recipe=varied)[start:], tail, strict=True):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.label, b.label)
        assert (tuple(a.domain), a.progress) == (tuple(b.domain), b.progress)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_read_is_replaced_by_its_neighbour_and_named(workers: int) -> None:
    skipped: list[str] = []
    sets = (Numbered("a", 6, broken=(1, 2)),)
    batches = training_batches(sets, RECIPE, 6, SIZE, 0, Phase.TASK, workers=workers, skipped=skipped)
    assert {1, 2}.isdisjoint(index for batch in batches for index in batch.index.tolist())
    assert set(skipped) == {"sample 1 is broken", "sample 2 is broken"}


def test_a_set_without_a_readable_sample_is_an_error() -> None:
    with pytest.raises(KdbenchError, match="neighbours cannot be read, the first: sample"):
        list(training_batches((Numbered("a", 3, broken=(0, 1, 2)),), RECIPE, 6, SIZE, 0, Phase.TASK))
