"""Knowledge review: fused student levels against the teacher's, at several scales."""

from __future__ import annotations

import math

import numpy as np
import pytest
from closed_forms import array, batch_norm, convolve, roughen
from kdbench.methods.review_kd import Fusion, ReviewKD, ReviewKDConfig, convolution

from kdbench.types import FeatureSpec, PairSpec

METHOD = ReviewKD


def nearest(map_: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    rows, columns = ([i * old // new for i in range(new)] for old, new in zip(map_.shape[-2:], size, strict=True))
    return map_[:, :, rows][:, :, :, columns]


def review(fusions: list[Fusion], student: list[np.ndarray], sizes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """What is compared with the teacher, deepest first."""
    results, residual = [], None
    for fusion, map_, size in zip(fusions, student[::-1], sizes[::-1], strict=True):
        e = batch_norm(convolve(map_, fusion.reduce[0]), fusion.reduce[1])
        if residual is not None:
            y = nearest(residual, e.shape[-2:])
            gates = 1 / (1 + np.exp(-convolve(np.concatenate((e, y), 1), fusion.attention)))
            e = e * gates[:, :1] + y * gates[:, 1:]
        residual = nearest(e, size)
        results.append(batch_norm(convolve(residual, fusion.expand[0]), fusion.expand[1]))
    return results


def windows(length: int, side: int) -> list[slice]:
    return [slice(i * length // side, math.ceil((i + 1) * length / side)) for i in range(side)]


def error_of_a_level(difference: np.ndarray) -> float:
    """Mean of the squares at four scales, weighed 1, 1/2, 1/4 and 1/8; sizes that do not fit are left out."""
    height, width = difference.shape[-2:]
    errors = [(difference**2).mean()]
    for side in (4, 2, 1):
        if side < min(height, width):
            cells = [difference[:, :, y, x].mean((2, 3)) for y in windows(height, side) for x in windows(width, side)]
            errors.append(np.square(cells).mean())
    return float(np.average(errors, weights=0.5 ** np.arange(len(errors))))


@pytest.mark.parametrize(
    ("student_grids", "teacher_grids"),
    [
        ([(8, 12), (4, 6), (2, 3)], [(8, 12), (4, 6), (2, 3)]),
        ([(4, 8)] * 3, [(4, 8)] * 3),
        ([(8, 8), (6, 6), (3, 4)], [(4, 8), (5, 8), (6, 8)]),
    ],
)
def test_value_is_a_review_written_out(student_grids, teacher_grids, distil, random) -> None:
    # Other widths at each level, and a teacher with a level more.
    pair = PairSpec(
        FeatureSpec((2, 5, 6, 7), (4, 8, 16, 32), 7, 32, class_token=True),
        FeatureSpec((3, 4, 6), (8, 16, 32), 6, 32, class_token=False, convolutional=True),
        4,
    )
    method = roughen(ReviewKD(ReviewKDConfig(weight=3), pair))
    student = [random(2, width, *grid) for width, grid in zip((3, 4, 6), student_grids, strict=True)]
    teacher = [random(2, width, *grid) for width, grid in zip((5, 6, 7), teacher_grids, strict=True)]
    reviewed = review(list(method.fusions), [array(map_) for map_ in student], teacher_grids)
    expected = 3 * sum(error_of_a_level(a - array(b)) for a, b in zip(reviewed, teacher[::-1], strict=True))
    value = distil(method, student, [random(2, 2, 9, 9), *teacher])
    assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("warm_up", "progress", "share"), [(0.2, 0.0, 0.0), (0.2, 0.1, 0.5), (0.2, 0.2, 1.0), (0.2, 1.0, 1.0), (0, 0.0, 1)]
)
def test_the_weight_grows_linearly_to_its_full_height(
    warm_up: float, progress: float, share: float, make_pair, distil, random
) -> None:
    method = ReviewKD(ReviewKDConfig(warm_up=warm_up), make_pair(3, 5))
    maps = [random(2, 3, 4, 8)], [random(2, 5, 4, 8)]
    full = distil(method, *maps, progress=0.5).item()
    assert distil(method, *maps, progress=progress).item() == pytest.approx(share * full, rel=1e-6)


@pytest.mark.parametrize("side", [1, 3])
def test_convolutions_are_drawn_as_in_mdistiller(side: int) -> None:
    # Kaiming's uniform with a = 1: the bound is the root of 6 / (1 + a^2) over the inputs of an output.
    layer, _ = convolution(200, 100, side)
    bound = math.sqrt(3 / (200 * side * side))
    assert layer.weight.abs().max().item() == pytest.approx(bound, rel=1e-2)
    assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=2e-2)


@pytest.mark.parametrize(("width", "middle"), [(6, 6), (700, 512)])
def test_the_middle_width_is_the_students_deepest_up_to_512(width: int, middle: int, make_pair) -> None:
    (fusion,) = ReviewKD(ReviewKDConfig(), make_pair(width, 5)).fusions
    assert fusion.reduce[0].out_channels == middle
