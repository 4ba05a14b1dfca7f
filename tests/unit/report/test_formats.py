"""Formats: marks, alignment, escapes, widths, and law 9 in every one of them."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from kdbench.report.board import boards
from kdbench.report.entries import Entry
from kdbench.report.formats import FORMATS, WIDTH, alignment, render
from kdbench.report.table import Cell, Table
from kdbench.report.views import tables


@pytest.fixture
def found(make_record) -> list[Table]:
    """The tables of two boards with different targets, a failed row, remarks, a reference row and several seeds."""
    rows = [("kd", 30.0), ("cwd", 42.0), ("fitnet", 36.0)]
    entries = [
        Entry(make_record({"cityscapes": value}, method=name, footnote="odd & new_", seed=seed))
        for name, value in rows
        for seed in (1, 2)
    ]
    entries += [
        Entry(make_record({"cityscapes": 55.5}, role="teacher", deployed=3_612_345), reference=True),
        Entry(make_record(error="no memory <at all>\nTraceback")),
        Entry(make_record({"cityscapes": 20.0}, method="plain", role="undistilled", seed=1)),
        Entry(make_record({"cityscapes": 24.0}, method="plain", role="undistilled", seed=2)),
        Entry(make_record({"acdc-night": 30.0, "acdc-snow": 50.0}, {"cityscapes": 70.0}, benchmark="c2a")),
    ]
    return tables(boards(entries), {"classes", "selection"})


@pytest.mark.parametrize("name", FORMATS)
def test_law_9_in_every_format(found: list[Table], name: str) -> None:
    text = render(name, found)
    for part in ("mini-1a2b3c4d", "synthetic-1", "light", "mini:dinov2-l", "mini:resnet50", "F2L"):
        assert part in text
    assert not re.search(r"(?<!mini:)(dinov2-l|resnet50)", text)
    joined = re.sub(r"-\s+", "-", text)
    assert not re.search(r"\b(cityscapes|gtav|acdc-night|acdc-snow)\b(?!-)", joined)
    assert text.count("synthetic likeness of GTAV") == text.count("GTAV") > 0


def test_every_exported_float_names_world_protocol_and_decoder(found: list[Table]) -> None:
    captions = re.findall(r"\\caption\{(.*)\}", render("latex", found))
    assert len(captions) > 5
    for caption in captions:
        for part in ("mini-1a2b3c4d", "synthetic-1", "decoder light", "mini:dinov2-l"):
            assert part in caption


@pytest.mark.parametrize("name", ["table", "markdown"])
def test_conditions_stand_once_above_the_tables_that_share_them(found: list[Table], name: str) -> None:
    boards_shown = len({table.conditions for table in found})
    assert render(name, found).count("decoder light") == boards_shown == 1
    assert len(found) > 5


@pytest.mark.parametrize("name", FORMATS)
def test_no_table_at_all_is_no_error(name: str) -> None:
    assert "mIoU" not in render(name, [])


@pytest.mark.parametrize("name", FORMATS)
def test_a_table_without_lines_is_no_error(name: str) -> None:
    assert "empty" in render(name, [Table("empty", "a", "b", ("x", "y"), ())])


def test_markdown(found: list[Table]) -> None:
    text = render("markdown", found)
    assert re.search(r"\| cwd† +\| +2 \| +\*\*42\.0 ± 0\.0\*\* \|", text)
    assert "<ins>36.0 ± 0.0</ins>" in text
    assert "† odd & new\\_  \n" in text
    assert "\\* seed 0 where the ranking has seeds 1, 2  \n" in text
    assert "no memory \\<at all>" in text
    assert "### g2c: synthetic likeness of GTAV to Cityscapes\n" in text
    assert "#### g2c: differences to plain, the undistilled student\n" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({len(line) for line in table.splitlines()}) == 1


def test_latex(found: list[Table]) -> None:
    text = render("latex", found)
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == len(found)
    counted = [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\hline")]
    assert counted == [len(found)] * 3 + [0]
    assert r"\textbf{42.0 $\pm$ 0.0}" in text
    assert r"\underline{36.0 $\pm$ 0.0}" in text
    assert r"odd \& new\_" in text
    assert r"mIoU in \%" in text
    assert not re.search(r"[±°†‡§¶]", text)


def test_words_stand_left_and_numbers_right() -> None:
    lines = (
        (Cell("cwd"), Cell("1.0"), Cell("+1.0 to +2.0"), Cell("")),
        (Cell("kd"), Cell(""), Cell(""), Cell("better")),
    )
    assert alignment(Table("", "", "", ("a", "b", "c", "d"), lines)) == ["left", "right", "right", "left"]


def test_a_title_is_broken_to_the_width_of_what_stands_below_it_or_of_its_longest_part() -> None:
    header = ("95 % over seeds (df)", "to the best", "synthetic gtav-like")
    table = Table("", "", "", header, ((Cell("+1.0 to +2.0 (4)"), Cell("1"), Cell("2")),))
    above, *lines = [line.rstrip() for line in render("table", [table]).splitlines() if line]
    assert above.startswith("-")
    assert lines[:2] == [" 95 % over seeds  to the  synthetic", "            (df)    best  gtav-like"]


def test_captions_and_notes_are_wrapped_for_a_terminal() -> None:
    table = Table("t", "c " * 200, "a " * 200, ("x",), ((Cell("1"),),), ("n " * 200,))
    assert max(len(line) for line in render("table", [table]).splitlines()) <= WIDTH


def test_colour_keeps_the_table_aligned(found: list[Table]) -> None:
    plain, coloured = render("table", found), render("table", found, colour=True)
    assert "\033[1m42.0 ± 0.0\033[0m" in coloured
    assert "\033[4m36.0 ± 0.0\033[0m" in coloured
    assert "\033" not in plain
    assert re.sub(r"\033\[\dm", "", coloured) == plain


def test_colour_is_for_the_table_alone(found: list[Table]) -> None:
    for name in set(FORMATS) - {"table"}:
        assert render(name, found, colour=True) == render(name, found)


def test_boards_start_without_what_is_slow_to_import() -> None:
    code = (
        "import sys, kdbench.report.views, kdbench.report.formats, kdbench.report.exports;"
        "print([m for m in ('torch', 'pandas', 'matplotlib', 'scipy.stats') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
