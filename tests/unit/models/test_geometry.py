"""Kernels and positions at another size, against closed forms."""

from __future__ import annotations

import pytest
import torch

from kdbench.models.geometry import PositionRule, resample_kernel, resample_positions


def test_a_plain_resize_changes_the_response_and_a_pseudo_inverse_keeps_it() -> None:
    kernel = torch.rand(3, 3, 14, 14, generator=torch.Generator().manual_seed(0)).double() + 1
    plain, kept = resample_kernel(kernel.float(), 16, "bicubic"), resample_kernel(kernel.float(), 16, "pseudo-inverse")
    assert plain.shape == kept.shape == (3, 3, 16, 16)
    # An image of one colour, whose resized copy is the same: the response is the kernel's sum.
    before = kernel.sum((1, 2, 3))
    assert plain.double().sum((1, 2, 3)) / before == pytest.approx((16 / 14) ** 2, rel=0.01)
    assert kept.double().sum((1, 2, 3)) / before == pytest.approx(1.0, rel=1e-4)


def cubic(x: float, a: float = -0.75) -> float:
    """Keys' kernel (IEEE ASSP 1981)."""
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


@pytest.mark.parametrize(("rule", "factor"), [("plain", 16 / 37), ("offset", 16.1 / 37)])
def test_positions_are_sampled_where_the_rule_says(rule: PositionRule, factor: float) -> None:
    values = torch.rand(37, generator=torch.Generator().manual_seed(0))
    positions = torch.cat((torch.full((1, 1, 1), -9.0), values.repeat(37, 1).reshape(1, 37 * 37, 1)), 1)
    moved = resample_positions(positions, (16, 16), (37, 37), "bicubic", rule)
    assert moved[0, 0] == -9
    row = moved[0, 1:].reshape(16, 16)[8]
    for cell in range(2, 14):
        place = (cell + 0.5) / factor - 0.5
        expected = sum(cubic(place - x) * float(values[x]) for x in range(37))
        assert float(row[cell]) == pytest.approx(expected, abs=1e-5)


def test_antialiased_positions_are_weighted_by_a_cubic_as_wide_as_the_step() -> None:
    values = torch.rand(37, generator=torch.Generator().manual_seed(0))
    positions = values.repeat(37, 1).reshape(1, 37 * 37, 1)
    row = resample_positions(positions, (16, 16), (37, 37), "bicubic", "antialiased")[0].reshape(16, 16)[8]
    for cell in range(3, 13):
        # Pillow's cubic, a = -1/2, stretched over 37 / 16 cells.
        place = (cell + 0.5) * 37 / 16 - 0.5
        weights = [cubic((place - x) * 16 / 37, -0.5) for x in range(37)]
        expected = sum(w * float(v) for w, v in zip(weights, values, strict=True)) / sum(weights)
        assert float(row[cell]) == pytest.approx(expected, abs=1e-5)


def test_equal_sizes_are_left_alone() -> None:
    kernel, positions = torch.rand(2, 3, 8, 8), torch.rand(1, 5, 2)
    for how in ("bicubic", "pseudo-inverse"):
        assert resample_kernel(kernel, 8, how) is kernel
        assert resample_positions(positions, (2, 2), (2, 2), how) is positions
