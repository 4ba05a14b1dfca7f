"""Channel-wise distillation: KL over the positions of each channel, averaged over samples and channels."""

from __future__ import annotations

import pytest
import torch
from closed_forms import GRID, array, divergence, maps, norm_and_map, rows
from kdbench.methods.cwd import CWD, CWDConfig
from torch import nn

from kdbench.types import Phase

METHOD = CWD


def channel_divergence(student, teacher, temperature: float = 4.0) -> float:
    flat = (array(map_).reshape(*map_.shape[:2], -1) for map_ in (student, teacher))
    return float(divergence(*flat, temperature, axis=2).mean())


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("teacher_grid", [(4, 6), (2, 3)])
def test_logits_are_compared_on_the_finer_grid(
    temperature: float, teacher_grid: tuple[int, int], student_grid, fake, distil, random, resized
) -> None:
    ours, theirs = 5 * random(2, 4, *student_grid), 5 * random(2, 4, *teacher_grid)
    finer = max(student_grid, teacher_grid)
    expected = 3 * channel_divergence(resized(ours, finer), resized(theirs, finer), temperature)
    value = distil(fake(ours, ours), fake(theirs, theirs), temperature=temperature)
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_features_are_projected_then_resized(student_grid, make_pair, distil, random, resized) -> None:
    student, teacher = random(2, 3, *student_grid), random(2, 5, *GRID)
    method = CWD(CWDConfig(target="features"), make_pair(3, 5))
    branch = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 5))
    nn.init.zeros_(branch[1].bias)
    branch[1].weight = method.projector.linear.weight
    projected = maps(norm_and_map(rows(student), branch), student_grid)
    expected = 50 * channel_divergence(resized(projected), teacher)
    assert distil(method, student, teacher).item() == pytest.approx(expected, rel=1e-4)


def test_both_targets_have_their_own_weights_and_equal_widths_no_projector(make_pair, distil, fake, random) -> None:
    student, teacher = (fake(random(1, 4, 3, 3), random(1, 3, 2, 2)) for _ in range(2))
    config = CWDConfig(target="both", logit_weight=2, feature_weight=7, temperature=1)
    terms = distil(CWD(config, make_pair(3, 3)), student, teacher)
    expected = {
        "cwd_logits": 2 * channel_divergence(student.logits, teacher.logits, 1.0),
        "cwd_features": 7 * channel_divergence(student.final, teacher.final, 1.0),
    }
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-5)


def test_the_published_preset_is_both_targets_with_logit_distillation(make_pair, distil, fake, random) -> None:
    method = CWD(CWDConfig(preset="published"), make_pair(5, 5))
    assert [stage.phase for stage in method.stages()] == [Phase.FIT_TEACHER, Phase.TASK]
    student, teacher = (fake(random(2, 4, 2, 2), torch.ones(2, 5, 2, 2)) for _ in range(2))
    terms = distil(method, student, teacher)
    assert terms.keys() == {"cwd_logits", "cwd_features", "logit_kd"}
    expected = divergence(student.logits, teacher.logits, axis=1).mean()
    assert terms["logit_kd"].item() == pytest.approx(expected, rel=1e-5)
