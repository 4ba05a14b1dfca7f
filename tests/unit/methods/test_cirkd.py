"""CIRKD: cosines between pixels of a batch, and with remembered pixels and regions of every class."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kdbench.methods.cirkd import CIRKD, CIRKDConfig, ClassMemory, ranks
from torch import Tensor, nn

from kdbench.types import IGNORE, Batch, Features

CLASSES = 4
GRID = (3, 4)
WIDTH = 5


def units(map_: Tensor) -> np.ndarray:
    """(B, C, h, w) as (B, N, C) of length 1 in float64."""
    rows = np.moveaxis(map_.detach().double().numpy(), 1, -1).reshape(len(map_), -1, map_.shape[1])
    return rows / np.sqrt((rows**2).sum(-1, keepdims=True))


def divergence(student: np.ndarray, teacher: np.ndarray, temperature: float = 1.0) -> float:
    """T^2 KL(teacher || student) of two vectors of scores / T, entry by entry."""
    p, q = ([math.exp((x - max(scores)) / temperature) for x in scores] for scores in (teacher, student))
    ours, theirs = sum(q), sum(p)
    return temperature**2 * sum(a / theirs * math.log(a / theirs / (b / ours)) for a, b in zip(p, q, strict=True))


def features(map_: Tensor) -> Features:
    return Features((), map_, map_.mean((2, 3)), {})


def labelled(label: Tensor) -> Batch:
    return Batch(torch.zeros(len(label), 3, *label.shape[1:]), label, ("here",) * len(label), torch.arange(len(label)))


@pytest.fixture
def make_method(make_pair):
    """A method with a small memory; with equal widths and the projector taken out, the student's map is compared."""

    def make(student: int = WIDTH, project: bool = False, **config: float) -> CIRKD:
        config = {"pixel_queue": 6, "region_queue": 5, **config}
        method = CIRKD(CIRKDConfig(**config), make_pair(student, WIDTH, classes=CLASSES))
        if not project:
            method.projector = nn.Identity()
        return method

    return make


@pytest.fixture
def label() -> Tensor:
    """Two images on the features' grid; class 3 is nowhere."""
    return torch.tensor([[[0, 0, 0, 1], [1, 1, IGNORE, 0], [0, 0, 0, 2]], [[1, 2, 2, 2], [1] * 4, [IGNORE] * 4]])


@pytest.mark.parametrize("images", [1, 3])
def test_batch_term_equals_a_loop_over_ordered_pairs_of_images(images: int, make_method, random) -> None:
    student, teacher = random(images, 3, *GRID), random(images, WIDTH, *GRID)
    ours, theirs = units(student), units(teacher)
    total, count = 0.0, GRID[0] * GRID[1]
    for i in range(images):
        for j in range(images):
            for n in range(count):
                total += divergence(ours[j] @ ours[i, n] / 0.1, theirs[j] @ theirs[i, n] / 0.1) / count
    value = make_method(3)._within_batch(student, teacher).item()
    assert value == pytest.approx(total / images**2, rel=1e-5)


def test_memory_terms_equal_a_loop_over_labelled_positions(make_method, random, label) -> None:
    config = {"kd_temperature": 2.0, "pixel_weight": 3.0, "region_weight": 7.0}
    # Every slot is compared with.
    method = make_method(**config, pixel_contrast=6 * CLASSES, region_contrast=5 * CLASSES)
    student, teacher = random(2, WIDTH, *GRID), random(2, WIDTH, *GRID)
    terms = method.terms(labelled(label), features(student), features(teacher))
    ours, theirs = units(student), units(teacher)
    anchors = [(b, n) for b in range(2) for n, k in enumerate(label[b].flatten().tolist()) if k != IGNORE]
    for name, weight, queue in (("pixels", 3.0, method.pixel_queue), ("regions", 7.0, method.region_queue)):
        memory = queue.vectors.double().numpy().reshape(-1, WIDTH)
        each = [divergence(memory @ ours[place] / 0.1, memory @ theirs[place] / 0.1, 2.0) for place in anchors]
        assert terms[f"cirkd_{name}"].item() == pytest.approx(weight * sum(each) / len(anchors), rel=1e-5)


def test_regions_are_the_normalised_means_of_unit_vectors(make_method, random, label) -> None:
    method, teacher = make_method(), random(2, WIDTH, *GRID)
    before = method.region_queue.vectors.clone()
    method.terms(labelled(label), features(random(2, WIDTH, *GRID)), features(teacher))
    flat, vectors = label.flatten(1).numpy(), units(teacher)
    # Image by image; class 0 is in the first alone, class 3 in none.
    for slot, image, k in ((0, 0, 0), (0, 0, 1), (1, 1, 1), (0, 0, 2), (1, 1, 2)):
        mean = vectors[image][flat[image] == k].mean(0)
        expected = mean / np.sqrt((mean**2).sum())
        assert np.allclose(method.region_queue.vectors[k, slot].numpy(), expected, atol=1e-6)
    assert method.region_queue.pointer.tolist() == [1, 2, 2, 0]
    assert torch.equal(method.region_queue.vectors[3], before[3])


