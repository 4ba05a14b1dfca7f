"""Published numbers: the shipped tables, what they are compared with, and when a number is reproduced."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from kdbench.errors import KdbenchError
from kdbench.plugins import load_benchmark
from kdbench.report.boards import Board
from kdbench.report.formats import render
from kdbench.report.published import TOLERANCE, benchmarks_of, choose, match, published_tables, read_published

REAL = {
    "protocol": "paper",
    "protocol_id": "paper-v1",
    "data_source": "real",
    "model_set": "pretrained",
    "student": "deit-b",
}


def number(column: str = "g2c", miou: float = 50.0, **fields: str) -> dict:
    named = {
        "paper": "A et al.", "where": "Table 1", "protocol": "paper", "pair": "dinov2-l:deit-b", "method": "ours",
        "measured_as": "gkd", "note": "",
    } | fields  # fmt: skip
    return named | {"column": column, "miou": miou}


def matched(numbers: list[dict], boards: list[Board]) -> pd.DataFrame:
    return match(pd.DataFrame(numbers), boards)


@pytest.fixture
def measured(make_record, boards_of):
    """Boards of records of the paper's protocol on real images."""

    def of(*cells: dict) -> list[Board]:
        return boards_of(*(make_record(sources={}, **(REAL | cell)) for cell in cells))

    return of


def only(found: pd.DataFrame) -> pd.Series:
    assert len(found) == 1
    return found.iloc[0]


def test_printed_averages_are_those_of_their_parts() -> None:
    """Which finds a slip of the pen: the paper rounds or cuts off its averages."""
    checked = 0
    for line, rows in read_published().groupby(["where", "pair", "method", "note"]):
        held = rows.set_index("column").miou
        for column, value in held.items():
            parts = (
                column.split("+") if "+" in column else [name for name in held.index if name.startswith(f"{column}/")]
            )
            if parts and set(parts) <= set(held.index):
                assert held[parts].mean() == pytest.approx(value, abs=0.11), (line, column)
                checked += 1
    assert checked == 18 * 3 + 7


def test_what_is_compared_exists_here() -> None:
    numbers = read_published()
    for column in numbers.column[numbers.measured_as != ""].unique():
        target = column.partition("/")[2]
        for name in benchmarks_of(column):
            assert not target or target in {domain.name for domain in load_benchmark(name).targets}


def test_vanilla_kd_is_set_beside_no_method() -> None:
    numbers = read_published()
    assert set(numbers.measured_as[numbers.method == "vanilla-kd"]) == {""}


def test_a_number_with_its_measured_row(measured) -> None:
    cells = [{"targets": {"cityscapes": value}, "seed": seed} for seed, value in enumerate((50.0, 50.5, 51.1))]
    found = only(matched([number(miou=50.0)], measured(*cells)))
    assert (found.protocol_id, found.seeds) == ("paper-v1", (0, 1, 2))
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
    assert only(matched([number(miou=published)], measured({"targets": {"cityscapes": 50.0}}))).status == status


@pytest.mark.parametrize(
    "cell",
    [
        {"data_source": "synthetic-1"},
        {"protocol": "mini", "protocol_id": "mini-1"},
        {"protocol_id": "paper-v1-equal"},
        {"student": "resnet50"},
        {"method": "kd"},
        {"variant": "warm"},
        {"label_fraction": "1/16"},
        {"benchmark": "c2a"},
    ],
    ids=str,
)
def test_what_is_not_the_same_cell_is_not_compared(measured, cell: dict) -> None:
    found = only(matched([number()], measured({"targets": {"cityscapes": 50.0}} | cell)))
    assert found.status == "not run"
    assert pd.isna([found.measured, found.gap]).all()


@pytest.mark.parametrize(
    "other", [{"student": "resnet50"}, {"label_fraction": "1/16"}, {"data_source": "synthetic-1"}], ids=str
)
def test_a_board_that_is_not_compared_takes_nothing_from_one_that_is(measured, other: dict) -> None:
    held = measured({"targets": {"cityscapes": 50.0}}, {"targets": {"cityscapes": 30.0}} | other)
    for boards_in_any_order in (held, held[::-1]):
        assert only(matched([number()], boards_in_any_order)).measured == pytest.approx(50)


def test_a_failed_run_measured_nothing(make_record, boards_of) -> None:
    assert only(matched([number()], boards_of(make_record(error="stopped", **REAL)))).status == "not run"


def test_without_a_counterpart_a_number_is_reported(measured) -> None:
    found = only(matched([number(measured_as="")], measured({"targets": {"cityscapes": 50.0}, "method": ""})))
    assert found.status == "reported"
    assert pd.isna(found.measured)


