"""Feature-based distillation: root mean squares of attended features, channels, positions and non-local relations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from closed_forms import array, batch_norm, convolve, maps, roughen, rows
from kdbench.methods.fbkd import FBKD, FBKDConfig, LevelAdapters, NonLocal
from scipy.special import softmax
from torch import nn

METHOD = FBKD
WEIGHTS = {"feature": 0.192, "channel": 0.0905, "spatial": 0.687, "relation": 0.192}


def max_pooled(map_: np.ndarray) -> np.ndarray:
    """Tokens (B, n, C): maxima of windows of 2 x 2 that the map fills, of one side where it is one long."""
    tall, wide = (min(2, side) for side in map_.shape[-2:])
    corners = [(tall * y, wide * x) for y in range(map_.shape[2] // tall) for x in range(map_.shape[3] // wide)]
    return np.stack([map_[:, :, y : y + tall, x : x + wide].max((2, 3)) for y, x in corners], 1)


def non_local(map_: np.ndarray, block: NonLocal) -> np.ndarray:
    """At each position the mean over pooled positions n of (q . k_n) v_n, mapped back, normed and added."""
    keys, values = (max_pooled(convolve(map_, layer)) for layer in (block.key, block.value))
    gathered = rows(convolve(map_, block.query)) @ keys.swapaxes(1, 2) @ values / keys.shape[1]
    return map_ + batch_norm(convolve(maps(gathered, map_.shape[-2:]), block.output[0]), block.output[1])


def attended(map_: np.ndarray, temperature: float) -> np.ndarray:
    mean = np.abs(map_).mean(1).reshape(len(map_), -1)
    return (softmax(mean / temperature, 1) * mean.shape[1]).reshape(len(map_), 1, *map_.shape[-2:])


def errors(level: LevelAdapters, student: np.ndarray, teacher: np.ndarray) -> dict[str, float]:
    mask = (attended(student, 0.5) + attended(teacher, 0.5)) / 2
    channel = student.mean((2, 3)) @ array(level.channel.weight).T + array(level.channel.bias)
    block, adapter = level.student_relation
    squares = {
        "feature": (convolve(student, level.feature) - teacher) ** 2 * mask,
        "channel": (channel - teacher.mean((2, 3))) ** 2,
        "spatial": (convolve(student.mean(1, keepdims=True), level.spatial) - teacher.mean(1, keepdims=True)) ** 2,
        "relation": (convolve(non_local(student, block), adapter) - non_local(teacher, level.teacher_relation)) ** 2,
    }
    return {name: float(np.sqrt(square.mean())) for name, square in squares.items()}


@pytest.mark.parametrize(("student_grid", "teacher_grid"), [((5, 4), (5, 4)), ((2, 3), (4, 5)), ((8, 8), (1, 4))])
def test_values_are_root_mean_squares_summed_over_levels(
    student_grid: tuple[int, int], teacher_grid: tuple[int, int], make_pair, distil, random, resized
) -> None:
    method = roughen(FBKD(FBKDConfig(), make_pair(4, 6, levels=2)))
    student = [random(2, 4, *student_grid) for _ in range(2)]
    teacher = [random(2, 6, *teacher_grid) for _ in range(2)]
    levels = zip(method.levels, student, teacher, strict=True)
    parts = [errors(level, resized(ours, teacher_grid), array(theirs)) for level, ours, theirs in levels]
    terms = {name: term.item() for name, term in distil(method, student, teacher).items()}
    expected = {name: weight * sum(part[name] for part in parts) for name, weight in WEIGHTS.items()}
    assert terms == pytest.approx(expected, rel=1e-4)


def test_attention_is_no_path_for_gradients(make_pair, distil, random) -> None:
    # With an adapter that maps everything to zero, the student acts on the first term through its attention alone.
    method = FBKD(FBKDConfig(), make_pair())
    nn.init.zeros_(method.levels[0].feature.weight)
    student = random(2, 3, 4, 8).requires_grad_()
    (gradient,) = torch.autograd.grad(distil(method, [student], [random(2, 5, 4, 8)])["feature"], student)
    assert gradient.abs().sum() == 0


def test_non_local_blocks_begin_as_the_identity(random) -> None:
    map_ = random(2, 6, 4, 8)
    assert torch.equal(NonLocal(6)(map_), map_)
