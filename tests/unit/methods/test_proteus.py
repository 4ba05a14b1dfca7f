"""Proteus: three heads, three squared errors, the masking rule and the stages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench.methods.proteus import HEADS, Proteus, ProteusConfig
from pydantic import ValidationError
from torch import Tensor

from kdbench.types import ENCODERS, STUDENT, Part, Phase

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


def test_defaults_are_the_published_ones() -> None:
    published = {"token": 1.0, "feature": 1.0, "patch": 1.0, "mask_probability": 0.5, "mask_ratio": 0.5}
    assert ProteusConfig().model_dump() == published | {"encoder": "fine-tuned"}


@pytest.mark.parametrize("wrong", [{"mask_ratio": 1.1}, {"mask_probability": -0.1}, {"patch": -1}])
def test_knobs_are_held_to_their_limits(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        ProteusConfig(**wrong)


@pytest.mark.parametrize(("encoder", "trained"), [("fine-tuned", STUDENT), ("frozen", {Part.STUDENT_DECODER})])
def test_stages_are_proxy_source_and_task(encoder: str, trained: frozenset[Part], make_pair) -> None:
    method = Proteus(ProteusConfig(encoder=encoder), make_pair())
    stages = method.stages()
    assert [stage.phase for stage in stages] == [Phase.PROXY, Phase.SOURCE, Phase.TASK]
    assert {name for name, _ in method.named_children()} == HEADS
    learns = HEADS | {Part.STUDENT_ENCODER}
    assert [stage.trains for stage in stages] == [learns, learns, trained]
    assert [stage.parts for stage in stages] == [ENCODERS, ENCODERS, STUDENT]
    assert [stage.reset for stage in stages] == [frozenset(), HEADS, frozenset()]


def test_task_stage_has_no_distillation(make_pair, make_batch, fake, random) -> None:
    stage = Proteus(ProteusConfig(), make_pair()).stages()[2]
    assert set(stage.loss(make_batch(), fake(logits=random(2, 4, 4, 4)), None)) == {"task"}


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


def test_without_masked_images_the_patch_loss_is_zero(make_pair, make_batch, sides) -> None:
    method = Proteus(ProteusConfig(mask_probability=0), make_pair())
    patch = method.loss(make_batch(5), *sides)["patch"]
    assert patch.item() == 0
    assert patch.requires_grad


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


def test_gradient_reaches_the_student_and_the_head_of_each_loss(method, make_batch, sides) -> None:
    student, _ = sides
    for tensor in (student.final, student.pooled, student.masked):
        tensor.requires_grad_()
    terms = method.loss(make_batch(5), *sides)
    reached = {"token": student.pooled, "feature": student.final, "patch": student.masked}
    for name, tensor in reached.items():
        inputs = (tensor, *getattr(method, f"{name}_head").parameters())
        gradients = torch.autograd.grad(terms[name], inputs, retain_graph=True)
        assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_extreme_maps_stay_finite(method, make_batch, fake, random) -> None:
    maps = [(1e4 * random(2, 3, *shape)).requires_grad_() for shape in (GRID, (), GRID)]
    terms = method.loss(make_batch(2), fake(None, *maps), fake(None, 1e4 * random(2, 5, *GRID), 1e4 * random(2, 5)))
    sum(terms.values()).backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert all(torch.isfinite(map_.grad).all() for map_ in maps)


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


def test_a_convolutional_student_is_remarked_on(make_pair) -> None:
    assert "extension" in Proteus(ProteusConfig(), make_pair(convolutional=True)).footnote
    assert Proteus(ProteusConfig(), make_pair()).footnote == ""
