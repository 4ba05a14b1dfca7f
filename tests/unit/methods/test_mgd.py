"""Masked generative distillation: squared error of the teacher's map regenerated from a masked student map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from closed_forms import GRID, array, convolve
from kdbench.methods.mgd import MGD, MGDConfig
from torch import Tensor

METHOD = MGD


def test_value_is_the_error_of_the_regenerated_map(
    student_grid, make_pair, distil, random, resized, monkeypatch
) -> None:
    method = MGD(MGDConfig(), make_pair(3, 5))
    student, teacher = random(2, 3, *student_grid), random(2, 5, *GRID)
    draws = torch.rand(2, 1, *GRID, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(torch, "rand_like", lambda *_, **__: draws)
    masked = resized(convolve(student, method.align)) * (draws.numpy() >= 0.75)
    regenerated = convolve(np.maximum(convolve(masked, method.generator[0]), 0), method.generator[2])
    expected = 167.8 * ((regenerated - array(teacher)) ** 2).mean()
    assert distil(method, student, teacher).item() == pytest.approx(expected, rel=1e-5)


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
