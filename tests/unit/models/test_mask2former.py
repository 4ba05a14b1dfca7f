"""Mask2Former: its scores, its losses against closed forms, its size against the paper's, and that it can be frozen."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from kdbench.errors import KdbenchError
from kdbench.models import mask2former
from kdbench.models.mask2former import Mask2FormerDecoder, Predictions, semantic_scores
from kdbench.models.segmentor import seeded
from kdbench.types import Features, FeatureSpec, SegOutput

CLASSES = 3
QUERIES = 6
LAYERS = 4
TOKENS = FeatureSpec((12,) * 4, (16,) * 4, 12, 16, class_token=True)
PYRAMID = FeatureSpec((8, 10, 12, 14), (4, 8, 16, 32), 14, 32, class_token=False)
NAMES = ["class", "mask", "dice"]


class Small(Mask2FormerDecoder):
    """The decoder at a size for tests; as many points as the paper's."""

    SETTINGS = Mask2FormerDecoder.SETTINGS | {
        "num_queries": QUERIES, "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32,
        "num_attention_heads": 4, "encoder_layers": 2, "encoder_feedforward_dim": 32, "decoder_layers": LAYERS,
        "dim_feedforward": 32,
    }  # fmt: skip


def build(spec: FeatureSpec = PYRAMID, kind: type[Mask2FormerDecoder] = Small) -> Mask2FormerDecoder:
    return seeded(lambda: kind(spec, CLASSES), "test")


