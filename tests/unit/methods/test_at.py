"""Attention transfer: squared distance between the unit-norm energies of both networks' deepest levels."""

from __future__ import annotations

import pytest
from closed_forms import GRID, rows, unit
from kdbench.methods.at import AT

METHOD = AT


def test_value_is_the_squared_distance_of_unit_energies(student_grid, distil, fake, random, resized) -> None:
    student, teacher = random(3, 3, *student_grid), random(3, 5, *GRID)
    ours, theirs = (unit((rows(map_) ** 2).sum(2)) for map_ in (resized(student), teacher))
    expected = 1e4 / 8192 * ((ours - theirs) ** 2).sum(1).mean()
    # Behind a transformer's last norm, as `final` is, all energies are alike.
    sides = (fake(final=random(*map_.shape), levels=[random(3, 2, 4, 4), map_]) for map_ in (student, teacher))
    assert distil(*sides).item() == pytest.approx(expected, rel=1e-4)
