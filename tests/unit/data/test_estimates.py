"""Estimates of a dry run on real files: what they count, against sums of their own."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdbench.data.realset import RealSet
from kdbench.engine import estimates
from kdbench.engine.estimates import ATTAINED, matrix_rate, time_of
from kdbench.engine.plan import make_plan
from kdbench.engine.preflight import describe
from kdbench.protocol import PROTOCOLS


def test_a_stage_is_as_long_as_its_reading_or_its_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "seconds_a_view", lambda *_: 0.05)
    step: Any = SimpleNamespace(steps=1000, recipe=SimpleNamespace(batch=8))
    context: Any = SimpleNamespace(workers=4, sharers=lambda recipe: 2)
    taken = time_of(context, step, 1e15, 1e12)
    # Each of two processes reads 4000 views with four workers, and computes half of the operations.
    assert taken.reading == pytest.approx(4000 * 0.05 / 4)
    assert taken.computing == pytest.approx(5e14 / (ATTAINED * 1e12))
    assert taken.whole == taken.computing


def test_the_rate_is_that_of_products(plan_cells: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "MEASURED", 0.05)
    context, _ = plan_cells()
    rate = matrix_rate(context.fabric, "32-true")
    side = estimates.SIDE // 8
    left, times = torch.zeros(side, side), []
    for _ in range(20):
        started = time.perf_counter()
        left @ left
        times.append(time.perf_counter() - started)
    quickest = 2 * side**3 / min(times)
    assert 0.05 * quickest < rate < 3 * quickest


def test_a_dry_run_on_files_says_how_long_and_what_decides(
    plan_cells: Callable[..., Any], trees: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.make("camvid")
    read = RealSet.read
    monkeypatch.setattr(RealSet, "read", lambda self, index: (time.sleep(0.2), read(self, index))[1])
    context, cells = plan_cells(benchmarks=("camvid",), data_root=trees.root, workers=2)
    lines = list(describe(context, cells))
    stages = {step.stage.name: step for step in make_plan(context, cells[0]).stages}
    views = [float(each) for each in re.findall(r"\(([\d.]+) ms a view\)", "\n".join(lines))]
    # The proxy's pictures are drawn; source and task read a file a view.
    assert all(200 <= view < 2000 for view in views)
    assert (len(views), len(stages)) == (2, 3)
    assert "reading takes longer" in lines[-1]
    assert "with 2 workers" in lines[-2]


def test_a_dry_run_in_the_built_in_world_estimates_nothing(plan_cells: Callable[..., Any]) -> None:
    assert not any(" h" in line and "reading" in line for line in describe(*plan_cells()))


def test_paper_lite_is_the_papers_experiment_in_shorter_stages() -> None:
    lite, paper = PROTOCOLS["paper-lite"], PROTOCOLS["paper"]
    changed = {name for name in type(lite).model_fields if getattr(lite, name) != getattr(paper, name)}
    assert changed == {"name", "version", "summary", "decoder", "recipes", "overrides_of", "checkpoint_every"}
    for phase, recipe in lite.recipes.items():
        lengths = {"steps", "epochs", "schedule"}
        assert recipe.model_dump(exclude=lengths) == paper.recipes[phase].model_dump(exclude=lengths)
