"""CIRKD: cosines between pixels of a batch, and with remembered pixels and regions of every class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from closed_forms import array, batch_norm, convolve, divergence, pooled, roughen, rows, unit
from kdbench.methods.cirkd import CIRKD, CIRKDConfig, ClassMemory, ranks
from torch import Tensor

from kdbench.types import IGNORE

METHOD = CIRKD
CLASSES, WIDTH, GRID = 4, 5, (3, 4)


@pytest.fixture
def make(make_pair):
    """A method with a small memory."""

    def build(**options: float) -> CIRKD:
        config = CIRKDConfig(**{"pixel_queue": 6, "region_queue": 5, **options})
        return roughen(CIRKD(config, make_pair(3, WIDTH, classes=CLASSES)))

    return build


@pytest.fixture
def label() -> Tensor:
    """Two images on the features' grid; class 3 is nowhere."""
    return torch.tensor([[[0, 0, 0, 1], [1, 1, IGNORE, 0], [0, 0, 0, 2]], [[1, 2, 2, 2], [1] * 4, [IGNORE] * 4]])


def relations(student: Any, teacher: Any) -> float:
    """Mean divergence of every position's cosines with the positions of each image, every position an anchor."""
    cosines = [np.einsum("inc,jmc->ijnm", unit(rows(map_)), unit(rows(map_))) / 0.1 for map_ in (student, teacher)]
    return float(divergence(*cosines).mean())


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("student_grid", [GRID, (6, 8)])
def test_batch_term_compares_all_pairs_of_images(images, student_grid, make, distil, random, resized) -> None:
    student, teacher = random(images, 3, *student_grid), random(images, WIDTH, *GRID)
    value = distil(make(), student, teacher)["cirkd_batch"].item()
    assert value == pytest.approx(relations(resized(student, GRID), teacher), rel=1e-4)


