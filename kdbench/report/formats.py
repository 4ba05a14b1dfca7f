"""Boards as text: a grid of marked cells for the formats that people read, raw numbers for those that programs read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tabulate import tabulate

from kdbench.errors import unknown
from kdbench.report.board import Board, Row

SIGNS = "*†‡§¶"


@dataclass(frozen=True)
class Cell:
    """A value as displayed; place: 1 for the best student of its column, 2 for the second, 0 for all others."""

    text: str
    place: int = 0


@dataclass(frozen=True)
class Grid:
    """A board as text cells. notes: each footnote's sign and text."""

    header: tuple[str, ...]
    lines: tuple[tuple[Cell, ...], ...]
    notes: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Column:
    """better: 1 where more is better, -1 where less is, 0 where nothing is ranked."""

    title: str
    value: Callable[[Row], float | None]
    better: int = 1


@dataclass(frozen=True)
class Style:
    """How a format writes a cell. escape makes any text safe; best and second are patterns around the escaped text."""

    tablefmt: str
    escape: Callable[[str], str] = str
    best: str = "{}"
    second: str = "{}"
    wrapped: bool = False

    def header(self, grid: Grid) -> list[str]:
        """The header's cells, over several lines where the format can break them."""
        return [self.escape(_wrap(title) if self.wrapped else title) for title in grid.header]

    def cell(self, cell: Cell) -> str:
        """A body's cell."""
        return ("{}", self.best, self.second)[cell.place].format(self.escape(cell.text))

    def table(self, grid: Grid) -> str:
        """Header and body."""
        body = [[self.cell(cell) for cell in line] for line in grid.lines]
        align = ("left", *["right"] * (len(grid.header) - 1))
        return tabulate(body, self.header(grid), self.tablefmt, colalign=align, disable_numparse=True)


def render(format: str, boards: list[Board], colour: bool = False) -> str:
    """The boards in one of FORMATS. colour: marks as terminal codes, in the plain table only."""
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    return _plain(boards, COLOURED) if colour and format == "table" else FORMATS[format](boards)


def grid(board: Board) -> Grid:
    """The board's values as displayed, with the best two students of each column marked."""
    signs = _signs(board.rows)
    notes = tuple((sign, remark) for remark, sign in signs.items())
    columns = list(_columns(board))
    marked = [_marked(column, board.rows) for column in columns]
    lines = [
        (Cell(_name(row, signs)), *numbers, Cell(_millions(row.parameters)))
        for row, numbers in zip(board.rows, zip(*marked, strict=True), strict=True)
    ]
    return Grid(("method", *(column.title for column in columns), "params"), tuple(lines), notes)


def _columns(board: Board) -> Iterator[Column]:
    if any(len(row.seeds) > 1 for row in board.rows):
        yield Column("seeds", lambda row: len(row.seeds), better=0)
    for index, title in enumerate(board.columns):
        yield Column(title, _target(index))
    if len(board.columns) != 1:
        yield Column("mean", lambda row: row.mean)
    yield Column(f"source: {board.source}" if board.source else "source", lambda row: row.source)
    yield Column("gap", lambda row: row.gap, better=-1)


def _target(index: int) -> Callable[[Row], float | None]:
    return lambda row: row.targets[index]


def _marked(column: Column, rows: Iterable[Row]) -> list[Cell]:
    """Ranks what is displayed, so that equal numbers on the page share a mark."""
    shown = [(_number(column, column.value(row)), row.role != "teacher") for row in rows]
    students = [text for text, student in shown if student and text]
    order = sorted(set(students), key=float, reverse=column.better > 0)[:2]
    if len(students) < 2 or not column.better:
        order = []
    return [Cell(text, order.index(text) + 1 if student and text in order else 0) for text, student in shown]


def _number(column: Column, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:z.1f}" if column.better else f"{value:g}"


def _millions(parameters: int | None) -> str:
    return "" if parameters is None else f"{parameters / 1e6:.2f} M"


def _name(row: Row, signs: dict[str, str]) -> str:
    role = "" if row.role in ("distilled", row.method) else f", {row.role}"
    return row.method + role + (" (reference)" if row.reference else "") + signs.get(row.remark, "")


