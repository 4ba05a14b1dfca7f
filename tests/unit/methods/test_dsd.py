"""Double similarity: changes of attention from map to map, and overlaps of the classes in space."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench.methods.dsd import DSD, DSDConfig
from torch import Tensor

CLASSES = 4
GRID = (4, 6)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.sqrt((vector**2).sum())


def attention(map_: np.ndarray) -> np.ndarray:
    """One image's energies position by position, as a vector of norm one."""
    _, height, width = map_.shape
    return unit(np.array([(map_[:, y, x] ** 2).sum() for y in range(height) for x in range(width)]))


def pixel_distance(student: list[np.ndarray], teacher: list[np.ndarray]) -> float:
    """Squared distance of the changes, mean over pairs of maps and images, in float64."""
    distances = []
    for image in range(len(student[0])):
        ours, theirs = ([attention(map_[image].astype(np.float64)) for map_ in maps] for maps in (student, teacher))
        for later in range(len(ours)):
            for earlier in range(later):
                changes = [unit(side[later] - side[earlier]) for side in (ours, theirs)]
                distances.append(((changes[0] - changes[1]) ** 2).sum())
    return float(np.mean(distances))


def overlaps(logits: np.ndarray, temperature: float) -> np.ndarray:
    """One image's overlaps (K, K), from averages of blocks of 2 x 2 positions, smaller ones at the border."""
    _, height, width = logits.shape
    corners = [(y, x) for y in range(0, height, 2) for x in range(0, width, 2)]
    blocks = [logits[:, y : y + 2, x : x + 2].astype(np.float64).mean((1, 2)) / temperature for y, x in corners]
    places = [np.exp(row - row.max()) / np.exp(row - row.max()).sum() for row in np.array(blocks).T]
    return np.array([[len(corners) * (a * b).sum() for b in places] for a in places])


def class_error(student: np.ndarray, teacher: np.ndarray, temperature: float = 4.0) -> float:
    pairs = zip(student, teacher, strict=True)
    return float(np.mean([(overlaps(a, temperature) - overlaps(b, temperature)) ** 2 for a, b in pairs]))


@pytest.fixture
def distil(make_pair, make_batch, fake):
    """Both terms without the task's; each side is (levels, final, logits)."""

    def run(student, teacher, label: int = 0, **config: float) -> dict[str, Tensor]:
        method = DSD(DSDConfig(**config), make_pair())
        sides = (fake(logits, final, levels=levels) for levels, final, logits in (student, teacher))
        terms = method.loss(make_batch(len(student[1]), label), *sides)
        assert set(terms) == {"task", "dsd_pixels", "dsd_classes"}
        return {name: term for name, term in terms.items() if name != "task"}

    return run


@pytest.fixture
def sides(random):
    """Student and teacher with two levels, a last map and logits on one grid; the levels' widths differ."""
    student = ([random(2, 2, *GRID), random(2, 3, *GRID)], random(2, 3, *GRID), 3 * random(2, CLASSES, *GRID))
    teacher = ([random(2, 4, *GRID), random(2, 5, *GRID)], random(2, 5, *GRID), 3 * random(2, CLASSES, *GRID))
    return student, teacher


def listed(side) -> list[np.ndarray]:
    levels, final, logits = side
    return [map_.numpy() for map_ in (levels[-2], final, logits)]


def test_first_term_equals_a_loop_over_pairs_of_maps(distil, sides) -> None:
    expected = 1000 / 8192 * pixel_distance(*map(listed, sides))
    assert distil(*sides)["dsd_pixels"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("grid", [(4, 6), (3, 5)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_second_term_equals_a_loop_over_pairs_of_classes(
    grid: tuple[int, int], temperature: float, distil, random
) -> None:
    # The published weight makes the term too small to compare closely.
    student, teacher = (([], random(2, 3, *grid), 6 * random(2, CLASSES, *grid)) for _ in range(2))
    value = distil(student, teacher, class_overlap_weight=1e4, temperature=temperature)["dsd_classes"].item()
    expected = 1e4 * class_error(student[2].numpy(), teacher[2].numpy(), temperature)
    assert value == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("times", [(2, 2), (1, 3)])
def test_an_image_repeated_on_a_larger_grid_costs_the_same(times: tuple[int, int], distil, sides) -> None:
    def repeated(side):
        levels, final, logits = side
        *levels, final, logits = (map_.repeat(1, 1, *times) for map_ in (*levels, final, logits))
        return levels, final, logits

    before, after = distil(*sides), distil(*map(repeated, sides))
    assert before["dsd_classes"] > 0
    assert {name: term.item() for name, term in after.items()} == pytest.approx(
        {name: term.item() for name, term in before.items()}, rel=1e-4, abs=0
    )


def test_every_map_is_resized_to_the_grid_of_the_teachers_last(distil, random, bilinear) -> None:
    student = ([random(1, 2, 8, 12), random(1, 3, 2, 3)], random(1, 3, 2, 3), 3 * random(1, CLASSES, 8, 12))
    teacher = ([random(1, 4, 4, 6), random(1, 5, 4, 6)], random(1, 5, 4, 6), 3 * random(1, CLASSES, 2, 3))
    ours, theirs = ([bilinear(map_, GRID) for map_ in listed(side)] for side in (student, teacher))
    terms = distil(student, teacher, class_overlap_weight=1e4)
    assert terms["dsd_pixels"].item() == pytest.approx(1000 / 8192 * pixel_distance(ours, theirs), rel=1e-4)
    assert terms["dsd_classes"].item() == pytest.approx(1e4 * class_error(ours[2], theirs[2]), rel=1e-3)


def test_networks_with_one_level_have_one_pair_of_maps(distil, sides) -> None:
    student, teacher = ((levels[-1:], final, logits) for levels, final, logits in sides)
    expected = 1000 / 8192 * pixel_distance(*(listed(side)[1:] for side in sides))
    assert distil(student, teacher)["dsd_pixels"].item() == pytest.approx(expected, rel=1e-5)
    several = distil(student, sides[1])["dsd_pixels"].item()
    assert several == pytest.approx(expected, rel=1e-5)


def test_attentions_that_differ_by_rounding_alone_do_not_blow_the_gradient_up(distil, sides) -> None:
    # Equal maps have no direction of change; divided by a norm of next to nothing, noise would reach the student.
    _, teacher = sides
    final = torch.full((2, 3, *GRID), 7.0).requires_grad_()
    logits = torch.full((2, CLASSES, *GRID), 0.3).requires_grad_()
    distil(([], final, logits), teacher)["dsd_pixels"].backward()
    assert final.grad.abs().max() < 1e5
