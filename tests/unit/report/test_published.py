"""Published numbers: the shipped tables, what they are compared with, and when a number is reproduced."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from kdbench.errors import KdbenchError
from kdbench.plugins import load_benchmark
from kdbench.report import ledger
from kdbench.report.board import boards
from kdbench.report.entries import Entry
from kdbench.report.formats import render
from kdbench.report.published import TOLERANCE, Match, Published, choose, match, read_published

REAL = {
    "protocol": "paper",
    "protocol_id": "paper-1",
    "data_source": "real",
    "model_set": "pretrained",
    "student": "deit-b",
}


def number(column: str = "g2c", miou: float = 50.0, **fields: str) -> Published:
    named = {
        "paper": "A et al.", "where": "Table 1", "protocol": "paper", "pair": "dinov2-l:deit-b", "method": "ours",
        "measured_as": "gkd", "note": "",
    } | fields  # fmt: skip
    return Published(**named, column=column, miou=miou)


@pytest.fixture
def measured(make_record):
    """Boards of records of the paper's protocol on real images."""

    def of(*cells: dict) -> list:
        return boards([Entry(make_record(cell.pop("targets"), {}, **(REAL | cell))) for cell in cells])

    return of


def only(found: list[Match]) -> Match:
    (each,) = found
    return each


def test_printed_averages_are_those_of_their_parts() -> None:
    """Which finds a slip of the pen: the paper rounds or cuts off its averages."""
    numbers = read_published()
    lines = {(each.where, each.pair, each.method, each.note) for each in numbers}
    checked = 0
    for line in lines:
        held = {n.column: n.miou for n in numbers if (n.where, n.pair, n.method, n.note) == line}
        for column, value in held.items():
            parts = (
                [held[name] for name in column.split("+")]
                if "+" in column
                else [v for name, v in held.items() if name.startswith(f"{column}/")]
            )
            if parts:
                assert sum(parts) / len(parts) == pytest.approx(value, abs=0.11), (line, column)
                checked += 1
    assert checked == 18 * 3 + 7


def test_what_is_compared_exists_here() -> None:
    for each in read_published():
        if each.measured_as:
            for name in each.benchmarks:
                benchmark = load_benchmark(name)
                assert each.target is None or each.target in {domain.name for domain in benchmark.targets}


def test_vanilla_kd_is_set_beside_no_method() -> None:
    vanilla = [each for each in read_published() if each.method == "vanilla-kd"]
    assert vanilla
    assert {each.measured_as for each in vanilla} == {""}


def test_a_number_with_its_measured_row(measured) -> None:
    cells = [{"targets": {"cityscapes": value}, "seed": seed} for seed, value in enumerate((50.0, 50.5, 51.1))]
    found = only(match([number(miou=50.0)], measured(*cells)))
    assert (found.protocol_id, found.seeds) == ("paper-1", (0, 1, 2))
    assert found.measured == pytest.approx((50 + 50.5 + 51.1) / 3, abs=0.1)
    assert found.gap == pytest.approx(found.measured - 50)
    assert found.deviation == pytest.approx(0.55, abs=0.1)
    assert found.status == "reproduced"


@pytest.mark.parametrize(
    ("published", "status"),
    [
        (50 - TOLERANCE, "reproduced"),
        (50 + TOLERANCE, "reproduced"),
        (51.5, "not reproduced"),
        (48.5, "not reproduced"),
    ],
)
def test_reproduced_is_within_the_tolerance(measured, published: float, status: str) -> None:
    assert only(match([number(miou=published)], measured({"targets": {"cityscapes": 50.0}}))).status == status


@pytest.mark.parametrize(
    "cell",
    [
        {"data_source": "synthetic-1"},
        {"protocol": "mini", "protocol_id": "mini-1"},
        {"protocol_id": "paper-equal-1"},
        {"student": "resnet50"},
        {"method": "kd"},
        {"variant": "warm"},
        {"label_fraction": "1/16"},
        {"benchmark": "c2a"},
    ],
    ids=str,
)
def test_what_is_not_the_same_cell_is_not_compared(measured, cell: dict) -> None:
    found = only(match([number()], measured({"targets": {"cityscapes": 50.0}} | cell)))
    assert (found.status, found.measured, found.gap) == ("not run", None, None)


@pytest.mark.parametrize(
    "other", [{"student": "resnet50"}, {"label_fraction": "1/16"}, {"data_source": "synthetic-1"}], ids=str
)
def test_a_board_that_is_not_compared_takes_nothing_from_one_that_is(measured, other: dict) -> None:
    held = measured({"targets": {"cityscapes": 50.0}}, {"targets": {"cityscapes": 30.0}} | other)
    for boards_in_any_order in (held, held[::-1]):
        assert only(match([number()], boards_in_any_order)).measured == pytest.approx(50)


def test_a_failed_run_measured_nothing(make_record) -> None:
    assert only(match([number()], boards([Entry(make_record(error="stopped", **REAL))]))).status == "not run"


