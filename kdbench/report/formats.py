"""Tables as text: for the terminal, in markdown and in LaTeX."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from textwrap import fill, wrap
from typing import Any

from tabulate import SEPARATING_LINE, tabulate

from kdbench.report.table import Cell, Table

WIDTH = 120
"""Columns of a terminal that captions and notes are wrapped to."""
NARROW = 6
"""Columns that a title may have, however narrow what stands below it."""


@dataclass(frozen=True)
class Style:
    """How a format writes a cell. escape makes any text safe; best and second are patterns around the escaped text."""

    tablefmt: str
    escape: Callable[[str], str] = str
    best: str = "{}"
    second: str = "{}"
    wrapped: bool = False

    def cell(self, cell: Cell) -> str:
        """A body's cell."""
        return ("{}", self.best, self.second)[cell.place].format(self.escape(cell.text))

    def table(self, table: Table) -> str:
        """Header and body; what is no number stands to the left."""
        body = [[self.cell(cell) for cell in line] for line in table.lines]
        header = [self.escape(title) for title in table.header]
        if self.wrapped:
            return self._tabulate(table, [_wrapped(table), SEPARATING_LINE, *body])
        return self._tabulate(table, body, headers=header)

    def _tabulate(self, table: Table, rows: Sequence[Any], **given: Any) -> str:
        return tabulate(rows, tablefmt=self.tablefmt, colalign=alignment(table), disable_numparse=True, **given)


def render(format: str, tables: Sequence[Table], colour: bool = False) -> str:
    """The tables in one of FORMATS. colour: marks as terminal codes, in the plain table only."""
    return _plain(tables, COLOURED) if colour and format == "table" else FORMATS[format](tables)


def alignment(table: Table) -> list[str]:
    """left or right for every column: words are read from the left, numbers from the right."""
    columns = zip(*table.lines, strict=True) if table.lines else [() for _ in table.header]
    return ["left" if any(_is_text(cell.text) for cell in column) else "right" for column in columns]


def _is_text(text: str) -> bool:
    return bool(re.match(r"[^\W\d_]", text))


def _wrapped(table: Table) -> list[str]:
    """Titles that are broken to the width of what stands below them, or of their longest part."""
    widths = [max((len(line[index].text) for line in table.lines), default=0) for index in range(len(table.header))]
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
PLAIN = Style("simple", wrapped=True)
COLOURED = Style("simple", best="\033[1m{}\033[0m", second="\033[4m{}\033[0m", wrapped=True)
MARKDOWN = Style("pipe", _escaper({c: f"\\{c}" for c in "\\`*_[]<|"}), best="**{}**", second="<ins>{}</ins>")
LATEX = Style("latex_raw", _escaper(LATEX_SPECIALS), best=r"\textbf{{{}}}", second=r"\underline{{{}}}")


def _conditions(tables: Sequence[Table]) -> Iterator[tuple[Table, str]]:
    """Each table with its conditions, left out where they are those of the table above."""
    above = ""
    for table in tables:
        yield table, "" if table.conditions == above else table.conditions
        above = table.conditions


def _plain(tables: Sequence[Table], style: Style = PLAIN) -> str:
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
