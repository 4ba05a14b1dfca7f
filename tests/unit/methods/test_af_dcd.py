"""Af-DCD: reconstruction from a masked map, and the contrast of channel groups inside small patches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kdbench.methods.af_dcd import AfDCD, AfDCDConfig, dense_contrast, patches
from torch import Tensor, nn


def contrast_by_loops(
    student: np.ndarray, teacher: np.ndarray, groups: int, pool: int, patch: tuple[int, int]
) -> float:
    """The contrast in float64, one vector after the other: pool, cut, and compare inside a patch."""

    def pooled(map_: np.ndarray) -> np.ndarray:
        batch, channels, height, width = map_.shape
        blocks = map_[:, :, : height // pool * pool, : width // pool * pool]
        return blocks.reshape(batch, channels, height // pool, pool, width // pool, pool).max((3, 5))

    ours, theirs = pooled(student.astype(np.float64)), pooled(teacher.astype(np.float64))
    batch, channels, height, width = ours.shape
    size, losses = channels // groups, []
    for b in range(batch):
        for top in range(0, height - patch[0] + 1, patch[0]):
            for left in range(0, width - patch[1] + 1, patch[1]):
                inside = [(top + y, left + x) for y in range(patch[0]) for x in range(patch[1])]
                places = [(*place, m) for place in inside for m in range(groups)]

                def vector(map_: np.ndarray, y: int, x: int, m: int, b: int = b) -> np.ndarray:
                    return map_[b, m * size : (m + 1) * size, y, x]

                for anchor in places:
                    score = {}
                    for other in places:
                        if other == anchor or other[2] != anchor[2]:
                            score[other] = -np.abs(vector(ours, *anchor) - vector(theirs, *other)).sum() / 0.07
                    top_score = max(score.values())
                    total = sum(math.exp(value - top_score) for value in score.values())
                    losses.append(top_score + math.log(total) - score[anchor])
    return float(np.mean(losses))


@pytest.fixture
def plain(make_pair):
    """A method of equal widths whose generator passes its input on, so that R is the masked student map."""

    def make(width: int = 4, **config: float) -> AfDCD:
        method = AfDCD(AfDCDConfig(**config), make_pair(width, width))
        method.generator = nn.Identity()
        return method

    return make


@pytest.fixture
def distil(make_batch, fake):
    """The method's terms without the task's."""

    def run(method: AfDCD, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        logits = torch.zeros(len(student), 4, 2, 2)
        terms = method.loss(make_batch(len(student)), fake(logits, student), fake(logits, teacher))
        terms.pop("task")
        return terms

    return run


@pytest.mark.parametrize(("grid", "pool", "patch"), [((16, 18), 4, (4, 4)), ((8, 12), 2, (4, 4)), ((3, 9), 1, (3, 4))])
def test_contrast_equals_a_loop_over_vectors(grid: tuple[int, int], pool: int, patch: tuple[int, int], random) -> None:
    # Close maps, because far ones leave a hard margin in which most vectors have no share.
    student, teacher = 0.1 * random(2, 4, *grid), 0.1 * random(2, 4, *grid)
    expected = contrast_by_loops(student.numpy(), teacher.numpy(), 2, pool, patch)
    assert dense_contrast(student, teacher, 2, 0.07).item() == pytest.approx(expected, rel=1e-5)


def test_each_vector_has_240_negatives() -> None:
    # Where all scores are equal, the loss is the logarithm of the candidates.
    zero = torch.zeros(1, 32, 16, 16)
    assert dense_contrast(zero, zero, 16, 0.07).item() == pytest.approx(math.log(241), rel=1e-6)


@pytest.mark.parametrize(
    ("grid", "count", "positions"),
    [((32, 32), 4, 16), ((16, 48), 3, 16), ((8, 16), 2, 16), ((4, 8), 2, 16), ((37, 37), 4, 16), ((3, 9), 2, 12)],
)
def test_pool_and_patch_suit_the_grid(grid: tuple[int, int], count: int, positions: int, random) -> None:
    assert patches(random(1, 8, *grid), groups=4).shape == (count, 4 * positions, 2)


@pytest.mark.parametrize(("width", "groups"), [(384, 16), (24, 12), (10, 10), (17, 1)])
def test_groups_divide_the_teachers_width(width: int, groups: int, make_pair) -> None:
    assert AfDCD(AfDCDConfig(), make_pair(3, width)).groups == groups


def test_reconstruction_is_the_mean_squared_error_of_the_masked_map(plain, distil, random) -> None:
    method, student, teacher = plain(), random(2, 4, 5, 6), random(2, 4, 5, 6)
    torch.manual_seed(0)
    kept = (torch.rand(2, 1, 5, 6) <= 0.25).double().numpy()
    error = student.double().numpy() * kept - teacher.double().numpy()
    torch.manual_seed(0)
    value = distil(method, student, teacher)["reconstruction"]
    assert value.item() == pytest.approx(33.6 * (error**2).sum() / (2 * 4 * 5 * 6), rel=1e-5)


def test_three_quarters_of_the_positions_are_hidden_in_all_channels(plain, distil) -> None:
    method = plain(reconstruction=1)
    seen: list[Tensor] = []
    method.generator.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    distil(method, torch.ones(2, 4, 64, 64), torch.zeros(2, 4, 64, 64))
    (masked,) = seen
    assert torch.equal(masked, masked[:, :1].expand_as(masked))
    # 8192 draws of a quarter: a standard deviation of 0.005.
    assert masked.mean().item() == pytest.approx(0.25, abs=0.03)


def test_the_student_is_resized_to_the_teachers_grid(plain, distil, random, bilinear) -> None:
    student, teacher = random(1, 4, 2, 3), random(1, 4, 4, 6)
    error = bilinear(student.numpy(), (4, 6)) - teacher.double().numpy()
    value = distil(plain(mask_ratio=0), student, teacher)["reconstruction"]
    assert value.item() == pytest.approx(33.6 * (error**2).mean(), rel=1e-5)


def test_logits_are_distilled_too(plain, make_batch, fake, random) -> None:
    map_, ours, theirs = random(2, 4, 4, 4), random(2, 4, 3, 5), random(2, 4, 3, 5)
    terms = plain(kd=2).loss(make_batch(), fake(ours, map_), fake(theirs, map_))
    p, q = theirs.double().softmax(1), ours.double().softmax(1)
    assert terms["logit_kd"].item() == pytest.approx(2 * (p * (p / q).log()).sum(1).mean().item(), rel=1e-5)
