"""Formats: marks, alignment, escapes, widths and law 9 in every one of them; every number unrounded in exports."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys

import pandas as pd
import pytest

from kdbench.report.boards import Board
from kdbench.report.formats import FORMATS, WIDTH, render, to_csv, to_json
from kdbench.report.frame import Entry
from kdbench.report.tables import Column, Table, numbers, tables, words


@pytest.fixture
def found(make_record, boards_of) -> list[Table]:
    """The tables of two boards with different targets, a failed row, footnotes, a reference row and several seeds."""
    rows = [("kd", 30.0), ("cwd", 42.0), ("fitnet", 36.0)]
    held = [
        *(
            make_record({"cityscapes": value}, method=name, footnote="odd & new_", seed=seed)
            for name, value in rows
            for seed in (1, 2)
        ),
        Entry(make_record({"cityscapes": 55.5}, role="teacher", deployed=3_612_345), reference=True),
        make_record(error="no memory <at all>\nTraceback"),
        make_record({"cityscapes": 20.0}, method="plain", role="undistilled", seed=1),
        make_record({"cityscapes": 24.0}, method="plain", role="undistilled", seed=2),
        make_record({"acdc-night": 30.0, "acdc-snow": 50.0}, {"cityscapes": 70.0}, benchmark="c2a"),
    ]
    return tables(boards_of(*held), {"classes", "selection"})


def table(*columns: Column, conditions: str = "", about: str = "", notes: tuple[str, ...] = ()) -> Table:
    return Table("empty", conditions, about, columns, notes)


@pytest.mark.parametrize("name", FORMATS)
def test_law_9_in_every_format(found: list[Table], name: str) -> None:
    text = render(name, found)
    for part in ("mini-1a2b3c4d", "synthetic-1", "light", "mini:dinov2-l", "mini:resnet50", "F2L"):
        assert part in text
    assert not re.search(r"(?<!mini:)(dinov2-l|resnet50)", text)
    joined = re.sub(r"-\s+", "-", text)
    assert not re.search(r"\b(cityscapes|gtav|acdc-night|acdc-snow)\b(?!-)", joined)
    assert text.count("synthetic likeness of GTAV") == text.count("GTAV") > 0


def test_every_exported_float_names_data_source_protocol_and_decoder(found: list[Table]) -> None:
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
def test_no_table_and_no_line_are_no_error(name: str) -> None:
    assert "mIoU" not in render(name, [])
    assert "empty" in render(name, [table(words("x", []), numbers("y", []))])


def test_markdown(found: list[Table]) -> None:
    text = render("markdown", found)
    assert re.search(r"\| cwd† +\| +2 \| +\*\*42\.0 ± 0\.0\*\* \|", text)
    assert "<ins>36.0 ± 0.0</ins>" in text
    assert "† odd & new\\_  \n" in text
    assert "\\* seed 0 where the ranking has seeds 1, 2  \n" in text
    assert "no memory \\<at all>" in text
    assert "### g2c: synthetic likeness of GTAV to Cityscapes\n" in text
    assert "#### g2c: differences to plain, the undistilled student\n" in text
    for lines in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({len(line) for line in lines.splitlines()}) == 1


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


def test_a_title_is_broken_to_the_width_of_what_stands_below_it_or_of_its_longest_part() -> None:
    titles = {"95 % over seeds (df)": "+1.0 to +2.0 (4)", "to the best": "1", "synthetic gtav-like": "2"}
    columns = (numbers(title, [0], lambda _, text=text: text) for title, text in titles.items())
    above, *lines = [line.rstrip() for line in render("table", [table(*columns)]).splitlines()[2:] if line]
    assert above.startswith("-")
    assert lines[:2] == [" 95 % over seeds  to the  synthetic", "            (df)    best  gtav-like"]


def test_captions_and_notes_are_wrapped_for_a_terminal() -> None:
    held = table(numbers("x", [1]), conditions="c " * 200, about="a " * 200, notes=("n " * 200,))
    assert max(len(line) for line in render("table", [held]).splitlines()) <= WIDTH


def test_colour_is_for_the_table_alone_and_keeps_it_aligned(found: list[Table]) -> None:
    plain, coloured = render("table", found), render("table", found, colour=True)
    assert "\033[1m42.0 ± 0.0\033[0m" in coloured
    assert "\033[4m36.0 ± 0.0\033[0m" in coloured
    assert "\033" not in plain
    assert re.sub(r"\033\[\dm", "", coloured) == plain
    for name in set(FORMATS) - {"table"}:
        assert render(name, found, colour=True) == render(name, found)


def test_boards_start_without_what_is_slow_to_import() -> None:
    code = (
        "import sys, kdbench.report.published;"
        "print([m for m in ('torch', 'seaborn', 'matplotlib', 'scipy.stats') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Exports


@pytest.fixture
def held(make_record, boards_of) -> list[Board]:
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
    return boards_of(*records)


def test_json_holds_what_the_boards_hold(held: list[Board]) -> None:
    content = json.loads(to_json(held))
    board = next(board for board in content["boards"] if board["benchmark"] == "g2c")
    rows = {row["method"]: row for row in board["rows"]}
    ours = held[1].rows.loc["kd"]
    assert (rows["kd"]["mean"], rows["kd"]["deviation"]) == (ours["mean"], ours.deviation)
    assert rows["kd"]["seed 3"] == held[1].scores.loc["kd", 3]
    assert rows["kd"]["class road"] == held[1].classes.road["kd"]
    assert rows["kd"]["oracle_snapshots"] == list(held[1].selection.snapshots["kd", "oracle"])
    difference = held[1].comparison.to_baseline.loc["kd"]
    for name in ("value", "low", "high", "df", "p", "verdict"):
        assert rows["kd"][f"to_baseline_{name}"] == difference[name]
    assert rows["kd"]["to_baseline_seeds"] == [0, 1, 2, 3, 4]
    assert (rows["kd"]["rank"], rows["plain"]["rank"], rows["teacher"]["rank"]) == (1, 2, None)
    assert (board["undistilled"], board["minimum_detectable"]["comparisons"]) == ("plain", 1)
    assert (rows["gkd"]["mean"], rows["gkd"]["to_baseline_value"], rows["gkd"]["footnote"]) == (
        None, None, "failed: stopped"
    )  # fmt: skip
    by_seed = next(row for row in board["by_seed"] if (row["method"], row["seed"]) == ("kd", 3))
    assert by_seed["synthetic cityscapes-like"] == held[1].by_seed.loc[("kd", 3)].iloc[0]
    (summary,) = content["summaries"]
    assert summary["sources"] == {"synthetic cityscapes-like": ["c2a"], "synthetic gtav-like": ["g2c"]}
    row = next(row for row in summary["rows"] if row["method"] == "kd")
    assert row["mean"] == pytest.approx(sum(board.rows["mean"]["kd"] for board in held) / 2)


def test_csv_has_a_line_for_every_row(held: list[Board]) -> None:
    table = pd.read_csv(io.StringIO(to_csv(held)))
    assert len(table) == sum(len(board.rows) for board in held) + 4
    line = table[(table.method == "kd") & (table.benchmark == "g2c")].iloc[0]
    ours = held[1].rows.loc["kd"]
    assert line["mean"] == ours["mean"] != round(ours["mean"], 1)
    assert line["target synthetic cityscapes-like"] == held[1].targets.loc["kd"].iloc[0]
    assert (line.seeds, line.to_baseline_df, line.to_baseline_verdict) == ("0 1 2 3 4", 4, "better")
    assert pd.isna(line["target synthetic acdc-night-like"])
    assert table[table.role == "teacher"].iloc[0].parameters == 3_612_345
    assert table[table.title == "average over sources"].benchmark.unique() == ["c2a g2c"]


@pytest.mark.parametrize("export", [to_csv, to_json])
def test_law_9_in_exports(held: list[Board], export) -> None:
    text = export(held)
    assert "mini:dinov2-l -> mini:resnet50" in text
    assert "resnet50" not in text.replace("mini:resnet50", "")
    assert "cityscapes-like" in text
    for part in ("mini-1a2b3c4d", "synthetic-1", "light"):
        assert part in text


def test_no_boards_are_no_error() -> None:
    assert json.loads(to_json([])) == {"boards": [], "summaries": []}
    assert to_csv([]).strip() == ""
