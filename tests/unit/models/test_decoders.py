"""The light decoder: its logits' grid, and a loss over labelled pixels alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from kdbench.models.decoders import LightDecoder, pixel_cross_entropy
from kdbench.models.registry import TOY_MODELS
from kdbench.types import Features, FeatureSpec

CLASSES = 5
SPEC = FeatureSpec((8, 6), (4, 16), 6, 16, class_token=False)


def maps(count: int, size: tuple[int, int]) -> Features:
    """Random levels of SPEC for an image size."""
    generator = torch.Generator().manual_seed(0)
    levels = tuple(
        torch.randn(count, channels, size[0] // stride, size[1] // stride, generator=generator)
        for channels, stride in zip(SPEC.channels, SPEC.strides, strict=True)
    )
    return Features(levels, levels[-1], levels[-1].mean((2, 3)), {})


def cross_entropy(logits: np.ndarray, label: Tensor) -> float:
    """Mean of -log softmax over labelled pixels, one by one in float64, each by the root of its class's rarity."""
    total, count = 0.0, 0.0
    labels = label[label != 255].tolist()
    weight = {name: math.sqrt(len(labels) / labels.count(name)) for name in set(labels)}
    for b, y, x in np.ndindex(*label.shape):
        if label[b, y, x] == 255:
            continue
        scores = logits[b, :, y, x]
        own = weight[int(label[b, y, x])]
        total += own * (math.log(sum(math.exp(score) for score in scores)) - scores[int(label[b, y, x])])
        count += own
    return total / count


@pytest.fixture
def label() -> Tensor:
    made = torch.randint(0, CLASSES, (2, 8, 12), generator=torch.Generator().manual_seed(1))
    made[:, :, :4] = made[0, 3] = 255
    return made


@pytest.mark.parametrize("encoder", list(TOY_MODELS), indirect=True)
@pytest.mark.parametrize("size", [(32, 64), (48, 32)])
def test_logits_are_at_half_the_image(encoder, size: tuple[int, int], images) -> None:
    decoder = LightDecoder(encoder.spec, CLASSES)
    with torch.no_grad():
        features = encoder(images(2, *size))
        output = decoder(features)
    assert output.logits.shape == (2, CLASSES, size[0] // 2, size[1] // 2)
    assert output.features is features


def test_every_level_counts_and_gets_a_gradient() -> None:
    decoder, features = LightDecoder(SPEC, CLASSES), maps(2, (32, 64))
    for level in features.levels:
        level.requires_grad_()
    decoder(features).logits.square().sum().backward()
    assert all(level.grad.abs().sum() > 0 for level in features.levels)
    assert all(parameter.grad.abs().sum() > 0 for parameter in decoder.parameters())


def test_levels_of_one_grid_are_summed_as_if_each_were_resized_alone(bilinear) -> None:
    spec = FeatureSpec((4, 4, 4), (4, 8, 8), 4, 8, class_token=False)
    decoder = LightDecoder(spec, CLASSES)
    generator = torch.Generator().manual_seed(2)
    levels = tuple(torch.randn(1, 4, 32 // s, 32 // s, generator=generator) for s in spec.strides)
    fused: list[Tensor] = []
    decoder.norm.register_forward_pre_hook(lambda _, inputs: fused.append(inputs[0]))
    with torch.no_grad():
        decoder(Features(levels, levels[-1], levels[-1].mean((2, 3)), {}))
        projected = [project(level) for project, level in zip(decoder.project, levels, strict=True)]
    expected = sum(bilinear(level[0].numpy(), (8, 8)) for level in projected)
    assert np.allclose(fused[0][0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("grid", [(8, 12), (4, 6), (2, 3), (3, 5)])
def test_loss_equals_a_loop_over_labelled_pixels(grid: tuple[int, int], label: Tensor, bilinear) -> None:
    logits = 3 * torch.randn(2, CLASSES, *grid, generator=torch.Generator().manual_seed(3))
    expected = cross_entropy(bilinear(logits.numpy(), label.shape[1:]), label)
    assert pixel_cross_entropy(logits, label).item() == pytest.approx(expected, rel=1e-5)
    assert pixel_cross_entropy(logits.bfloat16(), label).dtype == torch.float32


def test_all_ignored_costs_nothing_and_has_a_finite_gradient() -> None:
    decoder, features = LightDecoder(SPEC, CLASSES), maps(1, (32, 64))
    loss = decoder.loss(decoder(features), torch.full((1, 32, 64), 255))["task"]
    loss.backward()
    assert loss == 0
    assert all(bool((parameter.grad == 0).all()) for parameter in decoder.parameters())
