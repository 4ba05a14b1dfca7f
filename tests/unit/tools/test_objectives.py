"""Pretraining objectives, against independent computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdbench.models.backbones import build_toy
from kdbench.models.registry import MODELS
from kdbench.models.segmentor import seeded
from kdbench.synthetic import COARSE, MATERIALS, OBJECTS
from kdbench.tools.pretraining.batches import PretrainBatch
from kdbench.tools.pretraining.objectives import (
    DETAIL,
    FeatureModelling,
    InverseRendering,
    Objects,
    SelfDistillation,
    random_masks,
    sinkhorn,
)
from kdbench.types import IGNORE

BATCH, HEIGHT, WIDTH = 4, 32, 64


@pytest.fixture
def encoder():
    return seeded(lambda: build_toy(MODELS["deit-s"]), "test")


@pytest.fixture
def batch() -> PretrainBatch:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(len(COARSE), (BATCH, HEIGHT, WIDTH), generator=generator)
    coarse[:, :4] = IGNORE
    return PretrainBatch(
        views=torch.rand(2, BATCH, 3, HEIGHT, WIDTH, generator=generator),
        coarse=coarse,
        material=torch.randint(MATERIALS, (BATCH, HEIGHT, WIDTH), generator=generator),
        depth=torch.rand(BATCH, 1, HEIGHT, WIDTH, generator=generator),
        albedo=torch.rand(BATCH, 3, HEIGHT, WIDTH, generator=generator),
        object=torch.randint(OBJECTS, (BATCH,), generator=generator),
        progress=0.5,
    )


def test_rendered_planes_are_mean_absolute_errors_of_block_means(encoder, batch) -> None:
    objective = InverseRendering(encoder, ("depth", "albedo"))
    terms = objective.loss(batch)
    fine = F.pixel_shuffle(objective.dense(encoder(batch.views[0]).final), DETAIL).detach().double().numpy()
    block = 8 // DETAIL
    truth = batch.albedo.double().numpy().reshape(BATCH, 3, HEIGHT // block, block, WIDTH // block, block)
    expected = 5.0 * np.abs(fine[:, 1:] - truth.mean((3, 5))).mean()
    assert terms["albedo"].item() == pytest.approx(expected, rel=1e-5)
    whole = objective.whole(encoder(batch.views[0]).pooled).detach().double().numpy()
    mean_depth = batch.depth.double().numpy().mean((2, 3))
    assert terms["mean depth"].item() == pytest.approx(5.0 * np.abs(whole[:, :1] - mean_depth).mean(), rel=1e-5)


@pytest.mark.parametrize(("target", "count"), [("coarse", len(COARSE)), ("material", MATERIALS)])
def test_groups_and_materials_are_cross_entropies_that_leave_ignored_pixels_out(
    encoder, batch, target: str, count: int
) -> None:
    objective = InverseRendering(encoder, (target,))
    fine = F.pixel_shuffle(objective.dense(encoder(batch.views[0]).final), DETAIL).detach().double().numpy()
    whole = objective.whole(encoder(batch.views[0]).pooled).detach().double().numpy()
    label = getattr(batch, target).numpy()[:, ::2, ::2]
    known = np.minimum(label, count - 1)
    scores = np.log(np.exp(fine).sum(1)) - np.take_along_axis(fine, known[:, None], 1)[:, 0]
    terms = objective.loss(batch)
    shares = np.stack([[(image == group).mean() for group in range(count)] for image in label])
    weight = (1 / np.sqrt(np.maximum(shares.mean(0), 1e-3)))[known] * (label != IGNORE)
    assert terms[target].item() == pytest.approx((weight * scores).sum() / weight.sum(), rel=1e-5)
    log = whole - np.log(np.exp(whole).sum(1, keepdims=True))
    assert terms[f"mean {target}"].item() == pytest.approx(-(shares * log).sum(1).mean(), rel=1e-5)


def test_objects_is_a_cross_entropy_of_the_pooled_feature(encoder, batch) -> None:
    objective = Objects(encoder)
    scores = objective.head(encoder(batch.views[0]).pooled).detach().double().numpy()
    expected = [math.log(np.exp(row).sum()) - row[target] for row, target in zip(scores, batch.object, strict=True)]
    assert objective.loss(batch)["object"].item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_feature_modelling_compares_with_layer_normalised_features(encoder, batch) -> None:
    target = seeded(lambda: build_toy(MODELS["dinov2-b"]), "target")
    objective = FeatureModelling(encoder, target, hidden=0.0)
    goal = target(batch.views[0]).pooled.detach().double().numpy()
    goal = (goal - goal.mean(1, keepdims=True)) / np.sqrt(goal.var(1, keepdims=True) + 1e-5)
    gap = np.abs(objective.whole(encoder(batch.views[0]).pooled).detach().double().numpy() - goal)
    expected = np.where(gap < 1, 0.5 * gap**2, gap - 0.5).mean()
    terms = objective.loss(batch)
    assert terms["pooled"].item() == pytest.approx(expected, rel=1e-5)
    # The target neither trains nor stands in a checkpoint.
    sum(terms.values()).backward()
    assert all(p.grad is None for p in target.parameters())
    assert set(dict(objective.named_children())) == {"encoder", "dense", "whole"}


def test_sinkhorn_balances_columns_and_normalises_rows() -> None:
    scores = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 1.0]])
    plan = sinkhorn(scores, 0.5, rounds=200).double().numpy()
    assert plan.sum(1) == pytest.approx(np.ones(4), abs=1e-6)
    assert plan.sum(0) == pytest.approx([2.0, 2.0], abs=1e-3)
    # The fixed point keeps the odds of the scores up to one factor a column: rows 1 to 3 stay equal.
    odds = plan[:, 1] / plan[:, 0]
    assert odds[3] / odds[0] == pytest.approx(math.exp(1.0 / 0.5), rel=1e-4)


def test_self_distillation_swaps_the_views(encoder, batch) -> None:
    objective = SelfDistillation(encoder, tokens=False)
    images = batch.views.flatten(0, 1)
    assigned = sinkhorn(objective.slow_head(objective.slow(images).pooled), objective.TEACHER_TEMPERATURE)
    scores = objective.head(encoder(images).pooled).detach().double().numpy() / objective.STUDENT_TEMPERATURE
    log = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    target = assigned.double().numpy()[[*range(BATCH, 2 * BATCH), *range(BATCH)]]
    assert objective.loss(batch)["class"].item() == pytest.approx(-(target * log).sum(1).mean(), rel=1e-4)


def test_the_slow_network_follows_and_is_not_trained(encoder, batch) -> None:
    objective = SelfDistillation(encoder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1.0)
    before = [p.clone() for p in objective.slow.parameters()]
    sum(objective.loss(batch).values()).backward()
    assert not [n for n, p in objective.named_parameters() if p.requires_grad and p.grad is None]
    rate = (1 - objective.MOMENTUM) * 0.5 * (1 + math.cos(math.pi * batch.progress))
    for old, now in zip(before, objective.slow.parameters(), strict=True):
        assert torch.allclose(now, old + rate, atol=1e-5)
        assert now.grad is None


@pytest.mark.parametrize(("hidden", "share"), [(0.4, 0.5), (0.25, 1.0)])
def test_masks_hide_an_exact_part_of_the_first_images(hidden: float, share: float) -> None:
    mask = random_masks(6, (4, 8), hidden, share, torch.device("cpu"))
    counts = mask.flatten(1).sum(1).tolist()
    masked = round(6 * share)
    assert counts == [round(32 * hidden)] * masked + [0] * (6 - masked)