def maps(spec: FeatureSpec, height: int, width: int, count: int = 2) -> Features:
    """Random levels for an image size, each a leaf that takes a gradient."""
    generator = torch.Generator().manual_seed(0)
    levels = tuple(
        torch.randn(count, channels, height // stride, width // stride, generator=generator).requires_grad_()
        for channels, stride in zip(spec.channels, spec.strides, strict=True)
    )
    return Features(levels, levels[-1], levels[-1].mean((2, 3)), {})


def outputs(layers: int, count: int, queries: int, size: tuple[int, int], seed: int = 0) -> SegOutput:
    """Random predictions of all layers as if a decoder had made them."""
    generator = torch.Generator().manual_seed(seed)
    classes = [torch.randn(count, queries, CLASSES + 1, generator=generator) for _ in range(layers)]
    masks = [3 * torch.randn(count, queries, *size, generator=generator) for _ in range(layers)]
    return SegOutput(maps(PYRAMID, 32, 32, 1), torch.empty(0), Predictions(tuple(classes), tuple(masks)))


def loss_of(decoder: Mask2FormerDecoder, output: SegOutput, label: Tensor, seed: int = 0) -> dict[str, Tensor]:
    torch.default_generator.manual_seed(seed)
    return decoder.loss(output, label)


def bands(height: int, width: int) -> Tensor:
    """Two label maps (2, H, W): three vertical bands of classes, the second one flipped and with an ignored edge."""
    label = (torch.arange(width) * CLASSES // width).expand(height, width)
    second = label.flip(1).clone()
    second[0] = 255
    return torch.stack([label, second])


# ---- what is built


@pytest.mark.parametrize(
    ("name", "width", "millions"), [("small", 384, 41.9), ("base", 768, 106.8), ("large", 1024, 324.8)]
)
def test_parameters_are_those_of_the_papers_table(name: str, width: int, millions: float) -> None:
    spec = FeatureSpec((width,) * 4, (16,) * 4, width, 16, class_token=True)
    with torch.device("meta"):
        encoder = timm.create_model(f"vit_{name}_patch14_dinov2", img_size=512, patch_size=16, num_classes=0)
        decoder = Mask2FormerDecoder(spec, 19)
    total = sum(p.numel() for part in (encoder, decoder) for p in part.parameters())
    assert round(total / 1e6, 1) == millions


@pytest.fixture(scope="module")
def large() -> dict[str, Tensor]:
    """The start weights of the decoder at the paper's size, for a ViT-B."""
    spec = FeatureSpec((768,) * 4, (16,) * 4, 768, 16, class_token=True)
    network = seeded(lambda: Mask2FormerDecoder(spec, 19), "start").network
    return {name: value.detach() for name, value in network.named_parameters()}


def test_equal_seeds_build_equal_finite_weights_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("looked something up")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    first, second, other = (seeded(lambda: Small(PYRAMID, CLASSES), name) for name in ("a", "a", "b"))
    assert first.state_dict().keys() == second.state_dict().keys()
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
        assert value.isfinite().all(), key
    # Uninitialised memory may happen to be equal and finite, but hardly to be normal; it differs for another seed.
    embedding = first.network.pixel_decoder.level_embed
    assert embedding.std().item() == pytest.approx(1, abs=0.25)
    assert not torch.equal(embedding, other.network.pixel_decoder.level_embed)


@pytest.mark.parametrize(
    ("pattern", "variance", "uniform"),
    [
        # Its variances: xavier 2 / (inputs + outputs), caffe2's xavier 1 / inputs, torch's linear map a third of that.
        ("pixel_decoder.level_embed", 1, False),
        ("pixel_decoder.input_projections.?.0.weight", 2 / (768 + 256), True),
        ("pixel_decoder.adapter_1.0.weight", 1 / 768, True),
        ("pixel_decoder.layer_1.0.weight", 1 / (256 * 9), True),
        ("pixel_decoder.mask_projection.weight", 1 / 256, True),
        ("pixel_decoder.encoder.layers.?.self_attn.value_proj.weight", 2 / 512, True),
        ("pixel_decoder.encoder.layers.?.self_attn.output_proj.weight", 2 / 512, True),
        ("pixel_decoder.encoder.layers.?.fc?.weight", 2 / (256 + 1024), False),
        ("transformer.decoder.layers.?.self_attn.[kqv]_proj.weight", 2 / (256 + 3 * 256), False),
        ("transformer.decoder.layers.?.cross_attn.in_proj_weight", 2 / (256 + 3 * 256), False),
        ("transformer.decoder.layers.?.*_attn.out_proj.weight", 2 / 512, False),
        ("transformer.decoder.layers.?.fc?.weight", 2 / (256 + 2048), False),
        ("transformer.decoder.mask_predictor.mask_embedder.?.0.weight", 1 / (3 * 256), True),
        ("transformer.*embed*r.weight", 1, False),
        ("transformer.queries_features.weight", 1, False),
        ("classify.weight", 1 / (3 * 256), True),
    ],
)
def test_start_weights_are_drawn_as_mmdet_does(
    large: dict[str, Tensor], pattern: str, variance: float, uniform: bool
) -> None:
    found = {name: value for name, value in large.items() if fnmatch(name, pattern)}
    assert found
    for name, value in found.items():
        few = 3 / value.numel() ** 0.5
        assert value.mean().item() == pytest.approx(0, abs=few * variance**0.5), name
        assert value.std().item() == pytest.approx(variance**0.5, rel=few), name
        largest = value.abs().max().item() / variance**0.5
        assert (largest <= 3**0.5 + 1e-4) == uniform, name


def test_sampling_starts_on_rings_and_biases_where_mmdet_has_them(large: dict[str, Tensor]) -> None:
    # Eight heads look in the eight directions of a grid, the k-th of four points k cells away, alike on three levels.
    directions = torch.tensor([[1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1]]).float()
    ring = torch.stack([k * directions for k in (1, 2, 3, 4)], 1)[:, None].expand(8, 3, 4, 2).flatten()
    for layer in range(6):
        attention = f"pixel_decoder.encoder.layers.{layer}.self_attn."
        torch.testing.assert_close(large[f"{attention}sampling_offsets.bias"], ring, atol=1e-5, rtol=0)
        assert not large[f"{attention}sampling_offsets.weight"].any()
        assert not large[f"{attention}attention_weights.weight"].any()
    zero = {name for name, value in large.items() if name.endswith("bias") and not value.any()}
    drawn = {name for name in large if fnmatch(name, "*.fc?.bias") or fnmatch(name, "*.mask_embedder.*.bias")}
    rings = {name for name in large if name.endswith("sampling_offsets.bias")}
    assert {name for name in large if name.endswith("bias")} - zero == drawn | rings | {"classify.bias"}


def test_fewer_than_three_levels_are_refused() -> None:
    with pytest.raises(KdbenchError, match="at least 3 levels, this encoder has 2"):
        Small(FeatureSpec((8, 6), (4, 16), 6, 16, class_token=False), CLASSES)


# ---- forward


def test_logits_are_the_log_of_the_semantic_score_of_the_last_layer() -> None:
    decoder = build()
    with torch.no_grad():
        output = decoder(maps(PYRAMID, 64, 96))
    classes = output.extra.classes[-1].double().numpy()
    masks = output.extra.masks[-1].double().numpy()
    scores = np.zeros((2, CLASSES, 16, 24))
    for b, q, k in np.ndindex(2, QUERIES, CLASSES):
        chance = math.exp(classes[b, q, k]) / sum(math.exp(c) for c in classes[b, q])
        scores[b, k] += chance / (1 + np.exp(-masks[b, q]))
    assert output.logits.shape == scores.shape
    assert np.allclose(output.logits.double().numpy(), np.log(scores + 1e-6), atol=1e-5)


def test_scores_at_another_size_are_those_of_resized_masks() -> None:
    decoder = build()
    with torch.no_grad():
        output = decoder(maps(PYRAMID, 64, 64))
        assert output.scores is not None
        at_size = output.scores((32, 48))
    grown = torch.nn.Upsample((32, 48), mode="bilinear")(output.extra.masks[-1]).double()
    chances = output.extra.classes[-1].double().softmax(-1)[..., :-1]
    expected = sum(chances[:, q, :, None, None] * grown[:, q, None].sigmoid() for q in range(QUERIES))
    assert torch.allclose(at_size.double(), expected, atol=1e-6)
    # A mask of logits +2 and -20 ends at a half of its logits' range, not of its probabilities'.
    line = torch.tensor([2.0, -20]).repeat(2, 1)[None, None]
    sharp = semantic_scores(torch.tensor([[[30.0, 0]]]), line, (2, 200))[0, 0, 0]
    assert int((sharp > 0.5).sum()) == 50 + round(100 * 2 / 22)


@pytest.mark.parametrize("grid", [(37, 37), (64, 32), (9, 13)])
def test_token_maps_become_a_pyramid(grid: tuple[int, int]) -> None:
    # Channel 0 is a map's row, channel 1 its column: bilinear maps of a ramp are known in closed form.
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    ramp = torch.zeros(1, 12, *grid)
    ramp[0, 0], ramp[0, 1] = rows, columns
    levels = mask2former._pyramid((ramp,) * 4)
    for level, scale in zip(levels, (4, 2, 1, 0.5), strict=True):
        height, width = (math.floor(side * scale) for side in grid)
        y, x = ((torch.arange(side) + 0.5) / scale - 0.5 for side in (height, width))
        assert level.shape == (1, 12, height, width)
        assert torch.allclose(level[0, 0], y.clamp(0, grid[0] - 1)[:, None].expand(height, width), atol=1e-4)
        assert torch.allclose(level[0, 1], x.clamp(0, grid[1] - 1).expand(height, width), atol=1e-4)


@pytest.mark.parametrize(
    ("spec", "size", "grid"),
    [
        (TOKENS, (144, 208), (36, 52)),
        (PYRAMID, (100, 172), (25, 43)),
        (FeatureSpec((8, 10, 12, 14), (4, 8, 8, 8), 14, 8, class_token=False), (64, 96), (16, 24)),
        (FeatureSpec((8, 10, 12), (8, 16, 32), 12, 32, class_token=False), (64, 96), (8, 12)),
        (FeatureSpec((6, 8, 10, 12, 14), (2, 4, 8, 16, 32), 14, 32, class_token=False), (64, 96), (32, 48)),
    ],
)  # fmt: skip
def test_logits_lie_on_the_finest_grid_and_every_level_counts(
    spec: FeatureSpec, size: tuple[int, int], grid: tuple[int, int]
) -> None:
    features, decoder = maps(spec, *size, count=1), build(spec)
    assert decoder.token_maps == (spec is TOKENS)
    output = decoder(features)
    assert output.logits.shape == (1, CLASSES, *grid)
    assert output.features is features
    output.logits.square().sum().backward()
    assert all(level.grad.abs().sum() > 0 for level in features.levels)


def test_the_gradient_of_a_frozen_decoder_is_that_of_finite_differences() -> None:
    # Shows that nothing but the choice of attended cells, which is constant around a point, is cut off.
    decoder, features = build().requires_grad_(False).eval(), maps(PYRAMID, 64, 64, count=1)
    weight = torch.randn(1, CLASSES, 16, 16, generator=torch.Generator().manual_seed(5))
    (decoder(features).logits * weight).sum().backward()
    for number, level in enumerate(features.levels):
        step = 1e-2 * level.grad / level.grad.norm()
        values = []
        for sign in (1, -1):
            moved = [*features.levels]
            moved[number] = level.detach() + sign * step
            with torch.no_grad():
                logits = decoder(replace(features, levels=tuple(moved))).logits
            values.append((logits.double() * weight).sum().item())
        assert (values[0] - values[1]) / 2e-2 == pytest.approx(level.grad.norm().item(), rel=0.05)


# ---- loss


def test_terms_equal_a_sum_over_a_given_matching_and_all_pixel_centres(monkeypatch: pytest.MonkeyPatch) -> None:
    height, width, queries = 6, 9, 4
    decoder, output, label = build(), outputs(2, 2, queries, (height, width)), bands(height, width)
    # For each image, query -> class.
    matching = [{0: 2, 1: 0, 3: 1}, {0: 1, 2: 0, 3: 2}]
    answer = [(torch.tensor([*image]), torch.tensor([*image.values()])) for image in matching]
    monkeypatch.setattr(mask2former, "_matched", lambda costs: ([answer] * len(costs), 6))
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    centres = torch.stack([x, y], -1).flatten(0, 1)
    monkeypatch.setattr(
        decoder.criterion, "sample_points_using_uncertainty", lambda masks, *_: centres.expand(len(masks), -1, -1)
    )
    expected = dict.fromkeys(NAMES, 0.0)
    for classes, masks in zip(output.extra.classes, output.extra.masks, strict=True):
        above = below = 0.0
        for b, q in np.ndindex(2, queries):
            target = matching[b].get(q, CLASSES)
            scores, weight = classes[b, q].double().tolist(), 0.1 if target == CLASSES else 1.0
            above += weight * (math.log(sum(map(math.exp, scores))) - scores[target])
            below += weight
            if target < CLASSES:
                p, there = masks[b, q].double().sigmoid().numpy(), (label[b] == target).double().numpy()
                expected["mask"] -= 5 * (there * np.log(p) + (1 - there) * np.log(1 - p)).mean() / 6
                expected["dice"] += 5 * (1 - (2 * (p * there).sum() + 1) / (p.sum() + there.sum() + 1)) / 6
        expected["class"] += 2 * above / below
    found = loss_of(decoder, output, label)
    assert {name: term.item() for name, term in found.items()} == pytest.approx(expected, rel=1e-4)


@pytest.fixture
def repeated_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes random points a function of their number, so that the order in which they are drawn does not matter."""
    draw = torch.rand

    def repeat(*shape: int, **options: object) -> Tensor:
        return draw(*shape, generator=torch.Generator().manual_seed(sum(shape)), **options)

    monkeypatch.setattr(torch, "rand", repeat)


@pytest.mark.parametrize("case", ["bands", "unlabelled", "broken", "few queries"])
def test_losses_are_those_of_transformers_layer_by_layer(repeated_points, case: str) -> None:
    decoder = build()
    output = outputs(layers=LAYERS, count=2, queries=2 if case == "few queries" else QUERIES, size=(8, 12))
    label = bands(16, 24)
    label[0][label[0] == 1] = 2
    if case == "unlabelled":
        label[1] = 255
    if case == "broken":
        output.extra.masks[1][0, 2], output.extra.classes[1][1, 0] = math.nan, math.inf
    theirs = Mask2FormerLoss(Mask2FormerConfig(num_labels=CLASSES, **Small.SETTINGS), {})
    present = [[k for k in range(CLASSES) if (image == k).any()] for image in label]
    masks = [
        torch.stack([torch.zeros(16, 24), *[image == k for k in ks]])[1:]
        for image, ks in zip(label, present, strict=True)
    ]
    layers = [
        theirs(m, c, masks, [torch.tensor(ks).long() for ks in present])
        for m, c in zip(output.extra.masks, output.extra.classes, strict=True)
    ]
    found = loss_of(decoder, output, label)
    for name, (key, weight) in decoder.weights.items():
        expected = weight * sum(layer[key] for layer in layers)
        assert torch.allclose(found[name], expected, rtol=1e-6, atol=0, equal_nan=True), name
    assert case == "broken" or all(term.isfinite() for term in found.values())


class Waits(TorchDispatchMode):
    """Names of the operations whose result or whose shape the processor has to know."""

    OPERATIONS = ("_local_scalar_dense", "nonzero", "_unique2", "masked_select", "equal", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        boolean = name in ("index", "index_put_") and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in self.OPERATIONS or boolean:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, output, label = build(), outputs(LAYERS, 2, QUERIES, (8, 8)), bands(16, 16)
    fetch, fetched = Tensor.cpu, []
    monkeypatch.setattr(Tensor, "cpu", lambda self: fetched.append(self.shape) or fetch(self))
    with Waits() as waits:
        loss_of(decoder, output, label)
        assert waits.found == []
        torch.unique(label)
        assert waits.found == ["_unique2"]
    assert fetched == [(LAYERS, 2, QUERIES, CLASSES)]


def test_without_any_label_all_queries_are_to_be_no_object_and_no_mask_is_asked_for() -> None:
    decoder = build()
    output = decoder(maps(PYRAMID, 64, 64))
    loss = loss_of(decoder, output, torch.full((2, 64, 64), 255))
    sum(loss.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in decoder.parameters())
    assert decoder.network.classify.weight.grad.abs().sum() > 0
    nothing = [
        nn.functional.cross_entropy(c.transpose(1, 2), torch.full((2, QUERIES), CLASSES)) for c in output.extra.classes
    ]
    assert loss["class"].item() == pytest.approx(2 * sum(nothing).item(), rel=1e-5)
    assert loss["mask"] == loss["dice"] == 0


def test_it_trains_under_autocast_with_scores_and_loss_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, features = build(), maps(PYRAMID, 64, 64)
    costs: list[torch.dtype] = []

    def watched(masks: Tensor, labels: Tensor, cost: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        found = cost(masks, labels)
        costs.append(found.dtype)
        return found

    for name in ("pair_wise_sigmoid_cross_entropy_loss", "pair_wise_dice_loss"):
        monkeypatch.setattr(mask2former, name, partial(watched, cost=getattr(mask2former, name)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = decoder(features)
        loss = loss_of(decoder, output, bands(64, 64))
    sum(loss.values()).backward()
    assert output.extra.masks[-1].dtype == torch.bfloat16
    assert costs == [torch.float32] * (2 * LAYERS * 2)
    assert all(term.dtype == torch.float32 and term.isfinite() for term in loss.values())
    assert all(p.grad.isfinite().all() for p in decoder.parameters())
    alone = loss_of(decoder, output, bands(64, 64))
    assert [loss[name].item() for name in NAMES] == [alone[name].item() for name in NAMES]
    assert output.logits.dtype == torch.float32


def test_places_are_sampled_in_single_precision_under_autocast() -> None:
    decoder, features = build(), maps(PYRAMID, 64, 64)
    pixels: list[Tensor] = []
    decoder.network.pixel_decoder.register_forward_hook(lambda *args: pixels.append(args[2].mask_features))
    with torch.no_grad():
        decoder(features)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            decoder(replace(features, levels=tuple(level.bfloat16().float() for level in features.levels)))
            decoder(replace(features, levels=tuple(level.bfloat16() for level in features.levels)))
    assert pixels[1].dtype == torch.float32
    assert torch.equal(pixels[1], pixels[2])
    assert torch.allclose(pixels[0], pixels[1], atol=0.05)
