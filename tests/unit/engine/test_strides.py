"""What a record and a dry run say of the sizes of the maps that a loss may compare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.engine.grid import Done
from kdbench.engine.plan import make_plan, strides
from kdbench.engine.preflight import describe
from kdbench.models.geometry import Geometry
from kdbench.records import StageResult, read_record, record_files

UNLIKE = "dinov2-s:mit-b0"


def test_every_encoder_in_play_has_its_strides_as_the_stage_brings_it_to_them(
    plan_cells: Callable[..., tuple],
) -> None:
    context, cells = plan_cells(methods=("logit_kd",), pairs=(UNLIKE,))
    plan = make_plan(context, cells[-1])
    fit, joint = (step.stage for step in plan.stages)
    assert strides(plan.networks, fit) == {"teacher": [8]}
    assert strides(plan.networks, joint) == {"teacher": [8], "student": [4, 8, 16]}
    for segmentor in (plan.networks.teacher, plan.networks.student):
        segmentor.encoder.adapt(Geometry(16, (32, 64), "bicubic"))
    assert strides(plan.networks, joint) == {"teacher": [16], "student": [4, 8, 16]}


def test_records_hold_the_strides_whether_a_stage_is_trained_or_stored(
    run_cells: Callable[..., list[Done]], tmp_path: Path
) -> None:
    cell = {"methods": ("gkd",), "pairs": (UNLIKE,)}
    (trained,), (stored,) = run_cells(**cell), run_cells(**cell, results=tmp_path / "elsewhere")
    both = {"teacher": [8], "student": [4, 8, 16]}
    for done in (trained, stored):
        assert {stage.name: stage.strides for stage in done.record.result.stages} == {
            "proxy": both, "source": both, "task": {"student": [4, 8, 16]}
        }  # fmt: skip
    assert stored.record.run.cached == ["proxy", "source", "task"]


@pytest.mark.parametrize(("pair", "count"), [(UNLIKE, 2), ("dinov2-s:deit-s", 0)])
def test_a_dry_run_tells_maps_that_differ_in_size(
    pair: str, count: int, plan_cells: Callable[..., tuple], tmp_path: Path
) -> None:
    lines = list(describe(*plan_cells(pairs=(pair,), store=tmp_path / "empty")))
    told = [line for line in lines if "strides of the maps: the teacher's 8 and the student's 4, 8, 16; " in line]
    assert len(told) == count
    assert sum("strides" in line for line in lines) == count


def test_an_older_record_has_none() -> None:
    fields = {"name": "a", "phase": "task", "key": "k", "data": {}, "steps": 1, "images": 1, "student_forwards": 1}
    assert StageResult(**fields, losses={}).strides == {}


def test_the_largest_committed_record_has_room_for_them() -> None:
    largest = max(record_files(Path(__file__).parents[3] / "results" / "reference"), key=lambda p: p.stat().st_size)
    record = read_record(largest)
    assert record.result is not None
    for stage in record.result.stages:
        stage.strides = {"teacher": [14], "student": [4, 8, 16, 32]}
    assert len(record.to_json().encode()) < 8192
