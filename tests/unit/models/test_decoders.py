"""The light decoder: its logits' grid, and a loss over labelled pixels alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from kdbench.models.decoders import DECODERS, LightDecoder, pixel_cross_entropy
from kdbench.models.registry import TOY_MODELS
from kdbench.types import Features, FeatureSpec, SegOutput

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


def at_pixel(map_: np.ndarray, y: int, x: int, size: tuple[int, int]) -> np.ndarray:
    """A map (K, h, w) at a pixel of a larger grid: bilinear between pixel centres, clamped at the border."""
    places = []
    for index, old, new in ((y, map_.shape[1], size[0]), (x, map_.shape[2], size[1])):
        place = min(max((index + 0.5) * old / new - 0.5, 0.0), old - 1.0)
        places.append((int(place), min(int(place) + 1, old - 1), place - int(place)))
    (top, bottom, v), (left, right, u) = places
    upper = (1 - u) * map_[:, top, left] + u * map_[:, top, right]
    lower = (1 - u) * map_[:, bottom, left] + u * map_[:, bottom, right]
    return (1 - v) * upper + v * lower


def cross_entropy(logits: Tensor, label: Tensor) -> float:
    """Mean of -log softmax over labelled pixels, one by one in float64, each by the root of its class's rarity."""
    total, count = 0.0, 0.0
    size = (label.shape[1], label.shape[2])
    labels = label[label != 255].tolist()
    weight = {name: math.sqrt(len(labels) / labels.count(name)) for name in set(labels)}
    for b, y, x in np.ndindex(*label.shape):
        if label[b, y, x] == 255:
            continue
        scores = at_pixel(logits[b].detach().double().numpy(), y, x, size)
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


def test_a_frozen_decoder_passes_gradients_to_its_input() -> None:
    decoder, features = LightDecoder(SPEC, CLASSES).requires_grad_(False).eval(), maps(1, (32, 64))
    features.levels[0].requires_grad_()
    decoder(features).logits.square().sum().backward()
    assert features.levels[0].grad.abs().sum() > 0


def test_levels_of_one_grid_are_summed_as_if_each_were_resized_alone(bilinear_sum) -> None:
    spec = FeatureSpec((4, 4, 4), (4, 8, 8), 4, 8, class_token=False)
    decoder = LightDecoder(spec, CLASSES)
    generator = torch.Generator().manual_seed(2)
    levels = tuple(torch.randn(1, 4, 32 // s, 32 // s, generator=generator) for s in spec.strides)
    fused: list[Tensor] = []
    decoder.norm.register_forward_pre_hook(lambda _, inputs: fused.append(inputs[0]))
    with torch.no_grad():
        decoder(Features(levels, levels[-1], levels[-1].mean((2, 3)), {}))
        projected = [project(level) for project, level in zip(decoder.project, levels, strict=True)]
    assert np.allclose(fused[0][0].numpy(), bilinear_sum(projected, (8, 8)), atol=1e-5)


@pytest.fixture
def bilinear_sum():
    """The sum of maps (1, C, h, w), each brought to one grid pixel by pixel."""

    def total(levels: list[Tensor], size: tuple[int, int]) -> np.ndarray:
        out = np.zeros((levels[0].shape[1], *size))
        for level in levels:
            for y, x in np.ndindex(*size):
                out[:, y, x] += at_pixel(level[0].double().numpy(), y, x, size)
        return out

    return total


@pytest.mark.parametrize("grid", [(8, 12), (4, 6), (2, 3), (3, 5)])
def test_loss_equals_a_loop_over_labelled_pixels(grid: tuple[int, int], label: Tensor) -> None:
    logits = 3 * torch.randn(2, CLASSES, *grid, generator=torch.Generator().manual_seed(3))
    assert pixel_cross_entropy(logits, label).item() == pytest.approx(cross_entropy(logits, label), rel=1e-5)


def test_ignored_pixels_get_no_gradient(label: Tensor) -> None:
    logits = torch.zeros(2, CLASSES, 8, 12, requires_grad=True)
    pixel_cross_entropy(logits, label).backward()
    moved = logits.grad.abs().sum(1) > 0
    assert torch.equal(moved, label != 255)


def test_the_mean_is_over_the_batch_and_a_class_weighs_by_the_root_of_its_rarity() -> None:
    # One labelled pixel against eight: the mean of the images' means would weigh them alike.
    label = torch.full((2, 3, 3), 255)
    label[0, 0, 0], label[1] = 0, 1
    label[1, 0, 0] = 255
    logits = torch.zeros(2, 2, 3, 3)
    logits[1, 1] = 10
    rare, common = math.sqrt(9), math.sqrt(9 / 8)
    expected = (rare * math.log(2) + 8 * common * math.log1p(math.exp(-10))) / (rare + 8 * common)
    assert pixel_cross_entropy(logits, label).item() == pytest.approx(expected, rel=1e-5)


def test_all_ignored_costs_nothing_and_has_a_finite_gradient() -> None:
    decoder, features = LightDecoder(SPEC, CLASSES), maps(1, (32, 64))
    loss = decoder.loss(decoder(features), torch.full((1, 32, 64), 255))["task"]
    loss.backward()
    assert loss == 0
    assert all(bool((parameter.grad == 0).all()) for parameter in decoder.parameters())


def test_loss_is_in_single_precision(label: Tensor) -> None:
    assert pixel_cross_entropy(torch.zeros(2, CLASSES, 4, 6, dtype=torch.bfloat16), label).dtype == torch.float32


FOUR = FeatureSpec((8,) * 4, (2, 4, 8, 16), 8, 16, class_token=False)


@pytest.mark.parametrize("name", list(DECODERS))
def test_every_decoder_by_name_gives_logits_of_every_class(name: str) -> None:
    decoder = DECODERS[name](FOUR, CLASSES)
    levels = tuple(torch.rand(2, 8, 32 // stride, 64 // stride) for stride in FOUR.strides)
    output = decoder(Features(levels, levels[-1], levels[-1].mean((2, 3)), {}))
    assert isinstance(output, SegOutput)
    assert output.logits.shape[:2] == (2, CLASSES)
