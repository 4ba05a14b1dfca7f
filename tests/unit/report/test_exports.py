"""Exports: every number unrounded, null and empty where there is nothing."""

from __future__ import annotations

import io
import json

import pandas
import pytest

from kdbench.report.board import Board, boards
from kdbench.report.entries import Entry
from kdbench.report.exports import to_csv, to_json


@pytest.fixture
def found(make_record) -> list[Board]:
    """Two boards of one pair: a teacher, the undistilled student with five seeds, two methods, one of which failed."""
    records = [make_record({"cityscapes": 55.55}, role="teacher", deployed=3_612_345), make_record(error="stopped")]
    for seed in range(5):
        records.append(make_record({"cityscapes": 20.0 + seed}, method="plain", role="undistilled", seed=seed))
        records.append(make_record({"cityscapes": 24.3 + 1.1 * seed}, method="kd", seed=seed))
        for method, role, value in (("plain", "undistilled", 30.0), ("kd", "distilled", 33.0)):
            targets = {"acdc-night": value, "acdc-snow": value + 20 + seed}
            records.append(
                make_record(targets, {"cityscapes": 70.0}, benchmark="c2a", method=method, role=role, seed=seed)
            )
    return boards(map(Entry, records))


def test_json_holds_what_the_boards_hold(found: list[Board]) -> None:
    content = json.loads(to_json(found))
    board = next(board for board in content["boards"] if board["benchmark"] == "g2c")
    ours = found[1]
    rows = {row["method"]: row for row in board["rows"]}
    row = next(row for row in ours.rows if row.method == "kd")
    assert (rows["kd"]["mean"], rows["kd"]["deviation"]) == (row.mean, row.deviation)
    assert rows["kd"]["by_seed"]["3"] == {"synthetic cityscapes-like": row.by_seed[3][0]}
    assert rows["kd"]["classes"] == dict(zip(ours.classes, row.classes, strict=True))
    assert rows["kd"]["selection"]["oracle"]["points"] == list(row.chosen["oracle"].points)
    difference, test = ours.comparison.to_undistilled["kd"], ours.comparison.to_undistilled["kd"].over_seeds
    assert rows["kd"]["to_undistilled"] == {
        "difference": difference.value,
        "seeds": [0, 1, 2, 3, 4],
        "over_seeds": {"low": test.interval.low, "high": test.interval.high, "df": 4},
        "over_images": None,
        "p": difference.p,
        "verdict": "better",
    }
    assert (rows["kd"]["rank"], rows["plain"]["rank"], rows["teacher"]["rank"]) == (1, 2, None)
    assert board["found"]["undistilled"] == "plain"
    assert board["found"]["resolvable"]["comparisons"] == 1
    assert (rows["gkd"]["mean"], rows["gkd"]["targets"], rows["gkd"]["to_undistilled"]) == (
        None, {"synthetic cityscapes-like": None}, None
    )  # fmt: skip
    assert rows["gkd"]["footnote"] == "failed: stopped"


def test_json_holds_the_summaries(found: list[Board]) -> None:
    (summary,) = json.loads(to_json(found))["summaries"]
    assert summary["sources"] == {"synthetic cityscapes-like": ["c2a"], "synthetic gtav-like": ["g2c"]}
    row = next(row for row in summary["rows"] if row["method"] == "kd")
    means = [next(row.mean for row in board.rows if row.method == "kd") for board in found]
    assert row["mean"] == pytest.approx(sum(means) / 2)
    assert row["to_undistilled"]["verdict"] == "better"


def test_csv_has_a_line_for_every_row(found: list[Board]) -> None:
    table = pandas.read_csv(io.StringIO(to_csv(found)))
    assert len(table) == sum(len(board.rows) for board in found) + 4
    line = table[(table.method == "kd") & (table.benchmark == "g2c")].iloc[0]
    row = next(row for row in found[1].rows if row.method == "kd")
    assert line["mean"] == row.mean
    assert round(row.mean, 1) != row.mean
    assert line["targets: synthetic cityscapes-like"] == row.targets[0]
    assert line["seeds"] == "0 1 2 3 4"
    assert line["to_undistilled: over_seeds: df"] == 4
    assert line["to_undistilled: verdict"] == "better"
    assert line["selection: oracle: points"] == " ".join(map(str, row.chosen["oracle"].points))
    assert pandas.isna(line["targets: synthetic acdc-night-like"])
    teacher = table[table.role == "teacher"].iloc[0]
    assert teacher.parameters == 3_612_345
    assert table[table.title == "average over sources"].benchmark.unique() == ["c2a g2c"]


@pytest.mark.parametrize("export", [to_csv, to_json])
def test_law_9(found: list[Board], export) -> None:
    text = export(found)
    assert "mini:dinov2-l -> mini:resnet50" in text
    assert "resnet50" not in text.replace("mini:resnet50", "")
    assert "cityscapes-like" in text
    for part in ("mini-1a2b3c4d", "synthetic-1", "light"):
        assert part in text


def test_no_boards_are_no_error() -> None:
    assert json.loads(to_json([])) == {"boards": [], "summaries": [], "families": []}
    assert to_csv([]).strip() == ""
