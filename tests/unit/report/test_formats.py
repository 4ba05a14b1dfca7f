"""Formats: marks, blanks, footnotes, alignment, raw numbers, and law 9 in every one of them."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pandas
import pytest

from kdbench.errors import KdbenchError
from kdbench.report.board import Board, Entry, boards
from kdbench.report.formats import FORMATS, grid, render
from kdbench.report.records import Record


def cells(*records) -> dict[str, list[tuple[str, int]]]:
    """Each row's label with the texts and places of its numbers."""
    (board,) = boards(map(Entry, records))
    return {line[0].text: [(cell.text, cell.place) for cell in line[1:]] for line in grid(board).lines}


def column(shown: dict[str, list[tuple[str, int]]], index: int) -> dict[str, tuple[str, int]]:
    return {label: numbers[index] for label, numbers in shown.items()}


@pytest.fixture
def found(make_record) -> list[Board]:
    """Two boards with different targets, a failed row, remarks, a reference row and several seeds."""
    rows = [("kd", 30.0), ("cwd", 42.0), ("fitnet", 36.0)]
    entries = [Entry(make_record({"cityscapes": value}, method=name, remark="odd & new_")) for name, value in rows]
    entries += [
        Entry(make_record({"cityscapes": 55.5}, role="teacher", deployed=3_612_345), reference=True),
        Entry(make_record(error="no memory <at all>\nTraceback")),
        Entry(make_record({"cityscapes": 20.0}, method="plain", role="undistilled", seed=1)),
        Entry(make_record({"cityscapes": 24.0}, method="plain", role="undistilled", seed=2)),
        Entry(make_record({"acdc-night": 30.0, "acdc-snow": 50.0}, {"cityscapes": 70.0}, benchmark="c2a")),
    ]
    return boards(entries)


def test_best_and_second_student_of_a_column(make_record) -> None:
    shown = cells(
        make_record({"cityscapes": 50.0}, {"gtav": 95.0}, role="teacher"),
        make_record({"cityscapes": 50.0}, {"gtav": 90.0}, method="plain", role="undistilled"),
        make_record({"cityscapes": 40.0}, {"gtav": 60.0}, method="a"),
        make_record({"cityscapes": 30.0}, {"gtav": 70.0}, method="b"),
    )
    assert column(shown, 0) == {
        "teacher": ("50.0", 0), "plain, undistilled": ("50.0", 1), "a": ("40.0", 2), "b": ("30.0", 0)
    }  # fmt: skip
    assert [place for _, place in column(shown, 1).values()] == [0, 1, 0, 2]
    assert column(shown, 2) == {
        "teacher": ("45.0", 0), "plain, undistilled": ("40.0", 2), "a": ("20.0", 1), "b": ("40.0", 2)
    }  # fmt: skip
    assert {place for _, place in column(shown, 3).values()} == {0}


def test_equal_numbers_on_the_page_share_a_mark(make_record, make_domain) -> None:
    def record(method: str, right: int) -> Record:
        confusion = np.roll(np.eye(2, dtype=int), 1, axis=1) * (100_000 - right) + np.eye(2, dtype=int) * right
        return make_record(domains=[make_domain("cityscapes", "target", confusion)], method=method)

    shown = cells(record("a", 70_000), record("b", 70_001), record("c", 60_000), record("d", 50_000))
    assert column(shown, 0) == {"b": ("53.8", 1), "a": ("53.8", 1), "c": ("42.9", 2), "d": ("33.3", 0)}


def test_one_student_alone_is_not_marked(make_record) -> None:
    shown = cells(make_record(role="teacher"), make_record(method="kd"), make_record(error="stopped"))
    assert {place for numbers in shown.values() for _, place in numbers} == {0}


def test_columns(make_record) -> None:
    def header(*records) -> tuple[str, ...]:
        return grid(boards(map(Entry, records))[0]).header

    source = "source: synthetic gtav-like"
    single = make_record()
    assert header(single) == ("method", "synthetic cityscapes-like", source, "gap", "params")
    assert header(single, make_record(seed=1))[:2] == ("method", "seeds")
    two = make_record({"acdc-night": 30.0, "acdc-snow": 50.0}, benchmark="c2a")
    assert header(two)[1:4] == ("synthetic acdc-night-like", "synthetic acdc-snow-like", "mean")


def test_numbers_as_displayed(make_record) -> None:
    shown = cells(
        make_record({"cityscapes": 40.0}, {"gtav": 40.0}, deployed=183_456), make_record(error="no", method="z")
    )
    assert [text for text, _ in shown["gkd"]] == ["40.0", "40.0", "0.0", "0.18 M"]
    assert [text for text, _ in shown["z*"]] == ["", "", "", ""]


