"""Proteus: three heads, three squared errors, the masking rule and the stages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench.methods.proteus import Proteus, ProteusConfig
from torch import Tensor

GRID = (2, 3)


def norm_and_map(head, map_: Tensor) -> np.ndarray:
    """LayerNorm and affine map of each position's channels in float64, as (B, N, C)."""
    gain, shift, weight, bias = (p.detach().double().numpy() for p in head.parameters())
    rows = map_.detach().double().numpy().reshape(*map_.shape[:2], -1).transpose(0, 2, 1)
    centred = rows - rows.mean(2, keepdims=True)
    return (centred / np.sqrt((centred**2).mean(2, keepdims=True) + 1e-5) * gain + shift) @ weight.T + bias


def rows_of(map_: Tensor) -> np.ndarray:
    return map_.detach().double().numpy().reshape(*map_.shape[:2], -1).transpose(0, 2, 1)


@pytest.fixture
def method(make_pair, random) -> Proteus:
    """With LayerNorms away from their start, which would hide gains and shifts."""
    made = Proteus(ProteusConfig(token=2, feature=3, patch=5), make_pair())
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.5 * random(*parameter.shape))
    return made


@pytest.fixture
def sides(fake, random):
    student = fake(None, random(5, 3, *GRID), random(5, 3), random(5, 3, *GRID))
    return student, fake(None, random(5, 5, *GRID), random(5, 5))


def test_losses_equal_an_explicit_computation(method, make_batch, sides) -> None:
    student, teacher = sides
    terms = method.loss(make_batch(5), student, teacher)
    goal, class_goal = rows_of(teacher.final), rows_of(teacher.pooled[:, :, None])
    token = ((norm_and_map(method.token_head, student.pooled[:, :, None]) - class_goal) ** 2).sum()
    feature = ((norm_and_map(method.feature_head, student.final) - goal) ** 2).sum()
    # Two of five images hide three tokens each; they stand behind the whole ones.
    hidden = student.masks[0][5:].flatten(1).numpy()
    patch = (((norm_and_map(method.patch_head, student.masked[:2]) - goal[:2]) ** 2) * hidden[:, :, None]).sum()
    assert terms["token"].item() == pytest.approx(2 * token / (5 * 5), rel=1e-5)
    assert terms["feature"].item() == pytest.approx(3 * (token + feature) / (5 * 7 * 5), rel=1e-5)
    assert terms["patch"].item() == pytest.approx(5 * patch / (2 * 3 * 5), rel=1e-5)


@pytest.mark.parametrize(("image", "hidden", "counts"), [(0, True, True), (0, False, False), (4, False, False)])
def test_patch_loss_counts_hidden_tokens_alone(
    image: int, hidden: bool, counts: bool, method, make_batch, sides
) -> None:
    student, teacher = sides
    torch.manual_seed(0)
    before = method.loss(make_batch(5), *sides)["patch"]
    mask = torch.cat((student.masks[-1][5:], torch.zeros(3, *GRID, dtype=torch.bool)))
    y, x = (mask[image] == hidden).nonzero()[0].tolist()
    teacher.final[image, :, y, x] += 1
    torch.manual_seed(0)
    after = method.loss(make_batch(5), *sides)["patch"]
    assert (before != after) == counts


def test_the_image_of_a_batch_of_one_is_masked_and_counts_in_full(method, make_batch, fake, random) -> None:
    student = fake(None, random(1, 3, *GRID), random(1, 3), random(1, 3, *GRID))
    teacher = fake(None, random(1, 5, *GRID), random(1, 5))
    patch = method.loss(make_batch(1), student, teacher)["patch"]
    hidden = student.masks[0][1:].flatten(1).numpy()
    assert hidden.sum() == 3
    squares = (norm_and_map(method.patch_head, student.masked) - rows_of(teacher.final)) ** 2
    assert patch.item() == pytest.approx(5 * (squares * hidden[:, :, None]).sum() / (3 * 5), rel=1e-5)


def test_the_teacher_is_never_masked_and_the_student_once(method, make_batch, sides) -> None:
    student, teacher = sides
    method.loss(make_batch(5), *sides)
    assert teacher.masks == []
    (mask,) = student.masks
    assert mask.flatten(1).sum(1).tolist() == [0, 0, 0, 0, 0, 3, 3]


def test_a_student_of_another_grid_is_resized_behind_the_heads(method, make_batch, fake, random, bilinear) -> None:
    student = fake(None, random(2, 3, 2, 3), random(2, 3), random(2, 3, 2, 3))
    teacher = fake(None, random(2, 5, 4, 6), random(2, 5))
    mapped = norm_and_map(method.feature_head, student.final).transpose(0, 2, 1).reshape(2, 5, 2, 3)
    feature = ((bilinear(mapped, (4, 6)) - teacher.final.double().numpy()) ** 2).sum()
    class_goal = rows_of(teacher.pooled[:, :, None])
    token = ((norm_and_map(method.token_head, student.pooled[:, :, None]) - class_goal) ** 2).sum()
    terms = method.loss(make_batch(2), student, teacher)
    assert terms["feature"].item() == pytest.approx(3 * (token + feature) / (2 * 25 * 5), rel=1e-5)
    # One of two images is masked; it stands behind the whole ones.
    hidden = student.masks[0][2:].numpy()
    assert hidden.shape == (1, 4, 6)
    mapped = norm_and_map(method.patch_head, student.masked[:1]).transpose(0, 2, 1).reshape(1, 5, 2, 3)
    patch = ((bilinear(mapped, (4, 6)) - teacher.final[:1].double().numpy()) ** 2 * hidden[:, None]).sum()
    assert terms["patch"].item() == pytest.approx(5 * patch / (12 * 5), rel=1e-5)


def test_heads_of_a_convolutional_student_have_a_norm_and_a_bias_too(make_pair, make_batch, sides) -> None:
    method, (student, teacher) = Proteus(ProteusConfig(), make_pair(convolutional=True)), sides
    terms = method.loss(make_batch(5), student, teacher)
    class_goal = rows_of(teacher.pooled[:, :, None])
    errors = (norm_and_map(method.token_head, student.pooled[:, :, None]) - class_goal) ** 2
    assert terms["token"].item() == pytest.approx(errors.mean(), rel=1e-5)
    for head in method.children():
        assert [name for name, _ in head.named_parameters()] == [
            "norm.weight", "norm.bias", "linear.weight", "linear.bias",
        ]  # fmt: skip