def _signs(rows: Iterable[Row]) -> dict[str, str]:
    """A sign for every remark: * to ¶, then the same doubled, and so on."""
    remarks = dict.fromkeys(row.remark for row in rows if row.remark)
    return {remark: SIGNS[i % len(SIGNS)] * (1 + i // len(SIGNS)) for i, remark in enumerate(remarks)}


def _wrap(title: str) -> str:
    return title.replace(" ", "\n").replace("-like", "-\nlike")


def _escaper(special: dict[str, str]) -> Callable[[str], str]:
    table = str.maketrans(special)
    return lambda text: text.translate(table)


LATEX_SPECIALS = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "*": r"\textsuperscript{*}", "†": r"\dag{}", "‡": r"\ddag{}", "§": r"\S{}", "¶": r"\P{}",
}  # fmt: skip
PLAIN = Style("simple", wrapped=True)
COLOURED = Style("simple", best="\033[1m{}\033[0m", second="\033[4m{}\033[0m", wrapped=True)
MARKDOWN = Style("pipe", _escaper({c: f"\\{c}" for c in "\\`*_[]<|"}), best="**{}**", second="<ins>{}</ins>")
LATEX = Style("latex_raw", _escaper(LATEX_SPECIALS), best=r"\textbf{{{}}}", second=r"\underline{{{}}}")


def _plain(boards: list[Board], style: Style = PLAIN) -> str:
    parts = []
    for board in boards:
        shown = grid(board)
        notes = ["", *(f"{sign} {text}" for sign, text in shown.notes)] if shown.notes else []
        parts += [*board.caption, "", style.table(shown), *notes, ""]
    return "\n".join(parts)


def _markdown(boards: list[Board]) -> str:
    parts = []
    for board in boards:
        shown = grid(board)
        heading, *more = (MARKDOWN.escape(line) for line in board.caption)
        notes = (MARKDOWN.escape(f"{sign} {text}") + "  " for sign, text in shown.notes)
        parts += [f"### {heading}", "", ". ".join(more) + ".", "", MARKDOWN.table(shown), "", *notes, ""]
    return "\n".join(parts)


def _latex(boards: list[Board]) -> str:
    return "\n".join(_latex_table(board) for board in boards)


def _latex_table(board: Board) -> str:
    shown = grid(board)
    table = LATEX.table(shown)
    for rule in ("toprule", "midrule", "bottomrule"):
        table = table.replace(r"\hline", f"\\{rule}", 1)
    caption = LATEX.escape(". ".join(board.caption))
    notes = (f"\\par\\footnotesize {LATEX.escape(f'{sign} {text}')}" for sign, text in shown.notes)
    lines = (r"\begin{table}", r"\centering", f"\\caption{{{caption}.}}", table, *notes, r"\end{table}", "")
    return "\n".join(lines)


def _html(boards: list[Board]) -> str:
    from jinja2 import Environment

    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(PAGE)
    return template.render(boards=[(board, grid(board)) for board in boards]) + "\n"


def _csv(boards: list[Board]) -> str:
    """A line a row; a column for every target of any board."""
    from pandas import DataFrame

    lines = [
        _conditions(board)
        | _values(row)
        | {"seeds": " ".join(map(str, row.seeds)), "source_domain": board.source}
        | _targets(board, row)
        for board in boards
        for row in board.rows
    ]
    return str(DataFrame(lines, dtype=object).to_csv(index=False))


def _json(boards: list[Board]) -> str:
    content = [
        _conditions(board)
        | {"caption": ". ".join(board.caption), "worlds": board.worlds, "source_domain": board.source}
        | {"rows": [_values(row) | {"targets": _targets(board, row)} for row in board.rows]}
        for board in boards
    ]
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _conditions(board: Board) -> dict[str, Any]:
    """What a caption says, each part by itself."""
    named = ("protocol_id", "protocol", "decoder", "zoo", "world", "benchmark", "label_fraction", "title")
    conditions = {name: getattr(board, name) for name in named}
    return conditions | {"pair": " -> ".join(board.models), "family": board.family}


def _values(row: Row) -> dict[str, Any]:
    """A row as it is, without its targets."""
    return {name: value for name, value in asdict(row).items() if name != "targets"}


def _targets(board: Board, row: Row) -> dict[str, float | None]:
    return dict(zip(board.columns, row.targets, strict=True))


PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>kdbench leaderboard</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
section { margin-bottom: 3rem; overflow-x: auto; }
h2 { font-size: 1.15rem; margin-bottom: .2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #666; padding-bottom: .6rem; }
th, td { padding: .3rem .8rem; text-align: right; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { border-bottom: 2px solid #222; max-width: 9rem; vertical-align: bottom; }
tbody td { border-bottom: 1px solid #ddd; }
.teacher td { color: #666; }
.note { color: #666; margin: .3rem 0 0; }
</style>
</head>
<body>
<h1>kdbench leaderboard</h1>
{% for board, grid in boards %}
<section>
<h2>{{ board.caption[0] }}</h2>
<table>
<caption>{{ board.caption[1] }}<br>{{ board.caption[2] }}</caption>
<thead><tr>{% for title in grid.header %}<th scope="col">{{ title }}</th>{% endfor %}</tr></thead>
<tbody>
{% for line in grid.lines %}
<tr class="{{ board.rows[loop.index0].role }}">
{%- for cell in line -%}
<td>
{%- if cell.place == 1 %}<b>{{ cell.text }}</b>
{%- elif cell.place == 2 %}<u>{{ cell.text }}</u>
{%- else %}{{ cell.text }}
{%- endif %}</td>
{%- endfor -%}
</tr>
{% endfor %}
</tbody>
</table>
{% for sign, text in grid.notes %}
<p class="note">{{ sign }} {{ text }}</p>
{% endfor %}
</section>
{% endfor %}
</body>
</html>
"""
FORMATS: dict[str, Callable[[list[Board]], str]] = {
    "table": _plain,
    "markdown": _markdown,
    "csv": _csv,
    "latex": _latex,
    "html": _html,
    "json": _json,
}