def test_large_maps_are_pooled_for_the_batch_term(make, distil, random) -> None:
    student, teacher = random(1, 3, 32, 64), random(1, WIDTH, 32, 64)
    expected = relations(pooled(student, (2, 2)), pooled(teacher, (2, 2)))
    assert distil(make(), student, teacher)["cirkd_batch"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("student_grid", [GRID, (6, 8)])
def test_memory_terms_are_means_over_labelled_positions(student_grid, make, distil, random, label, resized) -> None:
    weights = {"kd_temperature": 2.0, "pixel_weight": 3.0, "region_weight": 7.0}
    # Every slot is compared with.
    method = make(**weights, pixel_contrast=6 * CLASSES, region_contrast=5 * CLASSES)
    student, teacher = random(2, 3, *student_grid), random(2, WIDTH, *GRID)
    first, norm, _, second = method.projector
    projected = convolve(batch_norm(convolve(student, first), norm).clip(min=0), second)
    terms = distil(method, student, teacher, label=label)
    anchors = label.flatten().numpy() != IGNORE
    ours, theirs = (unit(rows(map_)).reshape(-1, WIDTH)[anchors] / 0.1 for map_ in (resized(projected, GRID), teacher))
    for name, weight, queue in (("pixels", 3.0, method.pixel_queue), ("regions", 7.0, method.region_queue)):
        memory = array(queue.vectors).reshape(-1, WIDTH)
        expected = weight * divergence(ours @ memory.T, theirs @ memory.T, 2.0).mean()
        assert terms[f"cirkd_{name}"].item() == pytest.approx(expected, rel=1e-4)


def test_regions_are_the_normalised_means_of_unit_vectors(make, distil, random, label) -> None:
    method, teacher = make(), random(2, WIDTH, *GRID)
    before = method.region_queue.vectors.clone()
    distil(method, random(2, 3, *GRID), teacher, label=label)
    flat, vectors = label.flatten(1).numpy(), unit(rows(teacher))
    # Image by image; class 0 is in the first alone, class 3 in none.
    for slot, image, k in ((0, 0, 0), (0, 0, 1), (1, 1, 1), (0, 0, 2), (1, 1, 2)):
        expected = unit(vectors[image][flat[image] == k].mean(0))
        assert np.allclose(method.region_queue.vectors[k, slot].numpy(), expected, atol=1e-6)
    assert method.region_queue.pointer.tolist() == [1, 2, 2, 0]
    assert torch.equal(method.region_queue.vectors[3], before[3])


def test_remembered_pixels_are_some_of_the_classes_own(make, distil, random, label) -> None:
    # The reference draws them from the whole image.
    method, teacher = make(pixel_queue=20, samples=3), random(2, WIDTH, *GRID)
    distil(method, random(2, 3, *GRID), teacher, label=label)
    # Class 0 has 7 and 0 pixels, class 1 has 3 and 5, class 2 has 1 and 3.
    assert method.pixel_queue.pointer.tolist() == [3, 6, 4, 0]
    vectors = unit(rows(teacher)).reshape(-1, WIDTH)
    for k in range(3):
        own = vectors[label.flatten().numpy() == k]
        held = method.pixel_queue.vectors[k, : method.pixel_queue.pointer[k]].numpy()
        found = [next(i for i, vector in enumerate(own) if np.allclose(vector, row, atol=1e-6)) for row in held]
        assert len(set(found)) == len(held)


def test_a_full_ring_replaces_its_oldest() -> None:
    assert ranks(torch.tensor([3, 1, 3, 3, 0, 1])).tolist() == [0, 0, 1, 2, 0, 1]
    queue, numbers = ClassMemory(2, 4, 1), torch.arange(1.0, 12.0)[:, None]
    queue.push(numbers[:3], torch.tensor([1, 1, 1]))
    queue.push(numbers[3:6], torch.tensor([1, 0, 1]))
    assert queue.vectors[1].flatten().tolist() == [6, 2, 3, 4]
    assert queue.vectors[0, 0] == 5
    assert queue.pointer.tolist() == [1, 1]
    # More than it holds: the newest stay.
    queue.push(numbers[6:], torch.ones(5, dtype=torch.long))
    assert queue.vectors[1].flatten().tolist() == [10, 11, 8, 9]
    assert queue.pointer.tolist() == [1, 2]


def test_the_same_random_slots_of_all_classes_are_drawn() -> None:
    queue = ClassMemory(3, 10, 1)
    queue.vectors.copy_(torch.arange(10.0).view(1, 10, 1).expand(3, 10, 1))
    first, second = queue.draw(4), queue.draw(4)
    slots = first.view(3, 4)
    assert len(set(slots[0].tolist())) == 4
    assert torch.equal(slots, slots[:1].expand(3, 4))
    assert not torch.equal(first, second)


def test_the_number_of_slots_is_the_contrast_by_class_and_one_more(make, distil, random, label, monkeypatch) -> None:
    asked, draw = [], ClassMemory.draw
    monkeypatch.setattr(ClassMemory, "draw", lambda self, count: (asked.append(count), draw(self, count))[1])
    distil(make(pixel_contrast=9, region_contrast=3), random(2, 3, *GRID), random(2, WIDTH, *GRID), label=label)
    assert asked == [3, 1]


def test_without_labelled_positions_nothing_is_remembered_and_the_memory_costs_nothing(make, distil, random) -> None:
    method, student = make(), random(2, 3, *GRID).requires_grad_()
    before = {name: tensor.clone() for name, tensor in method.pixel_queue.state_dict().items()}
    terms = distil(method, student, random(2, WIDTH, *GRID), label=IGNORE)
    assert terms["cirkd_pixels"] == terms["cirkd_regions"] == 0
    sum(terms.values()).backward()
    assert torch.isfinite(student.grad).all()
    assert all(torch.equal(tensor, method.pixel_queue.state_dict()[name]) for name, tensor in before.items())
