"""What tables show: columns, marks, ranks, footnotes, differences, classes, rules of selection, costs, summaries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from kdbench.names import amount
from kdbench.records import Record, StageResult
from kdbench.report.boards import boards
from kdbench.report.frame import Entry, to_frame
from kdbench.report.tables import EXTRA, Table, number, result_line, signed, signs, tables

STEPS = (0.0, 0.5, 0.2, 0.9, 0.4)


@pytest.fixture
def runs(make_record):
    """Records of (method, mIoU) rows over seeds; the seeds scatter alike, each row a little in its own way."""

    def of(rows: dict[str, float], seeds: int = 5, **cell) -> list[Record]:
        roles = {"plain": "undistilled", "teacher": "teacher"}
        return [
            make_record(
                {"cityscapes": value + STEPS[seed] + 0.1 * STEPS[(seed + order) % 5]},
                method=method,
                seed=seed,
                role=roles.get(method, "distilled"),
                **cell,
            )
            for order, (method, value) in enumerate(rows.items())
            for seed in range(seeds)
        ]

    return of


def shown(records: list[Record], *also: str) -> dict[str, Table]:
    """Tables by title, of records that are not from the committed folder."""
    found = tables(boards(to_frame(map(Entry, records))), also)
    assert len({table.title for table in found}) == len(found)
    return {table.title: table for table in found}


def ranking(*records: Record) -> Table:
    return next(iter(shown(list(records)).values()))


def column(table: Table, title: str, part: str = "text") -> dict[str, object]:
    """A column's cells by method: their text, value, deviation or place."""
    first, index = table.header.index("method"), table.header.index(title)
    return {line[first].text: getattr(line[index], part) for line in table.lines}


def texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in line] for line in table.lines]


def differences(records: list[Record]) -> Table:
    return next(table for title, table in shown(records).items() if "differences" in title)


def test_columns_of_one_and_of_several_targets(make_record) -> None:
    city, source = "synthetic cityscapes-like", "source: synthetic gtav-like"
    assert ranking(make_record()).header == ("method", "seeds", city, source, "gap")
    two = ranking(make_record({"acdc-night": 30.0, "acdc-snow": 50.0}, benchmark="c2a"))
    assert two.header == (
        "method", "seeds", "mean", "synthetic acdc-night-like", "synthetic acdc-snow-like", "worst", source, "gap"
    )  # fmt: skip
    assert texts(two) == [["gkd", "1", "40.0", "30.0", "50.0", "30.0", "60.0", "20.0"]]
    assert [column.words for column in two.columns] == [True] + [False] * 7
    assert ranking(make_record(sources={})).header[-2:] == ("source", "gap")


def test_numbers_as_displayed(make_record) -> None:
    table = ranking(make_record({"cityscapes": 40.0}, {"gtav": 40.0}), make_record(error="no", method="z"))
    assert texts(table) == [["gkd", "1", "40.0", "40.0", "0.0"], ["z*", "1", "", "", ""]]
    assert (number(-0.04), number(None), signed(-0.04), signed(0.06), signed(-1), signed(float("nan"))) == (
        "0.0", "", "0.0", "+0.1", "-1.0", ""
    )  # fmt: skip


def test_best_and_second_student_of_a_column(make_record) -> None:
    table = ranking(
        make_record({"cityscapes": 50.0}, {"gtav": 95.0}, role="teacher"),
        make_record({"cityscapes": 50.0}, {"gtav": 90.0}, method="plain", role="undistilled"),
        make_record({"cityscapes": 40.0}, {"gtav": 60.0}, method="a"),
        make_record({"cityscapes": 30.0}, {"gtav": 70.0}, method="b"),
    )
    city = column(table, "synthetic cityscapes-like", "place")
    assert city == {"teacher": 0, "plain, undistilled": 1, "a": 2, "b": 0}
    assert list(column(table, "source: synthetic gtav-like", "place").values()) == [0, 1, 0, 2]
    assert column(table, "gap", "place") == {"teacher": 0, "plain, undistilled": 2, "a": 1, "b": 2}


