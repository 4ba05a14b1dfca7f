"""PKD: half the squared difference of channels that are standardised over the positions of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from closed_forms import GRID, array, convolve
from kdbench.methods.pkd import PKD, PKDConfig

METHOD = PKD


def mean_correlation(student: np.ndarray, teacher: np.ndarray) -> float:
    """Pearson's correlation of each channel over all positions of all images, mean over channels."""
    channels = zip(np.moveaxis(student, 1, 0), np.moveaxis(teacher, 1, 0), strict=True)
    return float(np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in channels]))


@pytest.mark.parametrize("convolutional", [True, False])
@pytest.mark.parametrize("width", [3, 5])
def test_value_is_one_minus_the_mean_correlation(
    convolutional: bool, width: int, student_grid, make_pair, distil, random, resized
) -> None:
    method = PKD(PKDConfig(), make_pair(width, 5, convolutional))
    student, teacher = random(2, width, *student_grid), random(2, 5, *GRID)
    projected = array(student) if width == 5 else convolve(student, method.projector)
    expected = 10 * 47 / 48 * (1 - mean_correlation(resized(projected), array(teacher)))
    assert distil(method, student, teacher).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("side", [0, 1])
def test_constant_channels_are_left_out(side: int, make_pair, distil, random) -> None:
    maps = [random(2, 5, 3, 4), random(2, 5, 3, 4)]
    maps[side][:, 2] = 7
    expected = distil(PKD(PKDConfig(), make_pair(4, 4)), *(map_[:, [0, 1, 3, 4]] for map_ in maps))
    maps[0].requires_grad_()
    value = distil(PKD(PKDConfig(), make_pair(5, 5)), *maps)
    value.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert maps[0].grad[:, 2].abs().sum() == 0
    assert torch.isfinite(maps[0].grad).all()
