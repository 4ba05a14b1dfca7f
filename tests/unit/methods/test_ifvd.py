"""Intra-class variation: squared error between cosines of positions with the centres of their classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench.methods.ifvd import IFVD, IFVDConfig
from torch import Tensor

from kdbench.types import Batch

CLASSES = 4
GRID = (4, 6)


def variation(map_: np.ndarray, label: np.ndarray) -> np.ndarray:
    """One image's cosines in float64, class by class; one where the label is 255."""
    cosines = np.ones(label.shape)
    for k in set(label.ravel()) - {255}:
        places = [tuple(place) for place in np.argwhere(label == k)]
        vectors = [map_[:, y, x].astype(np.float64) for y, x in places]
        centre = sum(vectors) / (len(vectors) + 1e-6)
        for place, vector in zip(places, vectors, strict=True):
            cosines[place] = (vector @ centre) / np.sqrt((vector @ vector) * (centre @ centre))
    return cosines


def error(student: np.ndarray, teacher: np.ndarray, label: np.ndarray) -> float:
    """Squared error of the cosines, mean over images and all positions."""
    sides = zip(student, teacher, label, strict=True)
    return float(np.mean([(variation(ours, y) - variation(theirs, y)) ** 2 for ours, theirs, y in sides]))


@pytest.fixture
def distil(make_pair, fake):
    """The distillation term alone, for labels at any size."""

    def run(student: Tensor, teacher: Tensor, label: Tensor, **config: float) -> Tensor:
        method = IFVD(IFVDConfig(**config), make_pair(classes=CLASSES))
        count = len(student)
        batch = Batch(torch.zeros(count, 3, 8, 8), label, ("here",) * count, torch.arange(count))
        logits = torch.zeros(count, CLASSES, 2, 2)
        terms = method.loss(batch, fake(logits, student), fake(None, teacher))
        assert set(terms) == {"task", "ifvd"}
        return terms["ifvd"]

    return run


@pytest.fixture
def label() -> Tensor:
    """Two images' labels at the grid of the maps: every class, one of them at a single position, and ignored ones."""
    drawn = torch.randint(0, CLASSES - 1, (2, *GRID), generator=torch.Generator().manual_seed(1))
    drawn[0, 1, 2], drawn[:, 3, 1:3] = CLASSES - 1, 255
    return drawn


def test_value_equals_a_loop_over_classes(distil, random, label) -> None:
    student, teacher = random(2, 3, *GRID), random(2, 5, *GRID)
    expected = 20 * error(student.numpy(), teacher.numpy(), label.numpy())
    assert distil(student, teacher, label).item() == pytest.approx(expected, rel=1e-4)


def test_ignored_positions_add_nothing_but_count_in_the_mean(distil, random, label) -> None:
    student, teacher = random(2, 3, *GRID), random(2, 5, *GRID)
    before = distil(student, teacher, label).item()
    student[:, :, 3, 1:3] += 100
    assert distil(student, teacher, label).item() == pytest.approx(before, rel=1e-5)
    padded = torch.cat((label, torch.full_like(label, 255)), 1)
    twice = (torch.cat((map_, map_), 2) for map_ in (student, teacher))
    assert distil(*twice, padded).item() == pytest.approx(before / 2, rel=1e-5)


def test_gradient_flows_through_the_centres(distil, random) -> None:
    # With centres held fixed, a position's gradient would not depend on another position's target.
    student, label = random(1, 3, 1, 3).requires_grad_(), torch.zeros(1, 1, 3, dtype=torch.long)
    teacher = random(1, 5, 1, 3)
    value = distil(student, teacher, label)
    (gradient,) = torch.autograd.grad(value, student)
    step = 1e-2 * torch.nn.functional.normalize(gradient.flatten(), dim=0).view_as(gradient)
    with torch.no_grad():
        up, down = (error((student + s * step).numpy(), teacher.numpy(), label.numpy()) for s in (1, -1))
    assert gradient.norm().item() == pytest.approx(20 * (up - down) / 2e-2, rel=1e-2)


def test_labels_come_to_the_grid_by_nearest_neighbour(distil, random, label) -> None:
    student, teacher = random(2, 3, *GRID), random(2, 5, *GRID)
    large = label.repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert distil(student, teacher, large) == distil(student, teacher, label)


@pytest.mark.parametrize("grid", [(2, 3), (8, 12)])
def test_the_student_is_resized_to_the_teachers_grid(grid: tuple[int, int], distil, random, bilinear, label) -> None:
    student, teacher = random(2, 3, *grid), random(2, 5, *GRID)
    expected = 20 * error(bilinear(student.numpy(), GRID), teacher.numpy(), label.numpy())
    assert distil(student, teacher, label).item() == pytest.approx(expected, rel=1e-4)
