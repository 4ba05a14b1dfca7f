"""The page of a leaderboard: one HTML file with tables that sort, pictures and galleries; it needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby

from jinja2 import Environment

from kdbench.report.board import Board
from kdbench.report.extra_tables import DETAILS
from kdbench.report.formats import alignment
from kdbench.report.page.captions import Picture, board_pictures, summary_pictures
from kdbench.report.page.gallery import Gallery
from kdbench.report.page.looks import Look, looks
from kdbench.report.summary import families, summaries
from kdbench.report.table import Table
from kdbench.report.views import of_board, of_families, of_summary, on_request


@dataclass(frozen=True)
class Section:
    """What stands under one heading. id: what the contents point to; group, short: under which they name it how.

    folded: tables that open on a click, by title. gallery: predictions; where they are missing, illustrated says that
    there could be some.
    """

    id: str
    group: str
    short: str
    conditions: str
    tables: Sequence[Table]
    folded: Sequence[tuple[str, Sequence[Table]]] = ()
    pictures: Sequence[Picture] = ()
    gallery: Gallery | None = None
    illustrated: bool = False


def to_html(boards: Sequence[Board], galleries: Mapping[int, Gallery]) -> str:
    """The page of boards. galleries: by the index of the board."""
    drawn = looks(boards)
    sections = [*_over_benchmarks(boards, drawn), *_boards(boards, galleries, drawn)]
    records = {path for board in boards for row in board.rows for path in row.paths.values()}
    settings = dict.fromkeys(board.setting for board in boards)
    return _render(sections, [f"{_counted(len(records), 'record')} on {_counted(len(boards), 'board')}", *settings])


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def tables_to_html(shown: Sequence[Table]) -> str:
    """The page of tables alone."""
    sections = [Section(f"t{i}", "Tables", table.title, table.conditions, [table]) for i, table in enumerate(shown)]
    return _render(sections, [])


def _render(sections: Sequence[Section], loaded: Sequence[str]) -> str:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(alignment=alignment, sort_key=sort_key)
    template = environment.from_string(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    contents = [(group, list(each)) for group, each in groupby(sections, lambda section: section.group)]
    return template.render(sections=sections, contents=contents, loaded=loaded) + "\n"


def _boards(boards: Sequence[Board], galleries: Mapping[int, Gallery], drawn: Mapping[str, Look]) -> Iterator[Section]:
    for index, board in enumerate(boards):
        more = on_request(board, DETAILS)
        yield Section(
            id=f"b{index}",
            group=f"{board.benchmark}: {board.title}",
            short=" → ".join(board.models),
            conditions=board.conditions,
            tables=of_board(board),
            folded=[(title, list(each)) for title, each in groupby(more, lambda table: table.title)],
            pictures=list(board_pictures(board, f"b{index}", drawn)),
            gallery=galleries.get(index),
            illustrated=True,
        )


def _over_benchmarks(boards: Sequence[Board], drawn: Mapping[str, Look]) -> Iterator[Section]:
    """The averages of every pair, then those of families."""
    found = summaries(boards)
    for index, summary in enumerate(found):
        yield Section(
            id=f"s{index}",
            group="Over benchmarks",
            short=" → ".join(summary.boards[0].models),
            conditions=summary.common.conditions,
            tables=of_summary(summary),
            pictures=list(summary_pictures(summary, f"s{index}", drawn)),
        )
    for index, each in enumerate(families(found)):
        table = of_families(each)
        yield Section(f"f{index}", "Over benchmarks", table.title, table.conditions, [table])


PREFIXES = {"m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21}
_NUMBER = re.compile(r"<?([+-]?\d[\d,]*\.?\d*)(?: ([mkMGTPEZ])(?:FLOP|B|s)?$|$|[ °*†‡§¶].*)")
_TIME = re.compile(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d)")


def sort_key(text: str) -> float | None:
    """The number that a cell begins with: +1.2 ± 0.3, <0.001, 3.2 TFLOP or 0:01:30 (in seconds); None of other text."""
    if time := _TIME.fullmatch(text):
        days, hours, minutes, seconds = (float(part or 0) for part in time.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if number := _NUMBER.fullmatch(text):
        return float(number[1].replace(",", "")) * PREFIXES[number[2] or ""]
    return None