def test_without_a_counterpart_a_number_is_reported(measured) -> None:
    found = only(match([number(measured_as="")], measured({"targets": {"cityscapes": 50.0}, "method": ""})))
    assert (found.status, found.measured) == ("reported", None)


def test_numbers_of_targets_and_over_benchmarks(measured) -> None:
    held = measured(
        {"targets": {"acdc-night": 30.0, "acdc-snow": 50.0}, "benchmark": "c2a"},
        {"targets": {"cityscapes": 40.0}},
        {"targets": {"cityscapes": 99.0}, "seed": 1},
        {"targets": {"bdd100k": 60.0}, "benchmark": "g2b"},
    )
    found = match(
        [number("c2a/acdc-snow"), number("c2a"), number("g2c+g2b"), number("g2c+g2m"), number("c2a/acdc-fog")], held
    )
    assert [each.measured for each in found] == [pytest.approx(50), pytest.approx(40), pytest.approx(50), None, None]
    assert found[2].seeds == (0,)


def test_a_teacher_stands_on_the_boards_of_all_its_students(measured) -> None:
    teacher = number(method="teacher", measured_as="teacher")
    held = measured(
        {"targets": {"cityscapes": 60.0}, "role": "teacher"}, {"targets": {"cityscapes": 1.0}, "student": "resnet50"}
    )
    assert only(match([teacher], held)).measured == pytest.approx(60)
    assert only(match([number(method="teacher", measured_as="teacher", pair="dinov2-b:deit-s")], held)).measured is None


def test_every_protocol_id_is_a_line_of_its_own(measured) -> None:
    held = measured({"targets": {"cityscapes": 50.0}}, {"targets": {"cityscapes": 40.0}, "protocol_id": "paper-2"})
    found = match([number()], held)
    assert [(each.protocol_id, round(each.measured)) for each in found] == [("paper-1", 50), ("paper-2", 40)]
    (table,) = ledger.tables(found)
    text = render("table", [table])
    assert "paper-1" in text.partition("\n\n")[2]
    assert "paper-2" in text.partition("\n\n")[2]


def test_a_choice_of_numbers() -> None:
    numbers = [number("g2c"), number("g2c+g2b"), number("c2a/acdc-night", pair="a:b"), number("GTAV to ACDC", pair="")]
    assert choose(numbers) == numbers
    assert choose(numbers, benchmarks=["g2c"]) == numbers[:1]
    assert choose(numbers, benchmarks=["g2c", "g2b"]) == numbers[:2]
    assert choose(numbers, pairs=["a:b"]) == numbers[2:3]
    for asked in ({"protocol": "mini"}, {"benchmarks": ["p2r"]}, {"pairs": ["a:c"]}):
        with pytest.raises(KdbenchError, match="among the published numbers"):
            choose(numbers, **asked)


@pytest.mark.parametrize(("line", "part"), [("a,b,c", "KeyError"), ("x,1,paper,a:b,m,m,,high", "high")])
def test_a_faulty_table_is_named(tmp_path: Path, line: str, part: str) -> None:
    header = "paper,where,protocol,pair,method,measured_as,note,g2c" if part == "high" else "paper,where,g2c"
    (tmp_path / "t.csv").write_text(f"{header}\n{line}\n", encoding="utf-8")
    with pytest.raises(KdbenchError, match=rf"t\.csv.*{part}"):
        read_published(tmp_path)


def test_tables_show_what_was_measured_only_where_something_was(measured) -> None:
    numbers = [number("g2c"), number("g2c", method="other", measured_as="", note="not ours"), number("c2a/acdc-night")]
    (bare,) = ledger.tables(match(numbers, []))
    assert bare.header == ("benchmark", "method", "published", "status")
    assert "nothing yet" in bare.conditions
    (full,) = ledger.tables(match(numbers, measured({"targets": {"cityscapes": 48.0}})))
    assert [[cell.text for cell in line] for line in full.lines] == [
        ["g2c", "ours", "50.0", "48.0", "1", "-2.0", "not reproduced"],
        ["g2c", "other*", "50.0", "", "", "", "reported"],
    ]
    assert full.notes == ("* not ours",)
    assert "paper-1" in full.conditions


def test_exports_hold_every_number(measured) -> None:
    found = match([number("g2c"), number("c2a/acdc-night")], measured({"targets": {"cityscapes": 48.0}}))
    lines = list(csv.DictReader(io.StringIO(ledger.to_csv(found))))
    assert [(line["column"], line["status"]) for line in lines] == [
        ("g2c", "not reproduced"), ("c2a/acdc-night", "not run")
    ]  # fmt: skip
    content = json.loads(ledger.to_json(found))
    assert content[0]["gap"] == found[0].gap
    assert content[1]["measured"] is None


@pytest.mark.parametrize("name", ["table", "markdown", "latex"])
def test_the_shipped_tables_in_every_format(name: str) -> None:
    text = render(name, ledger.tables(match(read_published(), [])))
    assert "Table 1 of Lv et al., CVPR 2026: dinov2-l -" in text
    assert "not run" in text
