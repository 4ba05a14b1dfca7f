"""Masked generative distillation: squared error of the teacher's map regenerated from a masked student map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from closed_forms import GRID, array, convolve
from kdbench.methods.mgd import MGD, MGDConfig
from torch import Tensor

METHOD = MGD


def test_value_is_the_error_of_the_map_regenerated_from_what_is_not_hidden(
    student_grid, make_pair, distil, random, resized
) -> None:
    method, seen = MGD(MGDConfig(), make_pair(3, 5)), list[Tensor]()
    method.generator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    student, teacher = random(2, 3, *student_grid), random(2, 5, *GRID)
    value = distil(method, student, teacher).item()
    # Which positions were hidden is seen in what the generator got.
    masked, aligned = array(seen[0]), resized(convolve(student, method.align))
    kept = (masked != 0).any(1, keepdims=True)
    assert 0 < kept.sum() < kept.size
    assert masked == pytest.approx(np.where(kept, aligned, 0), abs=1e-6)
    regenerated = convolve(np.maximum(convolve(masked, method.generator[0]), 0), method.generator[2])
    # 2e-5 on a sum over 2048 channels and 64 x 64 positions.
    expected = 2e-5 * 2048 * 64 * 64 * ((regenerated - array(teacher)) ** 2).mean()
    assert value == pytest.approx(expected, rel=1e-3)


def test_positions_are_hidden_in_all_channels_and_the_rest_not_rescaled(make_pair, distil) -> None:
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
