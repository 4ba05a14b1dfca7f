"""Knowledge review: fused student levels against the teacher's, at several scales."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kdbench.methods.review_kd import Fusion, ReviewKD, ReviewKDConfig, convolution, hierarchical_error
from torch import Tensor, nn

from kdbench.types import FeatureSpec, PairSpec


def nearest(map_: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    rows, columns = ([i * old // new for i in range(new)] for old, new in zip(map_.shape[-2:], size, strict=True))
    return map_[:, :, rows][:, :, :, columns]


def convolved_and_normed(map_: np.ndarray, block: nn.Sequential) -> np.ndarray:
    """A convolution with zeros around, then batch norm by the batch's own statistics, in float64."""
    weight = block[0].weight.detach().double().numpy()
    pad, (height, width) = weight.shape[-1] // 2, map_.shape[-2:]
    padded = np.pad(map_, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    out = sum(
        np.einsum("oc,bchw->bohw", weight[:, :, y, x], padded[:, :, y : y + height, x : x + width])
        for y in range(2 * pad + 1)
        for x in range(2 * pad + 1)
    )
    mean, variance = out.mean((0, 2, 3), keepdims=True), out.var((0, 2, 3), keepdims=True)
    gain, shift = (p.detach().double().numpy()[:, None, None] for p in block[1].parameters())
    return (out - mean) / np.sqrt(variance + 1e-5) * gain + shift


def review(fusions: list[Fusion], student: list[np.ndarray], sizes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """What is compared with the teacher, deepest first."""
    results, residual = [], None
    for fusion, map_, size in zip(fusions, student[::-1], sizes[::-1], strict=True):
        e = convolved_and_normed(map_, fusion.reduce)
        if residual is not None:
            y = nearest(residual, e.shape[-2:])
            weight, bias = (p.detach().double().numpy() for p in fusion.attention.parameters())
            scores = np.einsum("oc,bchw->bohw", weight[:, :, 0, 0], np.concatenate((e, y), 1)) + bias[:, None, None]
            gates = 1 / (1 + np.exp(-scores))
            e = e * gates[:, :1] + y * gates[:, 1:]
        residual = nearest(e, size)
        results.append(convolved_and_normed(residual, fusion.expand))
    return results


def pooled(map_: np.ndarray, side: int) -> np.ndarray:
    out = np.zeros((*map_.shape[:2], side, side))
    height, width = map_.shape[-2:]
    for y in range(side):
        for x in range(side):
            rows = slice(y * height // side, math.ceil((y + 1) * height / side))
            columns = slice(x * width // side, math.ceil((x + 1) * width / side))
            out[:, :, y, x] = map_[:, :, rows, columns].mean((2, 3))
    return out


def error_of_a_level(ours: np.ndarray, theirs: np.ndarray) -> float:
    total, weight, weights = ((ours - theirs) ** 2).mean(), 1.0, 1.0
    for side in (4, 2, 1):
        if side < min(ours.shape[-2:]):
            weight /= 2
            total += weight * ((pooled(ours, side) - pooled(theirs, side)) ** 2).mean()
            weights += weight
    return total / weights


def uneven_pair() -> PairSpec:
    """Other widths at each level, and a teacher with a level more."""
    return PairSpec(
        FeatureSpec((2, 5, 6, 7), (4, 8, 16, 32), 7, 32, class_token=True),
        FeatureSpec((3, 4, 6), (8, 16, 32), 6, 32, class_token=False, convolutional=True),
        4,
    )


@pytest.fixture
def distil(make_batch, fake):
    """The distillation term alone, of a method and maps by level; late in the stage."""

    def run(
        method: ReviewKD, student: list[Tensor], teacher: list[Tensor], progress: float = 0.5, label: int = 0
    ) -> Tensor:
        logits = torch.zeros(len(student[0]), 4, 2, 2)
        ours, theirs = (fake(logits, maps[-1], levels=maps) for maps in (student, teacher))
        batch = make_batch(len(student[0]), label)
        batch.progress = progress
        terms = method.loss(batch, ours, theirs)
        assert set(terms) == {"task", "review_kd"}
        return terms["review_kd"]

    return run


@pytest.mark.parametrize(
    ("student_grids", "teacher_grids"),
    [
        ([(8, 12), (4, 6), (2, 3)], [(8, 12), (4, 6), (2, 3)]),
        ([(4, 8)] * 3, [(4, 8)] * 3),
        ([(8, 8), (6, 6), (3, 4)], [(4, 8), (5, 8), (6, 8)]),
    ],
)
def test_value_equals_a_review_written_out(student_grids, teacher_grids, distil, random) -> None:
    method = ReviewKD(ReviewKDConfig(weight=3), uneven_pair())
    with torch.no_grad():  # Norms start as the plain ones, which would hide their weights and biases.
        for parameter in method.parameters():
            parameter.add_(0.3 * random(*parameter.shape))
    student = [random(2, width, *grid) for width, grid in zip((3, 4, 6), student_grids, strict=True)]
    teacher = [random(2, width, *grid) for width, grid in zip((5, 6, 7), teacher_grids, strict=True)]
    reviewed = review(list(method.fusions), [map_.double().numpy() for map_ in student], teacher_grids)
    targets = [map_.double().numpy() for map_ in teacher[::-1]]
    expected = 3 * sum(error_of_a_level(*pair) for pair in zip(reviewed, targets, strict=True))
    value = distil(method, student, [random(2, 2, 9, 9), *teacher])
    assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("grid", "weights"), [((8, 16), 1.875), ((16, 8), 1.875), ((4, 8), 1.75), ((2, 4), 1.5)])
def test_a_difference_that_pooling_takes_out_is_divided_by_the_weights_of_all_scales(
    grid: tuple[int, int], weights: float
) -> None:
    checkers = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(grid[0] // 2, grid[1] // 2).expand(2, 3, *grid)
    assert hierarchical_error(checkers, torch.zeros(2, 3, *grid)).item() == pytest.approx(1 / weights, rel=1e-6)


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (0.1, 0.5), (0.2, 1.0), (1.0, 1.0)])
def test_the_weight_grows_linearly_to_its_full_height(progress: float, share: float, make_pair, distil, random) -> None:
    method = ReviewKD(ReviewKDConfig(warm_up=0.2), make_pair(3, 5))
    maps = [random(2, 3, 4, 8)], [random(2, 5, 4, 8)]
    full = distil(method, *maps, progress=0.5).item()
    assert distil(method, *maps, progress=progress).item() == pytest.approx(share * full, rel=1e-6)


def test_without_warm_up_the_weight_is_full_at_once(make_pair, distil, random) -> None:
    method = ReviewKD(ReviewKDConfig(warm_up=0), make_pair(3, 5))
    maps = [random(2, 3, 4, 8)], [random(2, 5, 4, 8)]
    assert distil(method, *maps, progress=0.0) == distil(method, *maps, progress=1.0) > 0


@pytest.mark.parametrize("side", [1, 3])
def test_convolutions_are_drawn_as_in_mdistiller(side: int) -> None:
    # Kaiming's uniform with a = 1: the bound is the root of 6 / (1 + a^2) over the inputs of an output.
    layer, _ = convolution(200, 100, side)
    bound = math.sqrt(3 / (200 * side * side))
    assert layer.weight.abs().max().item() == pytest.approx(bound, rel=1e-2)
    assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=2e-2)
    assert layer.bias is None


def test_the_middle_width_is_the_students_deepest_up_to_512() -> None:
    for width, middle in ((6, 6), (700, 512)):
        spec = FeatureSpec((width,), (8,), width, 8, class_token=False)
        (fusion,) = ReviewKD(ReviewKDConfig(), PairSpec(uneven_pair().teacher, spec, 4)).fusions
        assert fusion.reduce[0].out_channels == middle
