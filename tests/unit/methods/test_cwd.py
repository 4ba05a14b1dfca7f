"""Channel-wise distillation: KL over the positions of each channel, averaged over samples and channels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kdbench.methods.cwd import CWD, CWDConfig
from torch import Tensor, nn

from kdbench.types import Phase

CLASSES = 4


def divergence(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """T^2 / (B C) times the sum of KL(teacher || student) over positions, channel by channel in float64."""
    batch, channels = teacher.shape[:2]
    total = 0.0
    for b in range(batch):
        for c in range(channels):
            ours = [float(value) / temperature for value in student[b, c].ravel()]
            theirs = [float(value) / temperature for value in teacher[b, c].ravel()]
            log_q = [value - math.log(sum(math.exp(v - max(ours)) for v in ours)) - max(ours) for value in ours]
            log_p = [value - math.log(sum(math.exp(v - max(theirs)) for v in theirs)) - max(theirs) for value in theirs]
            total += sum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))
    return temperature**2 * total / (batch * channels)


@pytest.fixture
def distil(make_pair, make_batch, fake):
    """The logit term alone."""

    def run(student: Tensor, teacher: Tensor, **config: float) -> Tensor:
        method = CWD(CWDConfig(**config), make_pair())
        return method.loss(make_batch(len(student)), fake(logits=student), fake(logits=teacher))["cwd_logits"]

    return run


@pytest.fixture
def distil_features(make_batch, fake):
    """The feature term alone, of a method."""

    def run(method: CWD, student: Tensor, teacher: Tensor) -> Tensor:
        logits = torch.zeros(len(student), CLASSES, 2, 2)
        terms = method.loss(make_batch(len(student)), fake(logits, student), fake(None, teacher))
        assert set(terms) == {"task", "cwd_features"}
        return terms["cwd_features"]

    return run


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_value_equals_a_loop_over_channels(temperature: float, distil, random) -> None:
    student, teacher = 5 * random(2, CLASSES, 3, 5), 5 * random(2, CLASSES, 3, 5)
    expected = 3 * divergence(student.numpy(), teacher.numpy(), temperature)
    assert distil(student, teacher, temperature=temperature).item() == pytest.approx(expected, rel=1e-5)


def test_features_are_projected_then_resized_to_the_teachers_grid(make_pair, distil_features, random, bilinear) -> None:
    student, teacher = random(1, 3, 2, 2), random(1, 5, 4, 4)
    method = CWD(CWDConfig(target="features"), make_pair(3, 5))
    x = np.moveaxis(student.double().numpy(), 1, -1)
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    weight = method.projector.linear.weight.detach().double().numpy()
    projected = bilinear(np.moveaxis(normed @ weight.T, -1, 1), (4, 4))
    expected = 50 * divergence(projected, teacher.numpy(), 4.0)
    assert distil_features(method, student, teacher).item() == pytest.approx(expected, rel=1e-4)


def test_features_of_equal_width_are_not_projected(make_pair, distil_features, random) -> None:
    student, teacher = random(2, 3, 3, 4), random(2, 3, 3, 4)
    method = CWD(CWDConfig(target="features"), make_pair(3, 3))
    assert isinstance(method.projector, nn.Identity)
    expected = 50 * divergence(student.numpy(), teacher.numpy(), 4.0)
    assert distil_features(method, student, teacher).item() == pytest.approx(expected, rel=1e-4)


def test_both_targets_are_summed_with_their_own_weights(make_pair, make_batch, fake, random) -> None:
    student = fake(random(1, CLASSES, 3, 3), random(1, 3, 2, 2))
    teacher = fake(random(1, CLASSES, 3, 3), random(1, 3, 2, 2))
    config = CWDConfig(target="both", logit_weight=2, feature_weight=7, temperature=1)
    terms = CWD(config, make_pair(3, 3)).loss(make_batch(1), student, teacher)
    logits = divergence(student.logits.numpy(), teacher.logits.numpy(), 1.0)
    features = divergence(student.final.numpy(), teacher.final.numpy(), 1.0)
    assert set(terms) == {"task", "cwd_logits", "cwd_features"}
    assert terms["cwd_logits"].item() == pytest.approx(2 * logits, rel=1e-5)
    assert terms["cwd_features"].item() == pytest.approx(7 * features, rel=1e-5)


@pytest.mark.parametrize("finer", ["student", "teacher"])
def test_the_coarser_logits_are_brought_to_the_finer_grid(finer: str, distil, random, bilinear) -> None:
    coarse, fine = 5 * random(2, CLASSES, 2, 3), 5 * random(2, CLASSES, 4, 6)
    resized = bilinear(coarse.numpy(), (4, 6))
    student, teacher = (fine, coarse) if finer == "student" else (coarse, fine)
    pair = (fine.numpy(), resized) if finer == "student" else (resized, fine.numpy())
    assert distil(student, teacher).item() == pytest.approx(3 * divergence(*pair, 4.0), rel=1e-5)


def test_the_papers_recipe_is_both_targets_with_logit_distillation(make_pair, make_batch, fake, random) -> None:
    method = CWD(CWDConfig(preset="published"), make_pair(5, 5))
    assert [stage.phase for stage in method.stages()] == [Phase.FIT_TEACHER, Phase.TASK]
    ours, theirs = random(2, CLASSES, 2, 2), random(2, CLASSES, 2, 2)
    terms = method.loss(make_batch(), fake(ours, random(2, 5, 2, 2)), fake(theirs, random(2, 5, 2, 2)))
    p, q = theirs.double().softmax(1), ours.double().softmax(1)
    assert terms["logit_kd"].item() == pytest.approx((p * (p.log() - q.log())).sum(1).mean().item(), rel=1e-5)
    assert set(terms) == {"task", "cwd_logits", "cwd_features", "logit_kd"}