def test_equal_numbers_on_the_page_share_a_mark(make_record, make_domain) -> None:
    def record(method: str, right: int) -> Record:
        confusion = np.roll(np.eye(3, dtype=int), 1, axis=1) * (100_000 - right) + np.eye(3, dtype=int) * right
        return make_record(domains=[make_domain("cityscapes", "target", confusion)], method=method)

    table = ranking(record("a", 70_000), record("b", 70_001), record("c", 60_000), record("d", 50_000))
    assert column(table, "synthetic cityscapes-like", "place") == {"b": 1, "a": 1, "c": 2, "d": 0}


def test_one_student_alone_is_not_marked(make_record) -> None:
    table = ranking(make_record(role="teacher"), make_record(method="kd"), make_record(error="stopped"))
    assert {cell.place for line in table.lines for cell in line} == {0}


def test_ties_share_a_rank_and_the_teacher_has_none(runs) -> None:
    table = ranking(*runs({"teacher": 60, "plain": 40, "a": 45, "b": 45.02, "c": 30}))
    assert column(table, "rank") == {"teacher": "", "plain, undistilled": "3", "b": "1", "a": "1", "c": "4"}


def test_below_five_seeds_nothing_is_ranked(runs) -> None:
    table = ranking(*runs({"plain": 40, "a": 45}, seeds=4))
    assert "rank" not in table.header
    assert table.notes == ("Not ranked: ranks need 5 paired seeds. The order is that of the means.",)


def test_one_seed_beside_five_is_marked_and_neither_ranked_nor_best(runs, make_record) -> None:
    table = ranking(*runs({"plain": 40, "a": 45, "b": 43}), make_record({"cityscapes": 90.0}, method="lucky"))
    assert column(table, "rank") == {"plain, undistilled": "3", "lucky*": "", "a": "1", "b": "2"}
    assert column(table, "seeds")["lucky*"] == "1"
    city = column(table, "synthetic cityscapes-like", "place")
    assert city == {"plain, undistilled": 0, "lucky*": 0, "a": 1, "b": 2}
    assert table.notes == ("* seed 0 where the ranking has seeds 0, 1, 2, 3, 4: not ranked",)


def test_footnotes_share_a_sign_where_they_are_the_same(make_record) -> None:
    records = [Entry(make_record(method=name, footnote="odd")) for name in ("a", "b")]
    failed = Entry(make_record(error="no memory"), reference=True)
    table = tables(boards(to_frame([*records, failed])))[0]
    assert list(column(table, "seeds")) == ["a*", "b*", "gkd°†"]
    assert table.notes[:3] == ("* odd", "† failed: no memory", "° committed reference")
    assert list(signs(f"footnote {i}" for i in range(7)).values()) == ["*", "†", "‡", "§", "¶", "**", "††"]


def test_differences_to_the_undistilled_student(runs) -> None:
    table = differences(runs({"teacher": 60, "plain": 40, "a": 45, "b": 35}))
    assert table.header == (
        "method", "difference", "95 % over seeds (df)", "p", "verdict", "to the best", "p", "verdict", "gap recovered"
    )  # fmt: skip
    assert [column.words for column in table.columns] == [True, False, False, False, True, False, False, True, False]
    (a, *ours), (b, *theirs) = texts(table)
    assert (a, ours[0], ours[3], ours[7]) == ("a", "+5.0", "better", "25 %")
    assert ours[1].startswith("+4.")
    assert ours[1].endswith(" (4)")
    assert ours[4:7] == ["", "", ""]
    assert (b, theirs[3], theirs[4], theirs[6]) == ("b", "worse", "-10.0", "worse")
    assert "the best: a" in table.about
    assert any(note.startswith("5 paired seeds with this scatter resolve") for note in table.notes)


