"""Masked generative distillation: squared error of the teacher's map regenerated from a masked student map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench.methods.mgd import MGD, MGDConfig
from pydantic import ValidationError
from torch import Tensor, nn

from kdbench.types import STUDENT, Part, Phase


def convolve(map_: np.ndarray, layer: nn.Conv2d) -> np.ndarray:
    """A convolution of (B, C, h, w) with zeros around it in float64, offset by offset."""
    weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
    side = weight.shape[-1]
    height, width = map_.shape[-2:]
    padded = np.pad(map_, ((0, 0), (0, 0), (side // 2,) * 2, (side // 2,) * 2))
    out = np.zeros((len(map_), len(weight), height, width)) + bias[:, None, None]
    for y in range(side):
        for x in range(side):
            out += np.einsum("oc,bchw->bohw", weight[:, :, y, x], padded[:, :, y : y + height, x : x + width])
    return out


def regenerate(method: MGD, masked: np.ndarray) -> np.ndarray:
    return convolve(np.maximum(convolve(masked, method.generator[0]), 0), method.generator[2])


@pytest.fixture
def distil(make_batch, fake):
    """The distillation term alone, of a method."""

    def run(method: MGD, student: Tensor, teacher: Tensor, label: int = 0) -> Tensor:
        logits = torch.zeros(len(student), 4, 2, 2)
        terms = method.loss(make_batch(len(student), label), fake(logits, student), fake(None, teacher))
        assert set(terms) == {"task", "mgd"}
        return terms["mgd"]

    return run


def test_defaults_are_the_published_ones() -> None:
    assert MGDConfig().model_dump() == {"preset": "plain", "mask_ratio": 0.75, "weight_on_mean": 167.8}
    assert pytest.approx(2e-5 * 2048 * 64 * 64, rel=1e-3) == MGDConfig().weight_on_mean


@pytest.mark.parametrize("config", [{"mask_ratio": 1.1}, {"mask_ratio": -0.1}, {"weight_on_mean": -1}])
def test_knobs_have_limits(config: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        MGDConfig(**config)


def test_one_joint_stage_that_needs_no_teacher_decoder(make_pair) -> None:
    (joint,) = MGD(MGDConfig(), make_pair()).stages()
    assert (joint.phase, joint.trains) == (Phase.TASK, STUDENT | {"align", "generator"})
    assert joint.parts == STUDENT | {Part.TEACHER_ENCODER}


@pytest.mark.parametrize("student_grid", [(3, 5), (2, 2)])
def test_value_equals_a_loop_over_the_offsets_of_the_convolutions(
    student_grid: tuple[int, int], make_pair, distil, random, bilinear, monkeypatch
) -> None:
    method = MGD(MGDConfig(), make_pair(3, 5))
    student, teacher = random(2, 3, *student_grid), random(2, 5, 3, 5)
    draws = torch.rand(2, 1, 3, 5, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(torch, "rand_like", lambda *_, **__: draws)
    aligned = bilinear(convolve(student.double().numpy(), method.align), (3, 5))
    error = regenerate(method, aligned * (draws.numpy() >= 0.75)) - teacher.double().numpy()
    expected = 167.8 * (error**2).sum() / error.size
    assert distil(method, student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_positions_are_hidden_in_all_channels_with_the_given_probability_and_the_rest_not_rescaled(
    make_pair, distil
) -> None:
    method = MGD(MGDConfig(mask_ratio=0.3), make_pair(4, 4))
    seen: list[Tensor] = []
    method.generator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    distil(method, torch.full((3, 4, 32, 32), 2.0), torch.zeros(3, 4, 32, 32))
    (map_,) = seen
    assert map_.unique().tolist() == [0, 2]
    assert torch.equal(map_, map_[:, :1].expand_as(map_))
    # 3072 draws: a standard deviation of 0.008.
    assert (map_ == 0).float().mean().item() == pytest.approx(0.3, abs=0.04)
    assert not torch.equal(map_[0], map_[1])


def test_the_mask_follows_the_seed(make_pair, distil, random) -> None:
    method = MGD(MGDConfig(), make_pair())
    maps = random(2, 3, 4, 8), random(2, 5, 4, 8)

    def value(seed: int) -> float:
        torch.manual_seed(seed)
        return distil(method, *maps).item()

    assert value(1) == value(1) != value(2)


def test_equal_widths_are_not_aligned(make_pair) -> None:
    assert not list(MGD(MGDConfig(), make_pair(4, 4)).align.parameters())


def test_gradient_reaches_student_and_all_adapters(make_pair, distil, random) -> None:
    method = MGD(MGDConfig(mask_ratio=0.2), make_pair())
    student = random(2, 3, 4, 8).requires_grad_()
    distil(method, student, random(2, 5, 4, 8)).backward()
    assert student.grad.abs().sum() > 0
    assert all(parameter.grad.abs().sum() > 0 for parameter in method.parameters())


@pytest.mark.parametrize("mask_ratio", [0.75, 1.0])
def test_extreme_features_without_a_labelled_pixel_are_finite(mask_ratio: float, make_pair, distil, random) -> None:
    method = MGD(MGDConfig(mask_ratio=mask_ratio), make_pair())
    student = (1e4 * random(2, 3, 4, 8)).requires_grad_()
    value = distil(method, student, 1e4 * random(2, 5, 4, 8), label=255)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()


def test_the_papers_recipe_adds_channel_wise_distillation_of_logits(make_pair, make_batch, fake, random) -> None:
    method = MGD(MGDConfig(preset="published"), make_pair())
    assert [stage.phase for stage in method.stages()] == [Phase.FIT_TEACHER, Phase.TASK]
    ours, theirs = random(2, 4, 3, 3), random(2, 4, 3, 3)
    terms = method.loss(make_batch(), fake(ours, random(2, 3, 4, 8)), fake(theirs, random(2, 5, 4, 8)))
    p, q = ((map_.double().flatten(2) / 4).softmax(2) for map_ in (theirs, ours))
    expected = 3 * 16 * (p * (p.log() - q.log())).sum(2).mean()
    assert terms["cwd"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert set(terms) == {"task", "mgd", "cwd"}
