"""Figures: every dot, line and cell stands where the frames say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from kdbench.records import StageResult
from kdbench.report import figures
from kdbench.report.frame import Entry, loss_frame, to_frame

ROLES = pd.Series({"teacher": "teacher", "plain": "undistilled", "kd": "distilled", "cwd": "distilled"})
SCORES = pd.DataFrame({0: [40.0, 30.0, 34.0, 28.0], 1: [41.0, 30.0, 38.0, np.nan]}, ROLES.index)


def test_dots_stand_at_means_with_deviations_over_seeds() -> None:
    (axes,) = figures.score_dots({"g2c": SCORES}, ROLES, "plain").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(ROLES.index)
    found = {}
    for container in axes.containers:
        line, _, (bars,) = container.lines
        for x, y, bar in zip(line.get_xdata(), line.get_ydata(), bars.get_segments(), strict=True):
            found[ROLES.index[y]] = (x, np.ptp(bar[:, 0]) / 2)
    assert found == {
        "teacher": (40.5, pytest.approx(0.5**0.5)), "plain": (30, 0), "kd": (36, pytest.approx(8**0.5)), "cwd": (28, 0)
    }  # fmt: skip
    seeds, vertical = axes.lines[:2], [line for line in axes.lines if list(line.get_ydata()) == [0, 1]]
    assert sorted(x for line in seeds for x in line.get_xdata() if x == x) == [28, 30, 30, 34, 38, 40, 41]
    assert [line.get_xdata()[0] for line in vertical] == [30]


def test_the_heat_map_shows_differences_below_the_baselines_own() -> None:
    iou = pd.DataFrame({"road": [50.0, 58.0, 20.0], "sky": [30.0, np.nan, 31.0]}, ["plain", "kd", "cwd"])
    own, more, _ = figures.class_heat_map(iou, "plain").axes
    assert [text.get_text() for text in own.texts] == ["50", "30"]
    values = np.ma.filled(more.collections[0].get_array(), np.nan)
    np.testing.assert_allclose(values, [[8, np.nan], [-30, 1]])
    assert [label.get_text() for label in more.get_yticklabels()] == ["kd", "cwd"]


@pytest.mark.parametrize(("labels", "baseline"), [(["kd", "cwd"], None), (["plain"], "plain")])
def test_the_heat_map_shows_iou_where_nothing_can_be_compared(labels: list[str], baseline: str | None) -> None:
    iou = pd.DataFrame({"road": [50.0] * len(labels), "sky": [30.0] * len(labels)}, labels)
    axes, _ = figures.class_heat_map(iou, baseline).axes
    assert axes.collections[0].get_array().tolist() == [[50.0, 30.0]] * len(labels)


def rows(flops: list[float]) -> pd.DataFrame:
    """A board's rows whose students have these operations and were all ranked."""
    return pd.DataFrame(
        {
            "role": ROLES,
            "mean": [40.0, 30.0, 34.0, 28.0],
            "ranked": [False, True, True, True],
            "train_flops": [9e12, *flops],
            "student_forwards": [0, 1000, 2000, 4000],
        },
        ROLES.index,
    )


@pytest.mark.parametrize(
    ("flops", "name", "costs"),
    [
        ([1e12, 2e12, 3e12], "train_flops", {"plain": 1e12, "kd": 2e12, "cwd": 3e12}),
        ([np.nan, 2e12, 3e12], "student_forwards", {"plain": 1000, "kd": 2000, "cwd": 4000}),
    ],
)
def test_costs_are_operations_unless_more_students_know_their_images(
    flops: list[float], name: str, costs: dict[str, float]
) -> None:
    found = figures.training_costs(rows(flops))
    assert found.to_dict() == costs
    assert found.name == name


def test_the_scatter_names_the_front_and_the_undistilled_student() -> None:
    board = rows([3e12, 2e12, 4e12])
    (axes,) = figures.cost_scatter(board, figures.training_costs(board)).axes
    assert sorted(axes.collections[0].get_offsets().tolist()) == [[2e12, 34], [3e12, 30], [4e12, 28]]
    assert {text.get_text() for text in axes.texts} == {"plain", "kd"}
    front, teacher = axes.lines
    assert front.get_xydata().tolist() == [[2e12, 34]]
    assert teacher.get_ydata()[0] == 40
    assert axes.get_xscale() == "log"
    assert axes.get_xticklabels()[0].get_text() == "2 TFLOP"


def test_of_the_snapshot_curves_references_and_the_best_have_colours() -> None:
    methods = ["teacher", "plain", *(f"m{k}" for k in range(9))]
    roles = pd.Series(["teacher", "undistilled", *["distilled"] * 9], methods)
    index = pd.MultiIndex.from_product([methods, ["target", "source"]], names=["method", "role"])
    curves = pd.DataFrame(np.arange(66.0).reshape(22, 3), index, [1, 2, 3])
    for axes, role in zip(figures.snapshot_curves(curves, roles).axes, ("target", "source"), strict=True):
        drawn = sorted(line.get_ydata().tolist() for line in axes.lines)
        assert drawn == curves.xs(role, level="role").to_numpy().tolist()
        named = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
        assert list(named) == methods[: 2 + len(figures.BEST)]
        assert len({to_hex(line.get_color()) for line in named.values()}) == len(named)
        assert named["m0"].get_ydata().tolist() == curves.loc[("m0", role)].tolist()


def test_losses_stand_one_stage_after_the_other_without_zeros(make_record: Callable[..., Any]) -> None:
    def stage(name: str, **losses: list[float]) -> StageResult:
        about = {"phase": "task", "key": "0", "data": {}, "steps": 9, "images": 9, "student_forwards": 9}
        return StageResult(name=name, losses=losses, **about)

    records = [
        make_record(
            method=method, seed=seed, stages=[stage("source", kd=[6.0 + seed, 4.0]), stage("again", task=[2.0, 0.0])]
        )
        for method in ("kd", "cwd")
        for seed in (1, 3)
    ]
    panels = figures.loss_curves(loss_frame(to_frame(map(Entry, records))), ["cwd", "kd", "none"]).axes
    assert [axes.get_title() for axes in panels] == ["cwd", "kd"]
    curves = {line.get_label(): line.get_xydata().tolist() for line in panels[1].lines[:2]}
    known = {label: [point for point in curve if point[1] > 0] for label, curve in curves.items()}
    assert known == {"kd": [[1, 8], [2, 4]], "task": [[11, 2]]}
    assert {text.get_text() for text in panels[1].texts} == {"source", "again"}


def drawing(title: str) -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.subplots().set_title(title)
    return figure


def test_an_svg_takes_any_name_and_has_the_same_bytes_every_time() -> None:
    text = figures.to_svg(drawing("<b>$a$ & b")).decode()
    assert "&lt;b&gt;$a$ &amp; b" in text
    assert figures.to_svg(drawing("x")) == figures.to_svg(drawing("x"))


def test_long_names_keep_both_ends() -> None:
    assert figures.short("method") == "method"
    assert figures.short("method[temperature=4,weight=0.5,layers=3]") == "method[temperat…=0.5,layers=3]"
