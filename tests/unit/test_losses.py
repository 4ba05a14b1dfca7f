"""What methods share: divergences, grids, tokens and projectors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from torch import nn

from kdbench.errors import KdbenchError
from kdbench.losses import (
    LevelProjectors,
    Projector,
    channel_kl,
    generator,
    kl,
    labels_at,
    matched_levels,
    other_classes,
    pixel_kl,
    resize,
    same_grid,
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
def test_kl_equals_scipys_relative_entropy(dim: int, temperature: float, random) -> None:
    student, teacher = 3 * random(4, 5, 6), 3 * random(4, 5, 6)
    p, q = (softmax(logits.double().numpy() / temperature, axis=dim) for logits in (teacher, student))
    expected = temperature**2 * rel_entr(p, q).sum(axis=dim)
    value = kl(student, teacher, temperature, dim)
    assert value.shape == expected.shape
    assert np.allclose(value.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_kl_is_not_symmetric_and_the_teacher_comes_first() -> None:
    even, skewed = torch.zeros(2), torch.tensor([math.log(3.0), 0.0])
    assert kl(even, skewed, 1, 0).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert kl(skewed, even, 1, 0).item() == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_kls_gradient_is_the_difference_of_the_posteriors(temperature: float, random) -> None:
    student, teacher = random(3, 7).requires_grad_(), random(3, 7)
    kl(student, teacher, temperature, 1).sum().backward()
    q, p = (softmax(logits.detach().double().numpy() / temperature, axis=1) for logits in (student, teacher))
    assert np.allclose(student.grad.numpy(), temperature * (q - p), atol=1e-6)


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


def test_resize_is_bilinear_between_pixel_centres() -> None:
    # Two columns to four: their centres lie at -1/4, 1/4, 3/4 and 5/4 of the old ones.
    map_ = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    assert resize(map_, (1, 4)).flatten().tolist() == [0, 0.25, 0.75, 1]


@pytest.mark.parametrize(("student", "teacher"), [((4, 6), (2, 3)), ((2, 3), (4, 6)), ((4, 6), (4, 6))])
def test_same_grid_is_the_larger_one(student: tuple[int, int], teacher: tuple[int, int], random) -> None:
    logits = random(1, 2, *student), random(1, 2, *teacher)
    out = same_grid(*logits)
    assert [tuple(map_.shape[-2:]) for map_ in out] == [(4, 6), (4, 6)]
    for before, after in zip(logits, out, strict=True):
        assert (after is before) == (tuple(before.shape[-2:]) == (4, 6))


def test_tokens_are_row_major(random) -> None:
    map_ = random(2, 3, 4, 5)
    rows = tokens(map_)
    assert rows.shape == (2, 20, 3)
    for y in range(4):
        for x in range(5):
            assert torch.equal(rows[:, y * 5 + x], map_[:, :, y, x])


def test_convolutional_projector_is_a_1x1_convolution_without_bias(random) -> None:
    projector = Projector(3, 5, convolutional=True)
    assert [tuple(parameter.shape) for parameter in projector.parameters()] == [(5, 3)]
    convolution = nn.Conv2d(3, 5, 1, bias=False)
    with torch.no_grad():
        convolution.weight.copy_(projector.linear.weight[:, :, None, None])
    map_ = random(2, 3, 4, 6)
    assert torch.allclose(projector(map_), convolution(map_), atol=1e-6)


def test_token_projector_is_a_layer_norm_and_an_affine_map(random) -> None:
    projector = Projector(3, 5, convolutional=False)
    assert sorted(tuple(parameter.shape) for parameter in projector.parameters()) == [(3,), (3,), (5,), (5, 3)]
    with torch.no_grad():  # The start values of the norm's gain and shift would hide them.
        for parameter in projector.parameters():
            parameter.add_(0.3 * random(*parameter.shape))
    gain, shift, weight, bias = (p.detach().double().numpy() for p in projector.parameters())
    map_ = random(2, 3, 4, 6)
    out = projector(map_)
    assert out.shape == (2, 5, 4, 6)
    for place in np.ndindex(2, 4, 6):
        at = (place[0], slice(None), *place[1:])
        vector = map_[at].double().numpy()
        normed = (vector - vector.mean()) / np.sqrt(vector.var() + 1e-5)
        assert np.allclose(out[at].detach().numpy(), weight @ (normed * gain + shift) + bias, atol=1e-5)


def test_pixel_kl_is_a_mean_over_pixels_and_channel_kl_over_channels(random) -> None:
    student, teacher = 3 * random(2, 5, 3, 4), 3 * random(2, 5, 3, 4)
    a, b = student.double().numpy(), teacher.double().numpy()
    by_pixel = rel_entr(softmax(b, 1), softmax(a, 1)).sum() / (2 * 3 * 4)
    flat = (array.reshape(2, 5, 12) / 4 for array in (b, a))
    by_channel = 16 * rel_entr(*(softmax(array, 2) for array in flat)).sum() / (2 * 5)
    assert pixel_kl(student, teacher).item() == pytest.approx(by_pixel, rel=1e-5)
    assert channel_kl(student, teacher, 4.0).item() == pytest.approx(by_channel, rel=1e-5)


def test_labels_are_brought_to_a_grid_by_nearest_neighbour_and_ignored_ones_stay() -> None:
    label = torch.tensor([[[0, 1, 2, 3], [4, 255, 6, 7], [8, 9, 255, 11], [12, 13, 14, 15]]])
    assert labels_at(label, (2, 2)).tolist() == [[[0, 2], [8, 255]]]
    assert labels_at(label, (4, 4)) is label
    assert labels_at(label[:, :1, :2], (2, 4)).tolist() == [[[0, 0, 1, 1], [0, 0, 1, 1]]]


def test_other_classes_leave_out_the_label_and_keep_the_order() -> None:
    logits = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 1, 4)
    others = other_classes(logits, torch.tensor([[[0, 1, 2, 3]]]))
    assert others[0, :, 0].T.tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


def test_levels_are_matched_from_the_deepest() -> None:
    def features(count: int) -> Features:
        return Features(tuple(torch.tensor(float(k)) for k in range(count)), torch.zeros(1), torch.zeros(1), {})

    pairs = [(int(a), int(b)) for a, b in matched_levels(features(3), features(4))]
    assert pairs == [(0, 1), (1, 2), (2, 3)]
    assert matched_levels(features(2), features(2))[0][0] == 0


def test_level_projectors_pool_by_whole_steps_project_and_resize(random, bilinear) -> None:
    def spec(widths: tuple[int, ...]) -> FeatureSpec:
        return FeatureSpec(widths, (8,) * len(widths), widths[-1], 8, class_token=False)

    projectors = LevelProjectors(spec((2, 3)), spec((4, 5, 6)), lambda a, b: nn.Conv2d(a, b, 1))
    assert projectors.serves == [0, 1, 1]
    fine, small = random(1, 2, 4, 7), random(1, 3, 2, 2)
    with torch.no_grad():
        out = projectors([fine, small], [(2, 3), (2, 2), (4, 4)])
    assert [tuple(map_.shape) for map_ in out] == [(1, 4, 2, 3), (1, 5, 2, 2), (1, 6, 4, 4)]
    pooled = fine.double().numpy()[..., :6].reshape(1, 2, 2, 2, 3, 2).mean((3, 5))
    conv = projectors.each[0]
    weight, bias = conv.weight.detach().double().numpy()[:, :, 0, 0], conv.bias.detach().double().numpy()
    expected = np.einsum("oc,bchw->bohw", weight, pooled) + bias[:, None, None]
    assert np.allclose(out[0].numpy(), expected, atol=1e-5)
    deepest = projectors.each[2]
    weight, bias = deepest.weight.detach().double().numpy()[:, :, 0, 0], deepest.bias.detach().double().numpy()
    expected = np.einsum("oc,bchw->bohw", weight, small.double().numpy()) + bias[:, None, None]
    assert np.allclose(out[2].numpy(), bilinear(expected, (4, 4)), atol=1e-5)


def test_a_generator_keeps_the_grid_and_sees_two_positions_around(random) -> None:
    module, map_ = generator(2), torch.zeros(1, 2, 9, 9)
    with torch.no_grad():
        before = module(map_)
        map_[..., 4, 4] = 5
        changed = (module(map_) - before).abs().sum((0, 1)) > 0
    assert before.shape == map_.shape
    assert not changed[:2].any()
    assert not changed[7:].any()
    assert changed[2:7, 2:7].any()


def test_an_author_who_returns_no_dict_is_told_so() -> None:
    one = torch.ones(())
    assert merge_terms({"task": one}, {"a": one}) == {"task": one, "a": one}
    with pytest.raises(KdbenchError, match=r"terms\(\) returns a Tensor; return a dict of named scalar tensors"):
        merge_terms({"task": one}, one)
