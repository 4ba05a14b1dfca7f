"""Double similarity: changes of attention from map to map, and overlaps of the classes in space."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from closed_forms import GRID, rows, unit
from kdbench.methods.dsd import DSD
from scipy.special import softmax

METHOD = DSD


def changes(maps: list[np.ndarray]) -> np.ndarray:
    """(pairs, B, N): how the unit energies differ from each map to each later one, scaled to length one."""
    attentions = [unit((rows(map_) ** 2).sum(2)) for map_ in maps]
    return np.array([unit(later - earlier) for earlier, later in combinations(attentions, 2)])


def overlaps(logits: np.ndarray, temperature: float) -> np.ndarray:
    """(B, K, K), from averages of blocks of 2 x 2 positions, smaller ones at the border."""
    _, _, height, width = logits.shape
    corners = [(y, x) for y in range(0, height, 2) for x in range(0, width, 2)]
    blocks = np.stack([logits[:, :, y : y + 2, x : x + 2].mean((2, 3)) for y, x in corners], 2)
    places = softmax(blocks / temperature, 2)
    return len(corners) * places @ places.swapaxes(1, 2)


@pytest.fixture
def make_side(fake, random):
    """A network with so many levels, the deepest of which is not read, a last map and logits."""

    def make(width: int, grid: tuple[int, int], logit_grid: tuple[int, int], levels: int = 2):
        maps = [random(2, width - 1, *grid) for _ in range(levels - 1)] + [random(2, width, *grid)]
        return fake(6 * random(2, 4, *logit_grid), random(2, width, *grid), levels=maps)

    return make


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("grid", [GRID, (3, 5)])
def test_values_are_errors_of_changes_and_of_overlaps(
    grid: tuple[int, int], levels: int, temperature: float, student_grid, make_side, distil, resized
) -> None:
    student, teacher = make_side(3, student_grid, (8, 12), levels), make_side(5, grid, (2, 3))
    ours, theirs = (
        [resized(map_, grid) for map_ in (*side.levels[-2:-1][: levels - 1], side.final, side.logits)]
        for side in (student, teacher)
    )
    # The published weight makes the second term too small to compare closely.
    terms = distil(student, teacher, class_overlap_weight=1e4, temperature=temperature)
    expected = 1000 / 8192 * ((changes(ours) - changes(theirs)) ** 2).sum(2).mean()
    assert terms["dsd_pixels"].item() == pytest.approx(expected, rel=1e-4)
    overlap = ((overlaps(ours[-1], temperature) - overlaps(theirs[-1], temperature)) ** 2).mean()
    assert terms["dsd_classes"].item() == pytest.approx(1e4 * overlap, rel=1e-3)


def test_attentions_that_differ_by_rounding_alone_do_not_blow_the_gradient_up(fake, make_side, distil) -> None:
    # Equal maps have no direction of change; divided by a norm of next to nothing, noise would reach the student.
    final = torch.full((2, 3, *GRID), 7.0).requires_grad_()
    student = fake(torch.full((2, 4, *GRID), 0.3), final)
    distil(student, make_side(5, GRID, GRID))["dsd_pixels"].backward()
    assert final.grad.abs().max() < 1e5
