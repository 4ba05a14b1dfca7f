"""Similarity-preserving distillation: squared error between row-normalised similarities of a batch's images."""

from __future__ import annotations

import pytest
from closed_forms import array, unit
from kdbench.methods.sp import SP

METHOD = SP


@pytest.mark.parametrize("grid", [(2, 4), (3, 5)])
def test_value_is_the_distance_of_rows_of_similarities(grid: tuple[int, int], distil, random) -> None:
    # At the batch of its source, the weight of its source on a mean over all entries.
    student, teacher = random(64, 3, *grid), random(64, 7, 2, 4) + 1
    flat = (array(map_).reshape(64, -1) for map_ in (student, teacher))
    ours, theirs = (unit(images @ images.T) for images in flat)
    expected = 3000 * ((ours - theirs) ** 2).mean()
    assert distil(student, teacher).item() == pytest.approx(expected, rel=1e-4)