def test_numbers_of_targets_and_over_benchmarks(measured) -> None:
    held = measured(
        {"targets": {"acdc-night": 30.0, "acdc-snow": 50.0}, "benchmark": "c2a"},
        {"targets": {"cityscapes": 40.0}},
        {"targets": {"cityscapes": 99.0}, "seed": 1},
        {"targets": {"bdd100k": 60.0}, "benchmark": "g2b"},
    )
    found = matched(
        [number("c2a/acdc-snow"), number("c2a"), number("g2c+g2b"), number("g2c+g2m"), number("c2a/acdc-fog")], held
    )
    assert list(found.measured.astype(float)) == pytest.approx([50, 40, 50, float("nan"), float("nan")], nan_ok=True)
    assert found.seeds[2] == (0,)


def test_a_teacher_stands_on_the_boards_of_all_its_students(measured) -> None:
    teacher = number(method="teacher", measured_as="teacher")
    held = measured(
        {"targets": {"cityscapes": 60.0}, "role": "teacher"}, {"targets": {"cityscapes": 1.0}, "student": "resnet50"}
    )
    assert only(matched([teacher], held)).measured == pytest.approx(60)
    assert (
        only(matched([number(method="teacher", measured_as="teacher", pair="dinov2-b:deit-s")], held)).status
        == "not run"
    )


def test_every_protocol_id_is_a_line_of_its_own(measured) -> None:
    held = measured({"targets": {"cityscapes": 50.0}}, {"targets": {"cityscapes": 40.0}, "protocol_id": "paper-v2"})
    found = matched([number()], held)
    assert list(zip(found.protocol_id, found.measured.astype(float).round(), strict=True)) == [
        ("paper-v1", 50), ("paper-v2", 40)
    ]  # fmt: skip
    (table,) = published_tables(found)
    text = render("table", [table])
    assert "paper-v1" in text.partition("\n\n")[2]
    assert "paper-v2" in text.partition("\n\n")[2]


def test_a_choice_of_numbers() -> None:
    numbers = [number("g2c"), number("g2c+g2b"), number("c2a/acdc-night", pair="a:b"), number("GTAV to ACDC", pair="")]
    numbers = pd.DataFrame(numbers)
    assert list(choose(numbers).index) == [0, 1, 2, 3]
    assert list(choose(numbers, benchmarks=["g2c"]).index) == [0]
    assert list(choose(numbers, benchmarks=["g2c", "g2b"]).index) == [0, 1]
    assert list(choose(numbers, pairs=["a:b"]).index) == [2]
    for asked in ({"protocol": "mini"}, {"benchmarks": ["p2r"]}, {"pairs": ["a:c"]}):
        with pytest.raises(KdbenchError, match="among the published numbers"):
            choose(numbers, **asked)


@pytest.mark.parametrize(("line", "part"), [("a,b,c", "Columns: paper"), ("x,1,paper,a:b,m,m,,high", "high")])
def test_a_faulty_table_is_named(tmp_path: Path, line: str, part: str) -> None:
    header = "paper,where,protocol,pair,method,measured_as,note,g2c" if part == "high" else "paper,where,g2c"
    (tmp_path / "t.csv").write_text(f"{header}\n{line}\n", encoding="utf-8")
    with pytest.raises(KdbenchError, match=rf"t\.csv.*{part}"):
        read_published(tmp_path)


def test_tables_show_what_was_measured_only_where_something_was(measured) -> None:
    numbers = [number("g2c"), number("g2c", method="other", measured_as="", note="not ours"), number("c2a/acdc-night")]
    (bare,) = published_tables(matched(numbers, []))
    assert bare.header == ("benchmark", "method", "published", "status")
    assert "nothing yet" in bare.conditions
    (full,) = published_tables(matched(numbers, measured({"targets": {"cityscapes": 48.0}})))
    assert [[cell.text for cell in line] for line in full.lines] == [
        ["g2c", "ours", "50.0", "48.0", "1", "-2.0", "not reproduced"],
        ["g2c", "other*", "50.0", "", "", "", "reported"],
    ]
    assert full.notes == ("* not ours",)
    assert "paper-v1" in full.conditions


@pytest.mark.parametrize("name", ["table", "markdown", "latex"])
def test_the_shipped_tables_in_every_format(name: str) -> None:
    text = render(name, published_tables(match(read_published(), [])))
    assert "Table 1 of Lv et al., CVPR 2026: dinov2-l -" in text
    assert "not run" in text
