"""Costs of rows, against sums by hand; the Pareto front, against its definition; amounts as displayed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from kdbench.records import Record, StageResult
from kdbench.report.costs import Cost, mean_cost, pareto
from kdbench.units import amount


def stage(name: str, passes: int, flops: int | None) -> StageResult:
    return StageResult(
        name=name, phase="task", key="k", data={}, steps=10, images=80, student_forwards=passes, flops=flops, losses={}
    )


def record(make_record: Callable[..., Record], *stages: StageResult, seconds: float, **run: object) -> Record:
    made = make_record(stages=list(stages))
    assert made.result is not None
    made.result.inference_flops = 7
    made.run.stage_seconds = {each.name: seconds for each in stages}
    return made.model_copy(update={"run": made.run.model_copy(update=run)})


def test_costs_are_sums_over_stages_and_means_over_seeds(make_record: Callable[..., Record]) -> None:
    seeds = [
        record(make_record, stage("a", 160, 1000), stage("b", 80, 500), seconds=3, latency_ms=2.0,
               stage_memory_mb={"a": 10.0, "b": 30.0}),
        record(make_record, stage("a", 160, 3000), stage("b", 80, 500), seconds=5, latency_ms=4.0,
               stage_memory_mb={"a": 20.0, "b": 10.0}),
    ]  # fmt: skip
    assert mean_cost(seeds) == Cost(
        images=160, passes=240, flops=2500, seconds=8, memory_mb=25, inference_flops=7, latency_ms=3
    )


def test_what_one_seed_or_one_stage_lacks_has_no_mean(make_record: Callable[..., Record]) -> None:
    whole = record(make_record, stage("a", 160, 1000), seconds=3, latency_ms=2.0, stage_memory_mb={"a": 10.0})
    part = record(make_record, stage("a", 160, 1000), stage("b", 80, None), seconds=3, stage_memory_mb={"a": 10.0})
    cost = mean_cost([whole, part])
    assert (cost.flops, cost.memory_mb, cost.latency_ms) == (None, None, None)
    assert cost.passes == 200


@dataclass(frozen=True)
class Named:
    method: str
    mean: float | None
    cost: Cost


def test_the_front_holds_whom_nobody_beats_in_both() -> None:
    rows = [
        Named("cheap", 20.0, Cost(flops=1)),
        Named("dominated", 19.0, Cost(flops=2)),
        Named("equal cost, worse", 24.0, Cost(flops=5)),
        Named("best", 25.0, Cost(flops=5)),
        Named("twin of the best", 25.0, Cost(flops=5)),
        Named("dear", 25.0, Cost(flops=9)),
        Named("unknown cost", 99.0, Cost()),
        Named("no score", None, Cost(flops=0)),
    ]
    assert pareto(rows) == {"cheap", "best", "twin of the best"}


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (12.0, "12 B"),
        (3.25e12, "3.25 TB"),
        (1e22, "10 ZB"),
        (999.0, "999 B"),
        (0.0067, "6.7 mB"),
        (0.0, "0 B"),
        (999.6e9, "1 TB"),
        (0.9996, "1 B"),
    ],
)
def test_amounts_have_prefixes(number: float, text: str) -> None:
    assert amount(number, "B") == text
