"""ViTKD: two shallow blocks in squared error, and the last map generated from half of its tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from closed_forms import array, convolve
from kdbench.methods.vitkd import ViTKD, ViTKDConfig, random_masks
from torch import Tensor, nn

from kdbench.types import FeatureSpec, PairSpec

METHOD = ViTKD


@pytest.fixture
def sides(fake, random):
    """A student of width 3 and a teacher of width 5 on one grid."""

    def side(width: int):
        return fake(None, random(2, width, 3, 4), blocks=[random(2, width, 3, 4) for _ in range(2)])

    return side(3), side(5)


def mimicking(method: ViTKD, student, teacher, resize=lambda map_: map_) -> float:
    levels = zip(method.shallow, student, teacher, strict=True)
    return 9.03 * float(np.mean([(resize(convolve(s, layer)) - array(t)) ** 2 for layer, s, t in levels]))


def test_mimicking_is_the_mean_over_both_blocks(make_pair, distil, sides) -> None:
    method = ViTKD(ViTKDConfig(), make_pair())
    expected = mimicking(method, sides[0].blocks, sides[1].blocks)
    assert distil(method, *sides)["mimicking"].item() == pytest.approx(expected, rel=1e-5)


def test_generation_is_the_mean_over_hidden_tokens_and_the_generator_sees_the_others(make_pair, distil, sides) -> None:
    # A generator that passes its input on leaves the mask token at hidden positions.
    method, (student, teacher) = ViTKD(ViTKDConfig(), make_pair()), sides
    method.generation.generator = nn.Identity()
    seen: list[Tensor] = []
    method.generation.generator.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        method.generation.mask_token.copy_(torch.arange(5.0)[:, None, None])
    value = distil(method, *sides)["generation"]
    token = np.arange(5.0)[:, None, None]
    # Which tokens were hidden is seen in what the generator got.
    hidden = (array(seen[0]) == token).all(1, keepdims=True)
    misses = (token - array(teacher.final)) ** 2 * hidden
    assert hidden.sum((1, 2, 3)).tolist() == [6, 6]
    assert value.item() == pytest.approx(0.452 * misses.sum() / (2 * 6 * 5), rel=1e-5)
    assert np.allclose(array(seen[0]), np.where(hidden, token, convolve(student.final, method.deep)), atol=1e-6)


@pytest.mark.parametrize(("ratio", "hidden"), [(0.5, 8), (0.3, 5), (0.0, 0), (1.0, 15)])
def test_masks_keep_a_count_that_is_rounded_down(ratio: float, hidden: int) -> None:
    mask = random_masks(torch.zeros(50, 2, 3, 5), ratio)
    assert mask.shape == (50, 1, 3, 5)
    assert mask.flatten(1).sum(1).tolist() == [hidden] * 50
    assert len({bytes(row.numpy()) for row in mask}) > 1 or hidden in (0, 15)


def test_a_student_in_levels_gives_its_two_shallowest(distil, fake, random, resized) -> None:
    pyramid = FeatureSpec((2, 3, 4, 6), (4, 8, 16, 32), 6, 32, class_token=False)
    method = ViTKD(ViTKDConfig(), PairSpec(FeatureSpec((5,) * 4, (8,) * 4, 5, 8, True), pyramid, 4))
    levels = [random(1, 2, 8, 12), random(1, 3, 4, 6), random(1, 4, 2, 3), random(1, 6, 1, 2)]
    student = fake(None, levels[-1], levels=levels, blocks=levels)
    teacher = fake(None, random(1, 5, 4, 6), blocks=[random(1, 5, 4, 6) for _ in range(2)])
    terms = distil(method, student, teacher)
    expected = mimicking(method, levels[:2], teacher.blocks, resized)
    assert terms["mimicking"].item() == pytest.approx(expected, rel=1e-5)
    assert torch.isfinite(terms["generation"])
    assert "extension" in method.footnote