def test_few_seeds_have_no_verdict(runs) -> None:
    table = differences(runs({"plain": 40, "a": 45, "b": 35}, seeds=1))
    assert table.header == ("method", "difference", "to the best")
    assert table.notes == ("Not resolvable: a verdict needs 5 paired seeds.",)
    table = differences(runs({"plain": 40, "a": 45, "b": 35}, seeds=3))
    assert "verdict" not in table.header
    assert table.notes[0] == "Not resolvable: a verdict needs 5 paired seeds."
    assert all(text.endswith(" (2)") for text in column(table, "95 % over seeds (df)").values())


def test_a_verdict_beside_rows_without_one_says_so(runs, make_record) -> None:
    records = [*runs({"plain": 40, "a": 45, "b": 42}), make_record({"cityscapes": 90.0}, method="lucky")]
    assert column(differences(records), "verdict")["lucky"] == "not resolvable"


def test_without_an_undistilled_student_differences_are_to_the_best(runs) -> None:
    table = differences(runs({"teacher": 60, "a": 45, "b": 35}))
    assert table.title == "g2c: differences to the best"
    assert table.header == ("method", "to the best", "p", "verdict")
    assert column(table, "to the best") == {"b": "-10.0"}


def test_a_teacher_that_is_not_ahead_leaves_no_gap_to_recover(runs) -> None:
    table = differences(runs({"teacher": 39, "plain": 40, "a": 45}))
    assert "gap recovered" not in table.header
    assert "No gap to recover: the teacher is not found ahead of plain." in table.notes


@pytest.mark.parametrize("alone", [["teacher"], ["a"], ["plain"], ["teacher", "plain"]])
def test_nobody_to_compare_gives_no_differences(runs, alone: list[str]) -> None:
    assert list(shown(runs(dict.fromkeys(alone, 40.0)))) == ["g2c: synthetic likeness of GTAV to Cityscapes"]


def test_intervals_over_images_have_a_column_of_their_own(runs, board_of) -> None:
    interval = pd.DataFrame({"low": 4.0, "high": 6.0}, ["a"])
    board = replace(
        board_of(*runs({"plain": 40, "a": 45})), over_images=interval, faults=("a file is damaged", "one more")
    )
    table = tables([board])[1]
    assert column(table, "95 % over images") == {"a": "+4.0 to +6.0"}
    assert "bootstrap" in table.about
    assert table.notes[-1] == "2 of the files of counts by image cannot be used; the first: a file is damaged"


def test_classes_gained_and_lost(make_record, make_domain) -> None:
    def record(method: str, role: str, right: tuple[int, int, int], seed: int = 0) -> Record:
        wrong = 100 - np.array(right)
        confusion = np.diag(right) + np.roll(np.diag(wrong), 1, axis=1)
        return make_record(domains=[make_domain("city", "target", confusion)], method=method, role=role, seed=seed)

    records = [record("plain", "undistilled", (50, 50, 50)), record("a", "distilled", (90, 60, 20))]
    found = shown([*records, record("b", "distilled", (99, 99, 99), seed=1)], "classes")
    table = found["g2c: pixels and classes"]
    assert column(table, "pixels right") == {"plain, undistilled": "50.0", "a": "56.7", "b": "99.0"}
    # IoU of road: 90 / (100 + 80) against 50 / 150; building: 60 / 110; sky: 20 / 140.
    assert column(table, "largest gains") == {"plain, undistilled": "", "a": "building +21.2, road +16.7", "b": ""}
    assert column(table, "largest losses") == {"plain, undistilled": "", "a": "sky -19.0", "b": ""}
    by_class = found["g2c: IoU by class"]
    assert by_class.header == ("class", "plain, undistilled", "b", "a")
    assert texts(by_class) == [
        ["road", "33.3", "98.0", "50.0"], ["building", "33.3", "98.0", "54.5"], ["sky", "33.3", "98.0", "14.3"]
    ]  # fmt: skip


def test_many_methods_stand_in_several_tables_of_classes(make_record, boards_of) -> None:
    records = [make_record(method=f"m{index}") for index in range(9)]
    found = [table for table in tables(boards_of(*records), {"classes"}) if table.header[0] == "class"]
    assert [name for table in found for name in table.header[1:]] == [f"m{index}" for index in range(9)]
    assert max(len(table.header) for table in found) == 8


