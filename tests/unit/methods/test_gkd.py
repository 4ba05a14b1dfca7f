"""GKD: the attention head, its three losses, the masking rule and the stages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from closed_forms import GRID, array, norm_and_map, roughen, rows
from kdbench.methods.gkd import GKD, GKDConfig
from pydantic import ValidationError
from scipy.special import softmax

from kdbench.conformance import make_batch as make_conformance_batch
from kdbench.conformance import make_bench
from kdbench.models.registry import parse_pair
from kdbench.plugins import load_method
from kdbench.types import Part

METHOD = GKD


@pytest.fixture
def sides(fake, random, student_grid):
    """A student and a teacher; the maps behind the patch term are masked for the first half of the images."""
    student = fake(random(4, 4, 4, 4), random(4, 3, *student_grid), random(4, 3), random(4, 3, *student_grid))
    return student, fake(None, random(4, 5, *GRID), random(4, 5))


def head(module: torch.nn.Module, student: np.ndarray, teacher: np.ndarray, match: str, values: str) -> np.ndarray:
    """softmax(q k^T) v: queries and values from the student, keys are the teacher; or a map of each token alone."""
    gathered = teacher if values == "teacher" else norm_and_map(student, module.value)
    if match == "mse":
        return gathered
    scores = norm_and_map(student, module.query) @ teacher.swapaxes(1, 2)
    return softmax(scores / 5**0.5 if match == "scaled" else scores, 2) @ gathered


@pytest.mark.parametrize(
    ("match", "values"), [("qsd", "student"), ("scaled", "student"), ("mse", "student"), ("qsd", "teacher")]
)
def test_losses_are_errors_of_the_heads(match: str, values: str, sides, make_pair, distil, resized) -> None:
    method = roughen(GKD(GKDConfig(token=2, feature=3, patch=5, match=match, values=values), make_pair()))
    student, teacher = sides
    goal, class_goal = rows(teacher.final), array(teacher.pooled)[:, None]
    seen = torch.cat((student.masked[:2], student.final[2:]))
    class_token = head(method.token_head, array(student.pooled)[:, None], class_goal, match, values)
    features = head(method.feature_head, rows(resized(student.final)), goal, match, values)
    patches = head(method.patch_head, rows(resized(seen)), goal, match, values)
    joined = np.concatenate((class_token - class_goal, features - goal), 1)
    expected = {
        "token": 2 * ((class_token - class_goal) ** 2).mean(),
        "feature": 3 * (joined**2).mean(),
        "patch": 5 * ((patches - goal) ** 2).mean(),
    }
    terms = distil(method, student, teacher)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-4, abs=1e-10)


@pytest.mark.parametrize(("convolutional", "hidden"), [(False, [0, 0, 0, 0, 12, 12]), (True, [12, 12, 0, 0])])
def test_the_student_alone_is_masked_in_one_batch_unless_it_has_batch_norms(
    convolutional: bool, hidden: list[int], make_pair, distil, sides
) -> None:
    distil(GKD(GKDConfig(), make_pair(convolutional=convolutional)), *sides)
    (mask,) = sides[0].masks
    assert mask.shape[1:] == GRID
    assert mask.flatten(1).sum(1).tolist() == hidden
    assert sides[1].masks == []


def test_a_student_without_class_token_is_an_extension_and_without_batch_norms_in_one_batch() -> None:
    method = make_bench(load_method("gkd"), parse_pair("eva02-s:mit-b0")).method
    assert "GKD-CNN: kdbench's extension" in method.footnote
    assert method.stages()[0].student_forwards == 1.5


@pytest.mark.parametrize("pair", ["dinov2-s:deit-s", "eva02-s:mit-b0"])
def test_one_batch_gives_the_losses_and_gradients_of_two_passes(pair: str) -> None:
    bench = make_bench(load_method("gkd"), parse_pair(pair))
    stage = bench.stages()[0]
    batch, grads, values = make_conformance_batch(stage), [], []
    for batch_norms in (False, True):
        spec = bench.method.pair
        bench.method.pair = replace(spec, student=replace(spec.student, batch_norms=batch_norms))
        bench.networks.student.zero_grad()
        terms = bench.losses(stage, batch)
        sum(terms.values()).backward()
        values.append({name: term.item() for name, term in terms.items()})
        grads.append([p.grad for p in bench.networks.student.encoder.parameters() if p.grad is not None])
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    for one, two in zip(*grads, strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("option", "terms", "heads"),
    [
        ("patch", {"token", "feature"}, {"token_head", "feature_head"}),
        ("feature", {"token", "patch"}, {"token_head", "patch_head"}),
        # The class row of the feature term keeps the token's head.
        ("token", {"feature", "patch"}, {"token_head", "feature_head", "patch_head"}),
    ],
)
def test_a_weight_of_zero_leaves_out_a_term_and_what_only_it_needs(
    option: str, terms: set[str], heads: set[str], make_pair, make_batch, sides
) -> None:
    method = GKD(GKDConfig(**{option: 0}), make_pair())
    assert {name for name, _ in method.named_children()} == heads
    assert method.stages()[0].trains == heads | {Part.STUDENT_ENCODER}
    assert method.loss(make_batch(4), *sides).keys() == terms
    assert bool(sides[0].masks) == ("patch" in terms)


def test_without_any_term_nothing_is_built() -> None:
    with pytest.raises(ValidationError, match="token, feature and patch are all 0; set one of them above 0"):
        GKDConfig(token=0, feature=0, patch=0)
