"""Pair-wise structured distillation: squared error between the cosines of an image's pooled positions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench.methods.skd import SKD, SKDConfig
from pydantic import ValidationError
from torch import Tensor

from kdbench.types import STUDENT, TEACHER, Part, Phase


def affinities(map_: np.ndarray, pool: int) -> np.ndarray:
    """One image's cosines between all pairs of nodes, each the channel-wise maximum of a block, in float64."""
    _, height, width = map_.shape
    corners = [(y, x) for y in range(0, height, pool) for x in range(0, width, pool)]
    nodes = [map_[:, y : y + pool, x : x + pool].astype(np.float64).max((1, 2)) for y, x in corners]
    return np.array([[(a @ b) / np.sqrt((a @ a) * (b @ b)) for b in nodes] for a in nodes])


def error(student: np.ndarray, teacher: np.ndarray, pool: int = 2) -> float:
    """Squared error of the cosines, mean over images and entries."""
    pairs = zip(student, teacher, strict=True)
    return float(np.mean([(affinities(ours, pool) - affinities(theirs, pool)) ** 2 for ours, theirs in pairs]))


@pytest.fixture
def distil(make_pair, make_batch, fake):
    """The distillation term alone."""

    def run(student: Tensor, teacher: Tensor, label: int = 0, **config: float) -> Tensor:
        method = SKD(SKDConfig(**config), make_pair())
        logits = torch.zeros(len(student), 4, 2, 2)
        terms = method.loss(make_batch(len(student), label), fake(logits, student), fake(None, teacher))
        assert set(terms) == {"task", "skd"}
        return terms["skd"]

    return run


def test_defaults_are_the_published_ones() -> None:
    assert SKDConfig().model_dump() == {"preset": "plain", "weight": 10.0, "pool": 2}


@pytest.mark.parametrize("bad", [{"weight": -1}, {"pool": 0}])
def test_knobs_have_limits(bad: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        SKDConfig(**bad)


def test_one_joint_stage_without_adapters_or_teacher_decoder(make_pair) -> None:
    (joint,) = SKD(SKDConfig(), make_pair()).stages()
    assert (joint.name, joint.phase, joint.trains) == ("joint", Phase.TASK, STUDENT)
    assert joint.parts == STUDENT | {Part.TEACHER_ENCODER}


@pytest.mark.parametrize("pool", [1, 2, 3])
@pytest.mark.parametrize("grid", [(4, 6), (3, 5), (1, 1)])
def test_value_equals_a_loop_over_pairs_of_nodes(grid: tuple[int, int], pool: int, distil, random) -> None:
    student, teacher = random(2, 3, *grid), random(2, 5, *grid)
    expected = 10 * error(student.numpy(), teacher.numpy(), pool)
    assert distil(student, teacher, pool=pool).item() == pytest.approx(expected, rel=1e-4, abs=1e-10)


def test_two_nodes_computed_by_hand(distil) -> None:
    # The student's nodes are orthogonal, the teacher's parallel: two of four cosines differ, by one.
    student = torch.tensor([[2.0, 0.0], [0.0, 3.0]]).view(1, 2, 1, 2)
    assert distil(student, torch.ones(1, 1, 1, 2), pool=1).item() == pytest.approx(5, rel=1e-6)


def test_the_scale_of_a_map_does_not_matter(distil, random) -> None:
    student, teacher = random(2, 3, 4, 6), random(2, 5, 4, 6)
    before = distil(student, teacher).item()
    assert distil(50 * student, 0.01 * teacher).item() == pytest.approx(before, rel=1e-4)
    assert distil(student, 3 * student).item() == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("grid", [(2, 3), (8, 12)])
def test_the_student_is_resized_to_the_teachers_grid(grid: tuple[int, int], distil, random, bilinear) -> None:
    student, teacher = random(2, 3, *grid), random(2, 5, 4, 6)
    expected = 10 * error(bilinear(student.numpy(), (4, 6)), teacher.numpy())
    assert distil(student, teacher).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_silent_and_loud_maps_give_finite_gradients(scale: float, distil, random) -> None:
    student = (scale * random(2, 3, 4, 8)).requires_grad_()
    value = distil(student, 1e4 * random(2, 5, 4, 8), label=255)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()
    assert (student.grad.abs().sum() > 0) == (scale > 0)


def test_autocast_keeps_single_precision(distil, random) -> None:
    student, teacher = random(2, 3, 4, 8), random(2, 5, 4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        value = distil(student, teacher)
    assert value == distil(student, teacher)


def test_the_papers_recipe_adds_logit_distillation(make_pair, make_batch, fake, random) -> None:
    method = SKD(SKDConfig(preset="published"), make_pair())
    fit, joint = method.stages()
    assert (fit.phase, joint.parts) == (Phase.FIT_TEACHER, STUDENT | TEACHER)
    ours, theirs = random(2, 4, 2, 2), random(2, 4, 2, 2)
    terms = method.loss(make_batch(), fake(ours, random(2, 3, 2, 2)), fake(theirs, random(2, 5, 2, 2)))
    p, q = theirs.double().softmax(1), ours.double().softmax(1)
    assert terms["logit_kd"].item() == pytest.approx((p * (p.log() - q.log())).sum(1).mean().item(), rel=1e-5)
    assert set(terms) == {"task", "skd", "logit_kd"}
