"""Proteus: three heads, three squared errors and the masking rule."""

from __future__ import annotations

import numpy as np
import pytest
from closed_forms import GRID, array, maps, norm_and_map, roughen, rows
from kdbench.methods.proteus import Proteus, ProteusConfig

METHOD = Proteus


# Of five images two are masked; an image that comes alone is masked too, and counts in full.
@pytest.mark.parametrize(("images", "masked"), [(5, 2), (1, 1)])
def test_losses_are_errors_of_the_heads(
    images: int, masked: int, student_grid, make_pair, distil, fake, random, resized
) -> None:
    method = roughen(Proteus(ProteusConfig(token=2, feature=3, patch=5), make_pair()))
    student = fake(None, *(random(images, 3, *size) for size in (student_grid, (), student_grid)))
    teacher = fake(None, random(images, 5, *GRID), random(images, 5))
    terms = distil(method, student, teacher)
    # The masked images stand behind the whole ones, in one batch; half of their tokens are hidden.
    (mask,) = student.masks
    assert mask.flatten(1).sum(1).tolist() == [0] * images + [12] * masked
    assert teacher.masks == []
    token = norm_and_map(array(student.pooled), method.token_head) - array(teacher.pooled)
    feature = resized(maps(norm_and_map(rows(student.final), method.feature_head), student_grid)) - array(teacher.final)
    patch = resized(maps(norm_and_map(rows(student.masked), method.patch_head), student_grid)) - array(teacher.final)
    misses = (patch[:masked] ** 2).mean(1)[mask[images:].numpy()]
    expected = {
        "token": 2 * (token**2).mean(),
        "feature": 3 * (np.concatenate((token[:, None], rows(feature)), 1) ** 2).mean(),
        "patch": 5 * misses.mean(),
    }
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-5)


def test_a_student_with_batch_norms_has_two_passes_and_heads_with_a_norm_too(make_pair, distil, fake, random) -> None:
    method = roughen(Proteus(ProteusConfig(), make_pair(convolutional=True)))
    student = fake(None, random(4, 3, *GRID), random(4, 3), random(4, 3, *GRID))
    teacher = fake(None, random(4, 5, *GRID), random(4, 5))
    token = norm_and_map(array(student.pooled), method.token_head) - array(teacher.pooled)
    assert distil(method, student, teacher)["token"].item() == pytest.approx((token**2).mean(), rel=1e-5)
    assert len(student.masks[0]) == 4
    assert method.stages()[0].student_forwards == 2
