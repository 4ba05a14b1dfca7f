"""Every number that can be set counts: another value changes a loss or a stage; weights multiply what they weigh."""

from __future__ import annotations

import copy
import math
from functools import cache

import pytest
import torch
from annotated_types import Ge

from kdbench.conformance import Bench, find_pair, make_batch, make_bench
from kdbench.models.segmentor import seeded
from kdbench.plugins import load_method, method_names

PAIR = "dinov2-b:deit-s"
PROGRESS = 0.001
"""Early enough in a stage for every warm-up."""
ALONG = {"cwd": {"target": "both"}}
"""What puts numbers to use that the defaults leave aside: logits alone have no weight of features."""


@cache
def built(method: str) -> Bench:
    plugin = load_method(method)
    if plugin.missing:
        pytest.skip(f"optional: {plugin.missing}")
    return make_bench(plugin, find_pair(PAIR))


def numbers(method: str) -> dict[str, float]:
    """The numeric options and their defaults, 1 for a weight whose default depends on another option."""
    fields = load_method(method).method.Config.model_fields
    values = {name: 1.0 if field.annotation == float | None else field.default for name, field in fields.items()}
    return {name: value for name, value in values.items() if type(value) in (int, float)}


def weights(method: str) -> dict[str, float]:
    """Those that have no upper limit and may be zero."""
    fields = load_method(method).method.Config.model_fields
    return {
        name: value
        for name, value in numbers(method).items()
        if isinstance(value, float) and fields[name].metadata == [Ge(0)]
    }


def outcome(method: str, **config: float) -> tuple[list[tuple[object, ...]], dict[str, float]]:
    """The stages of a method with these options, and their losses on the same images, from the same weights."""
    networks, made = copy.deepcopy(built(method).networks), built(method).method
    config = made.Config(**ALONG.get(method, {}), **config)
    networks.method = seeded(lambda: type(made)(config, made.pair), "config")
    bench, losses = Bench(networks, networks.method), {}
    for stage in bench.stages():
        batch = make_batch(stage)
        batch.progress = PROGRESS
        with torch.no_grad():
            losses |= {f"{stage.name} {name}": float(value) for name, value in bench.losses(stage, batch).items()}
    assert all(map(math.isfinite, losses.values())), losses
    return [
        (stage.name, stage.phase, stage.trains, stage.budget, stage.student_forwards) for stage in bench.stages()
    ], losses


@pytest.mark.parametrize(
    ("method", "option"), [(method, option) for method in method_names() for option in numbers(method)]
)
def test_another_number_changes_a_loss_or_a_stage(method: str, option: str) -> None:
    value = numbers(method)[option]
    # Half of it is within the limits of every real number, 1 within those of every count.
    other = value / 2 if isinstance(value, float) else 1
    assert outcome(method, **{option: value}) != outcome(method, **{option: other})


@pytest.mark.parametrize("method", [method for method in method_names() if weights(method)])
def test_weights_multiply_what_they_weigh(method: str) -> None:
    once = outcome(method, **weights(method))[1]
    twice = outcome(method, **{name: 2 * value for name, value in weights(method).items()})[1]
    assert once.keys() == twice.keys()
    factors = {name: round(twice[name] / value, 5) for name, value in once.items() if value}
    assert set(factors.values()) <= {1.0, 2.0}, factors
    assert 2.0 in factors.values()
