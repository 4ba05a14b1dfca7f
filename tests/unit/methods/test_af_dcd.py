"""Af-DCD: reconstruction from a masked map, and the contrast of channel groups inside small patches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from closed_forms import GRID, array, divergence
from kdbench.methods.af_dcd import AfDCD, AfDCDConfig, dense_contrast, patches
from scipy.special import logsumexp
from torch import Tensor, nn

METHOD = AfDCD


def vectors(map_: np.ndarray, groups: int, pool: int, top: int, left: int, patch: tuple[int, int]) -> np.ndarray:
    """Sub-vectors (positions, groups, C / groups) of one patch of a max-pooled image (C, h, w)."""
    channels, height, width = map_.shape
    blocks = map_[:, : height // pool * pool, : width // pool * pool]
    small = blocks.reshape(channels, height // pool, pool, width // pool, pool).max((2, 4))
    inside = small[:, top : top + patch[0], left : left + patch[1]]
    return inside.reshape(groups, channels // groups, -1).transpose(2, 0, 1)


def contrast(student: np.ndarray, teacher: np.ndarray, groups: int, pool: int, patch: tuple[int, int]) -> float:
    """Mean over anchors of log-sum-exp minus the positive, each anchor against other groups of its patch."""
    losses, (height, width) = [], (side // pool for side in student.shape[-2:])
    for ours, theirs in zip(student, teacher, strict=True):
        for top in range(0, height - patch[0] + 1, patch[0]):
            for left in range(0, width - patch[1] + 1, patch[1]):
                a, b = (vectors(map_, groups, pool, top, left, patch) for map_ in (ours, theirs))
                for position, m in np.ndindex(*a.shape[:2]):
                    scores = -np.abs(a[position, m] - b).sum(-1) / 0.07
                    others = np.delete(scores, m, axis=1).ravel()
                    losses.append(logsumexp([scores[position, m], *others]) - scores[position, m])
    return float(np.mean(losses))


@pytest.mark.parametrize(("grid", "pool", "patch"), [((16, 18), 4, (4, 4)), ((8, 12), 2, (4, 4)), ((3, 9), 1, (3, 4))])
def test_contrast_is_a_loop_over_vectors(grid: tuple[int, int], pool: int, patch: tuple[int, int], random) -> None:
    # Close maps, because far ones leave a hard margin in which most vectors have no share.
    student, teacher = 0.1 * random(2, 4, *grid), 0.1 * random(2, 4, *grid)
    expected = contrast(array(student), array(teacher), 2, pool, patch)
    assert dense_contrast(student, teacher, 2, 0.07).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("grid", "count", "positions"),
    [((32, 32), 4, 16), ((16, 48), 3, 16), ((4, 8), 2, 16), ((37, 37), 4, 16), ((3, 9), 2, 12)],
)
def test_pool_and_patch_suit_the_grid(grid: tuple[int, int], count: int, positions: int, random) -> None:
    assert patches(random(1, 8, *grid), groups=4).shape == (count, 4 * positions, 2)


@pytest.mark.parametrize(("width", "groups"), [(384, 16), (24, 12), (10, 10), (17, 1)])
def test_groups_divide_the_teachers_width(width: int, groups: int, make_pair) -> None:
    assert AfDCD(AfDCDConfig(), make_pair(3, width)).groups == groups


@pytest.fixture
def plain(make_pair) -> AfDCD:
    """A method of equal widths whose generator passes its input on."""
    method = AfDCD(AfDCDConfig(kd=2), make_pair(4, 4))
    method.generator = nn.Identity()
    return method


def test_reconstruction_is_the_error_of_the_masked_map_and_logits_are_distilled(
    plain, student_grid, distil, fake, random, resized
) -> None:
    student, teacher = (
        fake(random(2, 4, 3, 5), random(2, 4, *student_grid)),
        fake(random(2, 4, 3, 5), random(2, 4, *GRID)),
    )
    seen: list[Tensor] = []
    plain.generator.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    terms = distil(plain, student, teacher)
    # Which positions were hidden is seen in what the generator got.
    kept = (array(seen[0]) != 0).any(1, keepdims=True)
    assert 0 < kept.sum() < kept.size
    error = resized(student.final) * kept - array(teacher.final)
    assert terms["reconstruction"].item() == pytest.approx(33.6 * (error**2).mean(), rel=1e-5)
    expected = 2 * divergence(student.logits, teacher.logits, axis=1).mean()
    assert terms["logit_kd"].item() == pytest.approx(expected, rel=1e-5)


def test_three_quarters_of_the_positions_are_hidden_in_all_channels(plain, distil, fake) -> None:
    seen: list[Tensor] = []
    plain.generator.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    distil(plain, fake(final=torch.ones(2, 4, 64, 64)), fake(final=torch.zeros(2, 4, 64, 64)))
    (masked,) = seen
    assert torch.equal(masked, masked[:, :1].expand_as(masked))
    # 8192 draws of a quarter: a standard deviation of 0.005.
    assert masked.mean().item() == pytest.approx(0.25, abs=0.03)
