"""Budgets of one phase, scaled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from kdbench.errors import KdbenchError
from kdbench.metrics import domain_miou
from kdbench.protocol import MINI
from kdbench.tools.budget_curves import Point, add_point, measure, scaled, write_curves
from kdbench.types import Phase


def test_one_phase_is_scaled_and_the_id_tells() -> None:
    longer = scaled(MINI, Phase.PROXY, 2.0)
    assert longer.recipes[Phase.PROXY].steps == 2 * MINI.recipes[Phase.PROXY].steps
    assert all(longer.recipes[phase] == MINI.recipes[phase] for phase in Phase if phase != Phase.PROXY)
    assert longer.id != MINI.id
    assert scaled(MINI, Phase.TASK, 1.0) == MINI


def test_a_point_is_the_cell_of_that_budget(plan_cells, run_cells) -> None:
    context, cells = plan_cells(methods=("baseline",))
    points = list(measure(context, cells, Phase.TASK, (0.5, 1.0)))
    steps = context.protocol.recipes[Phase.TASK].steps
    assert [point.steps for point in points] == [steps // 2, steps]
    (done,) = run_cells(methods=("baseline",))
    target, source = (domain_miou(domain) for domain in done.record.result.domains)
    assert (points[1].targets, points[1].source) == pytest.approx((target, source))


def test_a_table_grows_and_a_point_measured_again_replaces_its_row(tmp_path: Path) -> None:
    path = tmp_path / "task.csv"
    first, other = Point("gkd", "c2a", 0, 300, 14.1, 20.0), Point("gkd[mse]", "c2a", 0, 300, 18.4, 25.0)
    again = replace(first, targets=15.0)
    for point in (first, other, again):
        table = add_point(path, point)
    assert pd.read_csv(path).equals(table)
    assert table[["method", "targets"]].values.tolist() == [["gkd", 15.0], ["gkd[mse]", 18.4]]


def test_a_method_without_a_stage_in_the_phase_has_no_curve(plan_cells) -> None:
    context, cells = plan_cells(methods=("cwd",))
    with pytest.raises(KdbenchError, match=r"cwd has no stage in the phase proxy\. Its phases: fit_teacher, task"):
        next(measure(context, cells, Phase.PROXY))


def test_curves_of_a_request_are_written(make_spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "__defaults__", ((1.0,),))
    path = write_curves(make_spec(methods=("baseline",)), Phase.TASK, tmp_path / "out")
    assert path.name.endswith("-task-dinov2-s--deit-s.csv")
    assert pd.read_csv(path).method.tolist() == ["baseline"]
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
