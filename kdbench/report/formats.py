"""Tables as text: for the terminal, in markdown and in LaTeX; frames as CSV and JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from textwrap import fill, wrap
from typing import Any

import pandas as pd
from tabulate import SEPARATING_LINE, tabulate

from kdbench.report.boards import SETTING, Board, Summary, summaries
from kdbench.report.tables import Table, TableCell

WIDTH = 120
"""Columns of a terminal that captions and notes are wrapped to."""
NARROW = 6
"""Columns that a title may have, however narrow what stands below it."""


@dataclass(frozen=True)
class TextFormat:
    """How a format writes a cell. escape makes any text safe; best and second are patterns around the escaped text."""

    tablefmt: str
    escape: Callable[[str], str] = str
    best: str = "{}"
    second: str = "{}"
    wrapped: bool = False

    def cell(self, cell: TableCell) -> str:
        """Write a cell of the body."""
        return ("{}", self.best, self.second)[cell.place].format(self.escape(cell.text))

    def table(self, table: Table) -> str:
        """Write header and body; words stand to the left."""
        body: list[Any] = [[self.cell(cell) for cell in line] for line in table.lines]
        header: tuple[str, ...] | list[str] = [self.escape(title) for title in table.header]
        if self.wrapped:
            body, header = [_wrapped(table), SEPARATING_LINE, *body], ()
        align = ["left" if column.words else "right" for column in table.columns]
        return tabulate(body, header, tablefmt=self.tablefmt, colalign=align, disable_numparse=True)


def render(format: str, tables: Sequence[Table], colour: bool = False) -> str:
    """Write tables in one of FORMATS. colour: marks as terminal codes, in the plain table only."""
    return _plain(tables, COLOURED) if colour and format == "table" else FORMATS[format](tables)


def _wrapped(table: Table) -> list[str]:
    """Break titles to the width of what stands below them, or of their longest part."""
    widths = [max((len(cell.text) for cell in column.cells), default=0) for column in table.columns]
    parts = [max(map(len, re.split(r"(?<=-)| ", title))) for title in table.header]
    return [
        "\n".join(wrap(title, max(width, part, NARROW), break_long_words=False))
        for title, width, part in zip(table.header, widths, parts, strict=True)
    ]


def _escaper(special: dict[str, str]) -> Callable[[str], str]:
    table = str.maketrans(special)
    return lambda text: text.translate(table)


LATEX_SPECIALS = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "*": r"\textsuperscript{*}", "†": r"\dag{}", "‡": r"\ddag{}", "§": r"\S{}", "¶": r"\P{}",
    "±": r"$\pm$", "°": r"\textdegree{}",
}  # fmt: skip
PLAIN = TextFormat("simple", wrapped=True)
COLOURED = TextFormat("simple", best="\033[1m{}\033[0m", second="\033[4m{}\033[0m", wrapped=True)
MARKDOWN = TextFormat("pipe", _escaper({c: f"\\{c}" for c in "\\`*_[]<|"}), best="**{}**", second="<ins>{}</ins>")
LATEX = TextFormat("latex_raw", _escaper(LATEX_SPECIALS), best=r"\textbf{{{}}}", second=r"\underline{{{}}}")


def _conditions(tables: Sequence[Table]) -> Iterator[tuple[Table, str]]:
    """Yield each table with its conditions, left out where they are those of the table above."""
    above = ""
    for table in tables:
        yield table, "" if table.conditions == above else table.conditions
        above = table.conditions


def _plain(tables: Sequence[Table], style: TextFormat = PLAIN) -> str:
    parts = []
    for table, conditions in _conditions(tables):
        caption = [fill(line, WIDTH) for line in (table.title, conditions, table.about) if line]
        notes = ["", *(fill(note, WIDTH) for note in table.notes)] if table.notes else []
        parts += [*caption, "", style.table(table), *notes, ""]
    return "\n".join(parts)


def _markdown(tables: Sequence[Table]) -> str:
    parts = []
    for table, conditions in _conditions(tables):
        level = "###" if conditions else "####"
        about = ". ".join(part for part in (conditions, table.about) if part)
        notes = (MARKDOWN.escape(note) + "  " for note in table.notes)
        heading = f"{level} {MARKDOWN.escape(table.title)}"
        parts += [heading, "", MARKDOWN.escape(about) + ".", "", MARKDOWN.table(table), "", *notes, ""]
    return "\n".join(parts)


def _latex(tables: Sequence[Table]) -> str:
    return "\n".join(_latex_table(table) for table in tables)


def _latex_table(table: Table) -> str:
    text = LATEX.table(table)
    for rule in ("toprule", "midrule", "bottomrule"):
        text = text.replace(r"\hline", f"\\{rule}", 1)
    caption = LATEX.escape(". ".join((table.title, table.conditions, table.about)))
    notes = (f"\\par\\footnotesize {LATEX.escape(note)}" for note in table.notes)
    lines = (r"\begin{table}", r"\centering", f"\\caption{{{caption}.}}", text, *notes, r"\end{table}", "")
    return "\n".join(lines)


FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {
    "table": _plain,
    "markdown": _markdown,
    "latex": _latex,
}


def export_frame(boards: Sequence[Board]) -> pd.DataFrame:
    """Collect a row per board (then summary) and method, numbers unrounded.

    Columns: the setting, what rows say, `to_baseline_*` and `to_best_*` (value, seeds, deviation, low, high, df, p,
    verdict; low and high over images), `RULE_mean`, `_deviation` and `_snapshots` of each rule of selection,
    `target NAME`, `class NAME` and `seed N` (mean over targets); of a summary `source NAME`.
    """
    parts = [_board_frame(board) for board in boards] + [_summary_frame(summary) for summary in summaries(boards)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _board_frame(board: Board) -> pd.DataFrame:
    rules = board.selection.unstack("rule").swaplevel(axis=1)
    rules.columns = [f"{rule.replace(' ', '_')}_{column}" for rule, column in rules.columns]
    images, targets = board.over_images.add_prefix("to_baseline_images_"), board.targets.add_prefix("target ")
    more = [images, rules, targets, board.classes.add_prefix("class ")]
    return _rows(board, {"title": board.title, "source_domain": ", ".join(board.validated)}, more)


def _summary_frame(summary: Summary) -> pd.DataFrame:
    return _rows(summary, {"title": "average over sources"}, [summary.sources.add_prefix("source ")])


def _setting(held: Board | Summary) -> dict[str, Any]:
    common = held.common
    return {name: getattr(common, name) for name in SETTING} | {"pair": " -> ".join(common.models)}


def _rows(held: Board | Summary, named: dict[str, str], more: list[pd.DataFrame]) -> pd.DataFrame:
    """Rows of one board or summary with their setting, differences, what else there is, and scores by seed."""
    found, setting = held.comparison, _setting(held) | {"benchmark": held.benchmark} | named
    differences = [found.to_baseline.add_prefix("to_baseline_"), found.to_best.add_prefix("to_best_")]
    rows = pd.DataFrame(setting, held.rows.index).join(held.rows)
    return rows.join([*differences, *more, held.scores.add_prefix("seed ")]).reset_index()


def to_csv(boards: Sequence[Board]) -> str:
    """Write export_frame as CSV."""
    return frame_to_csv(export_frame(boards))


def frame_to_csv(frame: pd.DataFrame) -> str:
    """Write a frame as CSV; several values in one cell, as seeds, are separated by spaces."""
    return str(frame.astype(object).map(_joined).to_csv(index=False))


def _joined(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def to_json(boards: Sequence[Board]) -> str:
    """Write an object of boards and summaries: what holds for each as a whole, and its rows as in export_frame."""
    return dumps(
        {
            "boards": [
                _found(board) | {"data_sources": board.data_sources, "faults": board.faults, "notes": board.notes}
                | {"rows": records(_board_frame(board)), "by_seed": records(board.by_seed.reset_index())}
                | {"snapshots": records(board.snapshots.reset_index())}
                for board in boards
            ],
            "summaries": [
                _found(summary) | {"sources": summary.benchmarks, "rows": records(_summary_frame(summary))}
                for summary in summaries(boards)
            ],
        }
    )  # fmt: skip


def _found(held: Board | Summary) -> dict[str, Any]:
    found = held.comparison
    minimum = found.minimum._asdict() if found.minimum else None
    compared = {"seeds": found.seeds, "undistilled": found.baseline, "best": found.best, "minimum_detectable": minimum}
    return {"benchmark": held.benchmark, **_setting(held), **compared}


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Turn a frame into a list of rows, with None for what is missing."""
    return [
        {str(name): None if isinstance(value, float) and value != value else value for name, value in row.items()}
        for row in frame.to_dict(orient="records")
    ]


def dumps(content: Any) -> str:
    """Write readable JSON, without the numbers that JSON does not have."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


EXPORTS = {"csv": to_csv, "json": to_json}
