"""Intra-class variation: squared error between cosines of positions with the centres of their classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench.methods.ifvd import IFVD, IFVDConfig
from pydantic import ValidationError
from torch import Tensor

from kdbench.types import STUDENT, TEACHER, Batch, Part, Phase

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


def test_default_is_the_published_weight() -> None:
    assert IFVDConfig().model_dump() == {"preset": "plain", "weight": 20.0}
    with pytest.raises(ValidationError):
        IFVDConfig(weight=-1)


def test_one_joint_stage_without_adapters_or_teacher_decoder(make_pair) -> None:
    (joint,) = IFVD(IFVDConfig(), make_pair()).stages()
    assert (joint.name, joint.phase, joint.trains) == ("joint", Phase.TASK, STUDENT)
    assert joint.parts == STUDENT | {Part.TEACHER_ENCODER}


def test_value_equals_a_loop_over_classes(distil, random, label) -> None:
    student, teacher = random(2, 3, *GRID), random(2, 5, *GRID)
    expected = 20 * error(student.numpy(), teacher.numpy(), label.numpy())
    assert distil(student, teacher, label).item() == pytest.approx(expected, rel=1e-4)


def test_two_positions_of_a_class_computed_by_hand(distil) -> None:
    # Orthogonal unit vectors are at 45 degrees to their mean, equal ones at none.
    student = torch.eye(2).view(1, 2, 1, 2)
    expected = (1 - 0.5**0.5) ** 2
    label = torch.zeros(1, 1, 2, dtype=torch.long)
    assert distil(student, torch.ones(1, 5, 1, 2), label, weight=1).item() == pytest.approx(expected, rel=1e-5)


def test_a_class_has_its_own_centre_in_every_image(distil, random, label) -> None:
    student, teacher = random(2, 3, *GRID), random(2, 5, *GRID)
    together = distil(student, teacher, label).item()
    alone = [distil(student[i : i + 1], teacher[i : i + 1], label[i : i + 1]).item() for i in (0, 1)]
    assert together == pytest.approx(sum(alone) / 2, rel=1e-5)


def test_ignored_positions_add_nothing_but_count_in_the_mean(distil, random, label) -> None:
    student, teacher = random(2, 3, *GRID), random(2, 5, *GRID)
    before = distil(student, teacher, label).item()
    student[:, :, 3, 1:3] += 100
    assert distil(student, teacher, label).item() == pytest.approx(before, rel=1e-5)
    padded = torch.cat((label, torch.full_like(label, 255)), 1)
    twice = (torch.cat((map_, map_), 2) for map_ in (student, teacher))
    assert distil(*twice, padded).item() == pytest.approx(before / 2, rel=1e-5)


def test_a_class_at_one_position_costs_nothing(distil, random) -> None:
    label = torch.tensor([[[0, 1], [2, 3]]])
    assert distil(random(1, 3, 2, 2), random(1, 5, 2, 2), label).item() == pytest.approx(0, abs=1e-10)


def test_all_pixels_ignored_give_zero_that_is_connected(distil, random) -> None:
    student = random(2, 3, *GRID).requires_grad_()
    value = distil(student, random(2, 5, *GRID), torch.full((2, 8, 8), 255))
    value.backward()
    assert value == 0
    assert not student.grad.any()


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


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_silent_and_loud_maps_give_finite_gradients(scale: float, distil, random, label) -> None:
    student = (scale * random(2, 3, *GRID)).requires_grad_()
    value = distil(student, 1e4 * random(2, 5, *GRID), label)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()
    assert scale == 0 or student.grad.abs().sum() > 0


def test_the_papers_recipe_adds_logit_distillation(make_pair, make_batch, fake, random) -> None:
    method = IFVD(IFVDConfig(preset="published"), make_pair())
    fit, joint = method.stages()
    assert (fit.phase, joint.parts) == (Phase.FIT_TEACHER, STUDENT | TEACHER)
    ours, theirs = random(2, 4, 2, 2), random(2, 4, 2, 2)
    terms = method.loss(make_batch(), fake(ours, random(2, 3, 2, 2)), fake(theirs, random(2, 5, 2, 2)))
    p, q = theirs.double().softmax(1), ours.double().softmax(1)
    assert terms["logit_kd"].item() == pytest.approx((p * (p.log() - q.log())).sum(1).mean().item(), rel=1e-5)
    assert set(terms) == {"task", "ifvd", "logit_kd"}