def test_footnotes_share_a_sign_where_they_are_the_same(found: list[Board]) -> None:
    shown = grid(found[1])
    assert [line[0].text for line in shown.lines] == [
        "teacher (reference)", "plain, undistilled", "cwd*", "fitnet*", "kd*", "gkd†",
    ]  # fmt: skip
    assert shown.notes == (("*", "odd & new_"), ("†", "failed: no memory <at all>"))


def test_signs_do_not_run_out(make_record) -> None:
    records = [make_record(method=f"m{i}", remark=f"remark {i}") for i in range(7)]
    signs = [sign for sign, _ in grid(boards(map(Entry, records))[0]).notes]
    assert signs == ["*", "†", "‡", "§", "¶", "**", "††"]


@pytest.mark.parametrize("name", FORMATS)
def test_law_9_in_every_format(found: list[Board], name: str) -> None:
    text = render(name, found)
    for part in ("mini-1a2b3c4d", "synthetic-1", "light", "mini:dinov2-l", "mini:resnet50", "F2L"):
        assert part in text
    assert not re.search(r"(?<!mini:)(dinov2-l|resnet50)", text)
    assert not re.search(r"\b(cityscapes|gtav|acdc-night|acdc-snow)\b(?!-)", text)
    assert text.count("synthetic likeness of GTAV") == text.count("GTAV") > 0


@pytest.mark.parametrize("name", FORMATS)
def test_an_empty_list_of_boards_is_no_error(name: str) -> None:
    assert "mIoU" not in render(name, [])


def test_markdown(found: list[Board]) -> None:
    text = render("markdown", found)
    assert re.search(r"\| cwd\\\* +\| +1 \| +\*\*42\.0\*\* \|", text)
    assert "<ins>36.0</ins>" in text
    assert "\\* odd & new\\_  \n" in text
    assert "no memory \\<at all>" in text
    widths = {len(line) for line in text.partition("GTAV")[2].splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_latex(found: list[Board]) -> None:
    text = render("latex", found)
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\hline")] == [2, 2, 2, 0]
    assert r"\textbf{42.0}" in text
    assert r"\underline{36.0}" in text
    assert r"odd \& new\_" in text
    assert r"mIoU in \%" in text


class Tags(HTMLParser):
    """Fails on a tag that is closed out of order; keeps the text of marked cells."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.marked: dict[str, list[str]] = {"b": [], "u": []}

    def handle_starttag(self, tag, attrs) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if self.open and self.open[-1] in self.marked:
            self.marked[self.open[-1]].append(data)


def test_html(found: list[Board]) -> None:
    text, tags = render("html", found), Tags()
    tags.feed(text)
    tags.close()
    assert tags.open == []
    assert "42.0" in tags.marked["b"]
    assert "36.0" in tags.marked["u"]
    assert text.count("<table>") == 2
    assert "no memory &lt;at all&gt;" in text
    assert "http" not in text


def test_colour_keeps_the_table_aligned(found: list[Board]) -> None:
    plain, coloured = render("table", found), render("table", found, colour=True)
    assert "\033[1m42.0\033[0m" in coloured
    assert "\033[4m36.0\033[0m" in coloured
    assert "\033" not in plain
    assert re.sub(r"\033\[\dm", "", coloured) == plain


def test_colour_is_for_the_table_alone(found: list[Board]) -> None:
    for name in set(FORMATS) - {"table"}:
        assert render(name, found, colour=True) == render(name, found)


def test_csv_has_raw_numbers_and_a_column_for_every_target(found: list[Board]) -> None:
    table = pandas.read_csv(io.StringIO(render("csv", found)))
    assert len(table) == sum(len(board.rows) for board in found)
    teacher = table[table.role == "teacher"].iloc[0]
    row = found[1].rows[0]
    assert teacher["mean"] == row.mean
    assert round(row.mean, 1) != row.mean
    assert teacher["synthetic cityscapes-like"] == row.targets[0]
    assert teacher.parameters == 3_612_345
    assert pandas.isna(teacher["synthetic acdc-night-like"])
    assert list(table[table.role == "undistilled"].seeds) == ["1 2"]


def test_json_has_raw_numbers_and_null_for_blanks(found: list[Board]) -> None:
    content = json.loads(render("json", found))
    rows = {row["method"]: row for row in content[1]["rows"]}
    assert rows["teacher"]["mean"] == found[1].rows[0].mean
    assert rows["gkd"]["targets"] == {"synthetic cityscapes-like": None}
    assert (rows["gkd"]["mean"], rows["plain"]["seeds"], rows["plain"]["mean"]) == (None, [1, 2], 22.0)
    assert content[0]["rows"][0]["targets"] == {"synthetic acdc-night-like": 30.0, "synthetic acdc-snow-like": 50.0}


def test_an_unknown_format_lists_those_that_exist() -> None:
    with pytest.raises(KdbenchError, match=r"'latx'\. Did you mean 'latex'"):
        render("latx", [])


def test_boards_start_without_what_is_slow_to_import() -> None:
    code = (
        "import sys, kdbench.report.formats; print([m for m in ('torch', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