def test_remembered_pixels_are_some_of_the_classes_own(make_method, random, label) -> None:
    # The reference draws them from the whole image.
    method, teacher = make_method(pixel_queue=20, samples=3), random(2, WIDTH, *GRID)
    method.terms(labelled(label), features(random(2, WIDTH, *GRID)), features(teacher))
    flat, vectors = label.flatten(1).numpy(), units(teacher)
    # Class 0 has 7 and 0 pixels, class 1 has 3 and 5, class 2 has 1 and 3.
    assert method.pixel_queue.pointer.tolist() == [3, 6, 4, 0]
    for k in range(3):
        own = [vector for b in range(2) for vector in vectors[b][flat[b] == k]]
        held = method.pixel_queue.vectors[k, : method.pixel_queue.pointer[k]].numpy()
        found = [next(i for i, vector in enumerate(own) if np.allclose(vector, row, atol=1e-6)) for row in held]
        assert len(set(found)) == len(held)


def test_a_full_ring_replaces_its_oldest() -> None:
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


def test_ranks_count_the_earlier_entries_of_a_group() -> None:
    assert ranks(torch.tensor([3, 1, 3, 3, 0, 1])).tolist() == [0, 0, 1, 2, 0, 1]


def test_the_same_random_slots_of_all_classes_are_drawn() -> None:
    queue = ClassMemory(3, 10, 1)
    queue.vectors.copy_(torch.arange(10.0).view(1, 10, 1).expand(3, 10, 1))
    first, second = queue.draw(4), queue.draw(4)
    slots = first.view(3, 4)
    assert len(set(slots[0].tolist())) == 4
    assert torch.equal(slots, slots[:1].expand(3, 4))
    assert not torch.equal(first, second)


def test_the_number_of_slots_is_the_contrast_by_class_and_one_more(make_method, random, label, monkeypatch) -> None:
    method, asked = make_method(pixel_contrast=9, region_contrast=3), []
    draw = ClassMemory.draw
    monkeypatch.setattr(ClassMemory, "draw", lambda self, count: (asked.append(count), draw(self, count))[1])
    method.terms(labelled(label), features(random(2, WIDTH, *GRID)), features(random(2, WIDTH, *GRID)))
    assert asked == [3, 1]


def test_ignored_positions_are_no_anchors_but_count_within_the_batch(make_method, random, label) -> None:
    method, student = make_method(), random(2, WIDTH, *GRID).requires_grad_()
    terms = method.terms(labelled(label), features(student), features(random(2, WIDTH, *GRID)))
    ignored = label == IGNORE
    for name, term in terms.items():
        (gradient,) = torch.autograd.grad(term, student, retain_graph=True)
        reached = gradient.abs().sum(1) > 0
        assert reached[~ignored].all()
        assert bool(reached[ignored].any()) == (name == "cirkd_batch")


def test_without_labelled_positions_nothing_is_remembered_and_the_memory_costs_nothing(make_method, random) -> None:
    method, student = make_method(3, project=True), random(2, 3, *GRID).requires_grad_()
    before = {name: tensor.clone() for name, tensor in method.pixel_queue.state_dict().items()}
    label = torch.full((2, 24, 32), IGNORE)
    terms = method.terms(labelled(label), features(student), features(random(2, WIDTH, *GRID)))
    assert terms["cirkd_pixels"] == terms["cirkd_regions"] == 0
    sum(terms.values()).backward()
    assert torch.isfinite(student.grad).all()
    assert all(torch.equal(tensor, method.pixel_queue.state_dict()[name]) for name, tensor in before.items())


def test_a_student_of_another_grid_is_projected_before_it_is_resized(make_method, random, label, bilinear) -> None:
    method, student, teacher = make_method(3, project=True), random(2, 3, 6, 8), random(2, WIDTH, *GRID)
    projected = torch.from_numpy(bilinear(method.projector(student).detach().numpy(), GRID)).float()
    state = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    resized = make_method()
    resized.load_state_dict(state, strict=False)
    values = []
    with torch.random.fork_rng(devices=[]):
        for each, map_ in ((method, student), (resized, projected)):
            torch.manual_seed(0)
            terms = each.terms(labelled(label), features(map_), features(teacher))
            values.append([terms["cirkd_pixels"].item(), terms["cirkd_regions"].item()])
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_large_maps_are_pooled_for_the_batch_term(make_method, random) -> None:
    student, teacher = random(1, 3, 32, 64), random(1, WIDTH, 32, 64)
    halved = (map_.unflatten(3, (32, 2)).unflatten(2, (16, 2)).mean((3, 5)) for map_ in (student, teacher))
    method = make_method(3)
    expected = method._within_batch(*halved).item()
    assert method._within_batch(student, teacher).item() == pytest.approx(expected, rel=1e-5)
