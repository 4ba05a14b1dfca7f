"""The HTML page of a leaderboard: one file with sortable tables, figures and predictions that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby

from jinja2 import Environment
from matplotlib.figure import Figure

from kdbench.report import figures
from kdbench.report.boards import Board, Summary, summaries
from kdbench.report.frame import loss_frame
from kdbench.report.html.gallery import Gallery, make_gallery
from kdbench.report.tables import EXTRA, Table, board_tables, extra_tables


@dataclass(frozen=True)
class Illustration:
    """A figure as a data: URI with its caption. wide: takes the page's width. folded: opens on a click."""

    title: str
    text: str
    uri: str
    wide: bool = True
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """What stands under one heading.

    id: what the contents point to, under `group` by the name `short`. folded: tables that open on a click, by title.
    hint: say how a gallery is made where there is none.
    """

    id: str
    group: str
    short: str
    conditions: str
    tables: Sequence[Table]
    folded: Sequence[tuple[str, Sequence[Table]]] = ()
    illustrations: Sequence[Illustration] = ()
    gallery: Gallery | None = None
    hint: bool = False


def to_html(found: Sequence[Board], include_images: bool = False) -> str:
    """Return the page of boards.

    include_images: also show images of real data sets.
    """
    sections = [*_summary_sections(found), *_board_sections(found, include_images)]
    records = {cell for board in found for cell in board.frame["cell"]}
    loaded = f"{_counted(len(records), 'record')} on {_counted(len(found), 'board')}"
    return _render(sections, [loaded, *dict.fromkeys(board.setting for board in found)])


def tables_to_html(shown: Sequence[Table]) -> str:
    """Return the page of tables alone."""
    sections = [Section(f"t{i}", "Tables", table.title, table.conditions, [table]) for i, table in enumerate(shown)]
    return _render(sections, [])


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _render(sections: Sequence[Section], loaded: Sequence[str]) -> str:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    contents = [(group, list(each)) for group, each in groupby(sections, lambda section: section.group)]
    return template.render(sections=sections, contents=contents, loaded=loaded) + "\n"


def _board_sections(found: Sequence[Board], include_images: bool) -> Iterator[Section]:
    for index, board in enumerate(found):
        more = extra_tables(board, EXTRA)
        yield Section(
            id=f"b{index}",
            group=f"{board.benchmark}: {board.title}",
            short=" → ".join(board.models),
            conditions=board.conditions,
            tables=board_tables(board),
            folded=[(title, list(each)) for title, each in groupby(more, lambda table: table.title)],
            illustrations=list(_board_figures(board)),
            gallery=make_gallery(board.frame, list(board.rows.index), include_images),
            hint=True,
        )


def _summary_sections(found: Sequence[Board]) -> Iterator[Section]:
    for index, summary in enumerate(summaries(found)):
        yield Section(
            id=f"s{index}",
            group="Over benchmarks",
            short=" → ".join(summary.common.models),
            conditions=summary.common.conditions,
            tables=board_tables(summary),
            illustrations=list(_summary_figures(summary)),
        )


def _board_figures(board: Board) -> Iterator[Illustration]:
    """Yield the figures for which there are numbers; methods whose row is blank are left out."""
    roles, baseline = board.rows.role[board.rows["mean"].notna()], board.comparison.baseline
    if roles.empty:
        return
    dots = figures.score_dots({board.benchmark: board.scores}, roles, baseline)
    yield _illustration(dots, "Scores", SCORES, wide=False)
    costs = figures.training_costs(board.rows)
    if len(costs):
        yield _illustration(figures.cost_scatter(board.rows, costs), "Scores and costs", COSTS, wide=False)
    yield _illustration(figures.class_heat_map(board.classes.loc[roles.index], baseline), "IoU by class", CLASSES)
    yield _illustration(figures.snapshot_curves(board.snapshots, roles), "Snapshots", SNAPSHOTS)
    losses = loss_frame(board.frame)
    if losses.label.isin(roles.index).any():
        yield _illustration(figures.loss_curves(losses, list(roles.index)), "Losses", LOSSES, folded=True)


def _summary_figures(summary: Summary) -> Iterator[Illustration]:
    roles = summary.rows.role[summary.rows["mean"].notna()]
    if len(roles):
        scores = {board.benchmark: board.scores for board in summary.boards}
        dots = figures.score_dots(scores, roles, summary.comparison.baseline)
        yield _illustration(dots, "Scores by benchmark", f"{SCORES} Each panel has its own scale.")


def _illustration(figure: Figure, title: str, text: str, wide: bool = True, folded: bool = False) -> Illustration:
    uri = f"data:image/svg+xml;base64,{base64.b64encode(figures.to_svg(figure)).decode()}"
    return Illustration(title, text, uri, wide, folded)


SCORES = (
    "Mean mIoU of the targets. Dots and lines: mean and standard deviation over seeds; grey dots: the seeds. "
    "The vertical line is the mean of the undistilled student."
)
COSTS = (
    "Mean mIoU of the targets against what the training took, all stages together. The step line joins the Pareto "
    "front of the methods that have the ranking's seeds. Named are these and the undistilled student."
)
CLASSES = (
    "Means over seeds and over the targets whose labels show the class. With an undistilled student the first line is "
    "its IoU in %, and colours are points more (blue) or less (red); the table of classes below has the numbers."
)
SNAPSHOTS = (
    "Mean mIoU at the snapshots of the last stage, means over seeds; boards show the last one. In colour: the teacher, "
    "the undistilled student and the best distilled ones."
)
LOSSES = (
    "Means over seeds of each term over tenths of each stage, one stage after the other. Each panel has its own "
    "logarithmic scale: terms of different methods have different units."
)
