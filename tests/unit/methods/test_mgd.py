"""Masked generative distillation: squared error of the teacher's map regenerated from a masked student map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench.methods.mgd import MGD, MGDConfig
from torch import Tensor, nn

METHOD = MGD


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