def test_rules_of_selection_stand_apart(make_record) -> None:
    title = "g2c: rules of selection"
    assert title not in shown([make_record()])
    table = shown([make_record(), make_record(error="stopped", method="kd")], "selection")[title]
    assert table.header == ("method", "last", "best on the source", "oracle", "oracle's gap")
    assert [line[1] for line in texts(table)] == ["40.0", ""]


@pytest.mark.parametrize("name", EXTRA)
def test_a_board_of_failures_alone_has_every_table(make_record, name: str) -> None:
    found = shown([make_record(error="stopped")], name)
    assert {table.lines[0][table.header.index("method")].text.rstrip("*") for table in found.values()} == {"gkd"}
    assert len(found) == 2


def test_summaries_come_last(make_record) -> None:
    records = [
        make_record(
            {name: 40.0 + len(method)}, {source: 60.0}, benchmark=name, method=method, seed=seed,
            role="undistilled" if method == "plain" else "distilled",
        )
        for name, source in (("g2c", "gtav"), ("g2b", "gtav"), ("c2a", "cityscapes"))
        for method in ("plain", "a", *(["partial"] if name == "g2c" else []))
        for seed in range(5)
    ]  # fmt: skip
    found = shown(records)
    assert list(found)[-2:] == [
        "3 benchmarks: average over 2 sources", "3 benchmarks: differences to plain, the undistilled student"
    ]  # fmt: skip
    summary = found["3 benchmarks: average over 2 sources"]
    assert summary.header == (
        "rank", "method", "seeds", "average", "synthetic cityscapes-like", "synthetic gtav-like", "mean rank"
    )  # fmt: skip
    assert "synthetic gtav-like: g2b, g2c" in summary.about
    assert "Left out, since not all benchmarks have them: partial." in summary.notes


def test_costs_and_the_front_stand_apart(make_record) -> None:
    def stage(flops: int) -> StageResult:
        return StageResult(
            name="joint", phase="task", key="k", data={}, steps=1, images=8, student_forwards=8, flops=flops, losses={}
        )

    records = [
        make_record({"cityscapes": score}, method=method, role=role, stages=[stage(flops)])
        for method, role, score, flops in (
            ("alone", "undistilled", 30.0, 2_000_000), ("a", "distilled", 40.0, 3_000_000),
            ("b", "distilled", 35.0, 4_000_000),
        )
    ]  # fmt: skip
    table = shown(records, "costs")["g2c: costs"]
    assert column(table, "Pareto") == {"alone, undistilled": "yes", "a": "yes", "b": ""}
    assert list(column(table, "training").values()) == ["2 MFLOP", "3 MFLOP", "4 MFLOP"]
    assert list(column(table, "student forwards", "value").values()) == [8] * 3
    assert list(column(table, "time").values()) == ["0:00:20"] * 3
    assert not {"memory", "latency", "inference"} & set(table.header)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12.0, "12 B"), (3.25e12, "3.25 TB"), (1e22, "10 ZB"), (999.0, "999 B"), (0.0067, "6.7 mB"), (0.0, "0 B"),
        (999.6e9, "1 TB"), (0.9996, "1 B"),
    ],
)  # fmt: skip
def test_amounts_have_prefixes(value: float, text: str) -> None:
    assert amount(value, "B") == text


def test_a_cell_on_a_line(make_record) -> None:
    line = result_line(make_record({"acdc-night": 30.0, "acdc-snow": 50.0}, benchmark="c2a"), cached=False)
    for part in ("c2a", "mini:dinov2-l -> mini:resnet50", "gkd", "mIoU  40.0 ( 30.0  50.0)", "source  60.0", "61 s"):
        assert part in line
    assert result_line(make_record(), cached=True).endswith("done before")
    assert result_line(make_record(error="stopped"), cached=False).endswith("FAILED: stopped")
