"""What methods share: divergences, grids, tokens, projectors and masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from closed_forms import array, convolve, divergence, maps, norm_and_map, pooled, roughen, rows
from scipy.special import softmax
from torch import nn

from kdbench.errors import KdbenchError
from kdbench.losses import (
    LevelProjectors,
    Projector,
    channel_kl,
    kl,
    labels_at,
    masked_images,
    matched_levels,
    other_classes,
    pixel_kl,
    resize,
    same_grid,
    token_masks,
    tokens,
)
from kdbench.method import merge_terms
from kdbench.types import Features, FeatureSpec


@pytest.fixture
def random():
    generator = torch.Generator().manual_seed(5)
    return lambda *shape: torch.randn(*shape, generator=generator)


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kl_and_its_gradient_are_the_relative_entropy(dim: int, temperature: float, random) -> None:
    student, teacher = 3 * random(4, 5, 6).requires_grad_(), 3 * random(4, 5, 6)
    student.retain_grad()
    value = kl(student, teacher, temperature, dim)
    assert np.allclose(array(value), divergence(student, teacher, temperature, dim), rtol=1e-4, atol=1e-5)
    value.sum().backward()
    q, p = (softmax(array(logits) / temperature, dim) for logits in (student, teacher))
    assert np.allclose(student.grad.numpy(), temperature * (q - p), atol=1e-5)


@pytest.mark.parametrize("entry", [1e4, -1e4])
def test_kl_and_its_gradient_are_finite_at_extreme_logits(entry: float) -> None:
    student, teacher = torch.zeros(1, 4), torch.zeros(1, 4)
    student[0, 0] = teacher[0, 1] = entry
    student.requires_grad_()
    value = kl(student, teacher, 1, 1)
    value.sum().backward()
    # Certain of the wrong entry costs the gap; ruling out another entry costs a third of it.
    assert value.item() == pytest.approx(1e4 if entry > 0 else 1e4 / 3, rel=1e-3)
    assert torch.isfinite(student.grad).all()


def test_kl_is_in_single_precision_under_autocast(random) -> None:
    student, teacher = random(2, 300), random(2, 300)
    with torch.autocast("cpu", torch.bfloat16):
        value = kl(student, teacher, 2, 1)
    assert value.dtype == torch.float32
    assert torch.equal(value, kl(student, teacher, 2, 1))


def test_pixel_kl_is_a_mean_over_pixels_and_channel_kl_over_channels(random) -> None:
    student, teacher = 3 * random(2, 5, 3, 4), 3 * random(2, 5, 3, 4)
    assert pixel_kl(student, teacher).item() == pytest.approx(divergence(student, teacher, axis=1).mean(), rel=1e-5)
    by_channel = divergence(student.flatten(2), teacher.flatten(2), 4.0, axis=2).mean()
    assert channel_kl(student, teacher, 4.0).item() == pytest.approx(by_channel, rel=1e-5)


def test_resize_is_bilinear_between_pixel_centres_and_returns_a_fitting_map_itself() -> None:
    # Two columns to four: their centres lie at -1/4, 1/4, 3/4 and 5/4 of the old ones.
    map_ = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    assert resize(map_, (1, 4)).flatten().tolist() == [0, 0.25, 0.75, 1]
    assert resize(map_, (1, 2)) is map_


@pytest.mark.parametrize(("student", "teacher"), [((4, 6), (2, 3)), ((2, 3), (4, 6)), ((4, 3), (2, 6))])
def test_same_grid_is_the_larger_one(student: tuple[int, int], teacher: tuple[int, int], random) -> None:
    out = same_grid(random(1, 2, *student), random(1, 2, *teacher))
    assert [tuple(map_.shape[-2:]) for map_ in out] == [(4, 6), (4, 6)]


def test_tokens_are_row_major(random) -> None:
    map_ = random(2, 3, 4, 5)
    for y in range(4):
        for x in range(5):
            assert torch.equal(tokens(map_)[:, y * 5 + x], map_[:, :, y, x])


@pytest.mark.parametrize("convolutional", [True, False])
def test_a_projector_is_a_convolution_or_a_norm_and_a_linear_map(convolutional: bool, random) -> None:
    projector, map_ = roughen(Projector(3, 5, convolutional)), random(2, 3, 4, 6)
    if convolutional:
        (weight,) = map(array, projector.parameters())
        expected = np.einsum("oc,bchw->bohw", weight, array(map_))
    else:
        expected = maps(norm_and_map(rows(map_), projector), (4, 6))
    assert np.allclose(array(projector(map_)), expected, atol=1e-5)


def test_labels_are_brought_to_a_grid_by_nearest_neighbour_and_ignored_ones_stay() -> None:
    label = torch.tensor([[[0, 1, 2, 3], [4, 255, 6, 7], [8, 9, 255, 11], [12, 13, 14, 15]]])
    assert labels_at(label, (2, 2)).tolist() == [[[0, 2], [8, 255]]]
    assert labels_at(label[:, :1, :2], (2, 4)).tolist() == [[[0, 0, 1, 1], [0, 0, 1, 1]]]
    with pytest.raises(KdbenchError, match=r"a loss reads labels.*Run the stage in Phase\.TASK"):
        labels_at(None, (2, 2))


def test_other_classes_leave_out_the_label_and_keep_the_order() -> None:
    logits = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 1, 4)
    others = other_classes(logits, torch.tensor([[[0, 1, 2, 3]]]))
    assert others[0, :, 0].T.tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


def test_levels_are_matched_from_the_deepest() -> None:
    def features(count: int) -> Features:
        return Features(tuple(torch.tensor(float(k)) for k in range(count)), torch.zeros(1), torch.zeros(1), {})

    pairs = [(int(a), int(b)) for a, b in matched_levels(features(3), features(4))]
    assert pairs == [(0, 1), (1, 2), (2, 3)]


def test_level_projectors_pool_by_whole_steps_project_and_resize(random, bilinear) -> None:
    def spec(widths: tuple[int, ...]) -> FeatureSpec:
        return FeatureSpec(widths, (8,) * len(widths), widths[-1], 8, class_token=False)

    projectors = LevelProjectors(spec((2, 3)), spec((4, 5, 6)), lambda a, b: nn.Conv2d(a, b, 1))
    assert projectors.serves == [0, 1, 1]
    fine, small = random(1, 2, 4, 7), random(1, 3, 2, 2)
    out = projectors([fine, small], [(2, 3), (2, 2), (4, 4)])
    assert np.allclose(array(out[0]), convolve(pooled(fine[..., :6], (2, 2)), projectors.each[0]), atol=1e-5)
    assert out[1].shape == (1, 5, 2, 2)
    assert np.allclose(array(out[2]), bilinear(convolve(small, projectors.each[2]), (4, 4)), atol=1e-5)


@pytest.mark.parametrize("grid", [(1, 1), (1, 3), (4, 8)])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 1.0])
def test_the_first_images_hide_a_count_that_is_rounded_down(grid: tuple[int, int], ratio: float) -> None:
    mask = token_masks(4, grid, 2, ratio, torch.device("cpu"))
    assert mask.shape == (4, *grid)
    assert mask.flatten(1).sum(1).tolist() == [int(grid[0] * grid[1] * ratio)] * 2 + [0] * 2


def test_hidden_tokens_are_drawn_uniformly_and_for_each_image() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mask = token_masks(2000, (2, 4), 2000, 0.5, torch.device("cpu")).flatten(1)
    assert len({bytes(row.numpy()) for row in mask}) == math.comb(8, 4)
    # 2000 draws of a half: a standard deviation of 0.011.
    assert (mask.float().mean(0) - 0.5).abs().max() < 0.06


@pytest.mark.parametrize(
    ("batch", "probability", "mean"),
    [(8, 0.5, 4), (3, 0.5, 1), (4, 0.3, 1), (1, 0.5, 0.5), (1, 0.0, 0.0), (1, 1.0, 1.0), (3, 0.2, 0.6)],
)
def test_masked_images_round_down_and_below_one_keep_the_share(batch: int, probability: float, mean: float) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = [masked_images(batch, probability) for _ in range(2000)]
    # 2000 draws: a standard deviation of 0.011 at most.
    assert sum(drawn) / 2000 == pytest.approx(mean, abs=0.05 if 0 < mean < 1 else 0)
    assert len(set(drawn)) == (2 if 0 < mean < 1 else 1)


def test_an_author_who_returns_no_dict_is_told_so() -> None:
    one = torch.ones(())
    assert merge_terms({"task": one}, {"a": one}) == {"task": one, "a": one}
    with pytest.raises(KdbenchError, match=r"terms\(\) returns a Tensor; return a dict of named scalar tensors"):
        merge_terms({"task": one}, one)
