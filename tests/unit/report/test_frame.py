"""The frame: a row per cell, snapshot and domain; what is read, replaced, selected and refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kdbench.errors import KdbenchError
from kdbench.metrics import domain_miou, hits
from kdbench.records import StageResult
from kdbench.report.frame import CELL_COLUMNS, MEASURED_COLUMNS, Entry, load, load_results, loss_frame, to_frame


def stage(name: str, forwards: int, flops: int | None) -> StageResult:
    return StageResult(
        name=name, phase="task", key="k", data={"gtav": "real"}, steps=10, images=80, student_forwards=forwards,
        flops=flops, losses={"task": [2.0, 1.0]},
    )  # fmt: skip


def test_a_row_per_domain_and_snapshot(make_record) -> None:
    record = make_record({"acdc-night": 30.0, "acdc-snow": 50.0}, {"cityscapes": 70.0}, benchmark="c2a", seed=3)
    frame = to_frame([Entry(record)])
    assert list(frame.columns) == [*CELL_COLUMNS, *MEASURED_COLUMNS]
    assert list(frame.domain) == ["acdc-night"] * 4 + ["acdc-snow"] * 4 + ["cityscapes"] * 4
    assert list(frame.snapshot) == [1, 2, 3, 4] * 3
    assert set(frame.cell) == {record.spec.resolved.id}
    assert set(frame.pair) == {"dinov2-l:resnet50"}
    last = frame[frame["last"]]
    assert list(last.domain_role) == ["target", "target", "source"]
    for row, domain in zip(last.itertuples(), record.result.domains, strict=True):
        right = 100 * np.trace(domain.confusion) / domain.confusion.sum()
        assert (row.miou, row.accuracy) == (domain_miou(domain), right)
        assert np.array_equal(row.hits, hits(domain.confusion))
        truth, right = domain.confusion.sum(1), np.diag(domain.confusion)
        union = truth + domain.confusion.sum(0) - right
        iou = [100 * r / u if t else np.nan for t, r, u in zip(truth, right, union, strict=True)]
        assert np.allclose(row.labelled_iou, iou, equal_nan=True)


def test_a_failed_record_is_one_row_without_a_domain(make_record) -> None:
    frame = to_frame([Entry(make_record()), Entry(make_record(error="no memory", seed=1))])
    row = frame.iloc[-1]
    assert (len(frame), row.status, row.error, row["last"], row.snapshot) == (9, "failed", "no memory", True, 0)
    assert pd.isna([row.domain, row.miou, row.train_flops, row.parameters]).all()


def test_costs_are_sums_over_stages_and_unknown_where_one_is(make_record) -> None:
    whole, part = (
        make_record(stages=[stage("a", 160, 1000), stage("b", 80, 500)]),
        make_record(stages=[stage("a", 160, 1000), stage("b", 80, None)], seed=1),
    )
    whole.run.stage_memory_mb = {"a": 10.0, "b": 30.0}
    part.run.stage_memory_mb = {"a": 10.0}
    cells = to_frame([Entry(whole), Entry(part)]).drop_duplicates("cell")
    assert list(cells.train_images) == [160, 160]
    assert list(cells.student_forwards) == [240, 240]
    assert list(cells.train_seconds) == [40.42, 40.42]
    for name, known in (("train_flops", 1500), ("memory_mb", 30)):
        assert cells[name].iloc[0] == known
        assert pd.isna(cells[name].iloc[1])


def test_losses_are_a_row_per_tenth(make_record) -> None:
    losses = loss_frame(to_frame([Entry(make_record(stages=[stage("a", 1, 1), stage("b", 1, 1)]))]))
    assert list(zip(losses.stage, losses.term, losses.tenth, losses.value, strict=True)) == [
        ("a", "task", 1, 2.0), ("a", "task", 2, 1.0), ("b", "task", 1, 2.0), ("b", "task", 2, 1.0)
    ]  # fmt: skip
    assert set(losses.label) == {"gkd"}


def test_a_run_replaces_the_same_cell_of_the_reference(tmp_path: Path, make_record, write) -> None:
    runs, reference = tmp_path / "runs", tmp_path / "reference"
    write(reference, make_record({"cityscapes": 10.0}, method="kd"))
    write(reference, make_record({"cityscapes": 20.0}))
    path = write(runs, make_record({"cityscapes": 30.0}))
    frame = load(runs, reference).frame
    rows = frame[frame["last"] & (frame.domain_role == "target")].set_index("label")
    assert rows.miou.to_dict() == pytest.approx({"kd": 10, "gkd": 30})
    assert rows.reference.to_dict() == {"kd": True, "gkd": False}
    assert rows.path["gkd"] == path


def test_invalid_files_are_reported_and_harm_nothing(tmp_path: Path, make_record, write) -> None:
    write(tmp_path, make_record())
    broken = write(tmp_path, make_record(seed=1))
    broken.write_text("{}", encoding="utf-8")
    frame, (fault,) = load(tmp_path, None)
    assert set(frame.seed) == {0}
    assert str(broken) in fault
    with pytest.warns(UserWarning, match="not a valid record"):
        assert load_results(tmp_path).equals(frame)


@pytest.fixture
def folder(tmp_path: Path, make_record, write) -> Path:
    for pid, name in (("mini-v1", "mini"), ("mini-v1-equal", "mini"), ("smoke-v1", "smoke")):
        for benchmark in ("g2c", "g2b"):
            for student in ("resnet50", "resnet18"):
                write(tmp_path, make_record(protocol=name, protocol_id=pid, benchmark=benchmark, student=student))
            write(tmp_path, make_record(protocol=name, protocol_id=pid, benchmark=benchmark, role="teacher"))
    return tmp_path


@pytest.mark.parametrize(
    ("asked", "column", "held"),
    [
        ({"protocol": "mini"}, "protocol_id", {"mini-v1", "mini-v1-equal"}),
        ({"protocol": "mini-v1"}, "protocol_id", {"mini-v1"}),
        ({"benchmarks": ["g2b"]}, "benchmark", {"g2b"}),
        ({"pairs": ["dinov2-l:resnet18"]}, "pair", {"dinov2-l:resnet18", "dinov2-l"}),
    ],
    ids=["protocol", "protocol id", "benchmark", "pair"],
)
def test_filters(folder: Path, asked: dict, column: str, held: set[str]) -> None:
    assert set(load(folder, None, **asked).frame[column]) == held


def test_a_teacher_comes_only_where_its_pair_was_run(folder: Path, make_record, write) -> None:
    write(folder, make_record(student="mit-b0", protocol_id="mini-v1"))
    frame = load(folder, None, pairs=["dinov2-l:mit-b0"]).frame
    assert set(zip(frame.protocol_id, frame.benchmark, frame.role, strict=True)) == {
        ("mini-v1", "g2c", "teacher"), ("mini-v1", "g2c", "distilled")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"protocol": "minj"}, "'minj' in the records. Did you mean 'mini'"),
        ({"benchmarks": ["g2c", "g2x"]}, "'g2x'.*Known: g2b, g2c"),
        ({"pairs": ["dinov2-l:resnet5"]}, "Did you mean 'dinov2-l:resnet50'"),
    ],
    ids=str,
)
def test_an_unknown_filter_lists_what_the_records_hold(folder: Path, asked: dict, message: str) -> None:
    with pytest.raises(KdbenchError, match=message):
        load(folder, None, **asked)


def test_no_records_at_all_says_where_and_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(KdbenchError) as caught:
        load(tmp_path / "runs", tmp_path / "reference")
    for part in (str(tmp_path / "runs"), str(tmp_path / "reference"), "kdbench run"):
        assert part in str(caught.value)
