"""ViTKD: two shallow blocks in squared error, and the last map generated from half of its tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench.methods.vitkd import ViTKD, ViTKDConfig, random_masks
from torch import Tensor, nn

from kdbench.types import Features, FeatureSpec, PairSpec


def features(final: Tensor, blocks: tuple[Tensor, ...] = (), levels: tuple[Tensor, ...] = ()) -> Features:
    return Features(levels, final, final.mean((2, 3)), dict(enumerate(blocks)))


def mapped(linear: nn.Conv2d, map_: Tensor) -> np.ndarray:
    """An affine map of each position's channels, in float64."""
    weight, bias = linear.weight.detach().double().numpy()[:, :, 0, 0], linear.bias.detach().double().numpy()
    return np.einsum("tc,bchw->bthw", weight, map_.double().numpy()) + bias[:, None, None]


@pytest.fixture
def sides(random) -> tuple[Features, Features]:
    """A student of width 3 and a teacher of width 5 on one grid."""

    def side(width: int) -> Features:
        return features(random(2, width, 3, 4), (random(2, width, 3, 4), random(2, width, 3, 4)))

    return side(3), side(5)


def test_mimicking_is_the_mean_over_both_blocks(make_pair, make_batch, sides) -> None:
    method = ViTKD(ViTKDConfig(), make_pair())
    student, teacher = sides
    errors = [
        mapped(method.shallow[block], student.blocks[block]) - teacher.blocks[block].double().numpy()
        for block in (0, 1)
    ]
    published_sum = 3e-5 / 2 * sum((error**2).sum() for error in errors)
    expected = 9.03 * published_sum / (3e-5 * 2 * 12 * 5)
    assert method.terms(make_batch(), *sides)["mimicking"].item() == pytest.approx(expected, rel=1e-5)


def test_generation_is_the_mean_over_hidden_tokens(make_pair, make_batch, sides) -> None:
    # A generator that passes its input on leaves the mask token at hidden positions.
    method = ViTKD(ViTKDConfig(), make_pair())
    method.generation.generator = nn.Identity()
    with torch.no_grad():
        method.generation.mask_token.copy_(torch.arange(5.0)[:, None, None])
    torch.manual_seed(0)
    hidden = random_masks(sides[1].final, 0.5).numpy()
    misses = (np.arange(5.0)[:, None, None] - sides[1].final.double().numpy()) ** 2 * hidden
    torch.manual_seed(0)
    value = method.terms(make_batch(), *sides)["generation"]
    assert hidden.sum() == 2 * 6
    assert value.item() == pytest.approx(0.452 * misses.sum() / (2 * 6 * 5), rel=1e-5)


def test_tokens_that_are_kept_reach_the_generator_mapped(make_pair, make_batch, sides) -> None:
    method = ViTKD(ViTKDConfig(), make_pair())
    seen: list[Tensor] = []
    method.generation.generator.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    torch.manual_seed(0)
    hidden = random_masks(sides[1].final, 0.5).numpy()
    torch.manual_seed(0)
    method.terms(make_batch(), *sides)
    expected = mapped(method.deep, sides[0].final) * ~hidden
    assert np.allclose(seen[0].detach().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("ratio", "hidden"), [(0.5, 8), (0.3, 5), (0.0, 0), (1.0, 15)])
def test_masks_keep_a_count_that_is_rounded_down(ratio: float, hidden: int) -> None:
    mask = random_masks(torch.zeros(50, 2, 3, 5), ratio)
    assert mask.shape == (50, 1, 3, 5)
    assert mask.flatten(1).sum(1).tolist() == [hidden] * 50
    assert len({bytes(row.numpy()) for row in mask}) > 1 or hidden in (0, 15)


def test_a_student_in_levels_gives_its_two_shallowest(make_batch, random, bilinear) -> None:
    pyramid = FeatureSpec((2, 3, 4, 6), (4, 8, 16, 32), 6, 32, class_token=False)
    method = ViTKD(ViTKDConfig(), PairSpec(FeatureSpec((5,) * 4, (8,) * 4, 5, 8, True), pyramid, 4))
    levels = random(1, 2, 8, 12), random(1, 3, 4, 6), random(1, 4, 2, 3), random(1, 6, 1, 2)
    teacher = features(random(1, 5, 4, 6), (random(1, 5, 4, 6), random(1, 5, 4, 6)))
    terms = method.terms(make_batch(1), features(levels[-1], levels=levels), teacher)
    errors = [
        bilinear(mapped(method.shallow[block], levels[block]), (4, 6)) - teacher.blocks[block].double().numpy()
        for block in (0, 1)
    ]
    assert terms["mimicking"].item() == pytest.approx(9.03 * np.mean(np.square(errors)), rel=1e-5)
    assert torch.isfinite(terms["generation"])
    assert "extension" in method.footnote
