"""The pictures of a page: each figure with what it shows and how it is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.figure import Figure

from kdbench.report.board import Board
from kdbench.report.page import figures, heat, learning, radar
from kdbench.report.page.looks import BEST, SHOWN, Look
from kdbench.report.page.svg import inline
from kdbench.report.summary import Summary


@dataclass(frozen=True)
class Picture:
    """A figure of the page. text, conditions: its caption. wide: takes the page's width. folded: opens on a click."""

    title: str
    text: str
    conditions: str
    svg: Markup
    wide: bool = False
    folded: bool = False


def board_pictures(board: Board, prefix: str, looks: Mapping[str, Look]) -> Iterator[Picture]:
    """Those for which there are numbers. prefix: unique on the page."""

    def picture(name: str, figure: Figure, title: str, text: str, wide: bool = True, folded: bool = False) -> Picture:
        svg = Markup(inline(figure, f"{prefix}-{name}", f"{board.benchmark}: {title}"))
        return Picture(title, text, board.conditions, svg, wide, folded)

    alone = board.comparison.undistilled
    if board.comparison.to_undistilled:
        yield picture("d", figures.differences(board), f"Differences to {alone}", DIFFERENCES, wide=False)
    elif any(row.mean is not None for row in board.rows):
        yield picture("m", figures.means(board), "Means", MEANS, wide=False)
    if figures.priced(board, figures.measure(board)):
        yield picture("c", figures.costs(board, looks), "Scores and costs", COSTS, wide=False)
    if any(value is not None for row in board.rows for value in row.classes):
        yield picture("k", heat.heat_map(board), "IoU by class", _classes(board))
    if any(row.points.targets or row.points.source for row in board.rows):
        yield picture("p", learning.points(board, looks), "Curves", _curves(board))
    if learning.trained(board):
        yield picture("l", learning.losses(board), "Losses", LOSSES, folded=True)


def summary_pictures(summary: Summary, prefix: str, looks: Mapping[str, Look]) -> Iterator[Picture]:
    """The radar, where enough benchmarks span one."""
    if len(summary.boards) >= radar.AXES and radar.scores(summary):
        svg = Markup(inline(radar.radar(summary, looks), prefix, "Radar over benchmarks"))
        yield Picture("Radar over benchmarks", RADAR, summary.common.conditions, svg)


CHOSEN = f"With more than {SHOWN} methods, only the teacher, the undistilled student and the {BEST} best"
DIFFERENCES = (
    "Points of mIoU, mean of the targets, paired by seed; thick: 95 % over seeds (Student's t), thin: 95 % over images "
    "(bootstrap). Filled dots have a verdict, corrected for the number of methods; hollow ones have too few seeds."
)
MEANS = "Mean mIoU of the targets; lines: standard deviation over seeds."
COSTS = (
    "Mean mIoU of the targets against what the training took, all stages together. Solid line: the Pareto front; "
    "dashed: the teacher. Hollow: takes no part, because it has other seeds than the ranking."
)
LOSSES = (
    "Means over seeds of each term over tenths of each stage, one stage after the other; logarithmic. Each panel "
    "has its own scale: terms of different methods have different units. Zero and what is below it are not shown."
)
RADAR = (
    "Mean mIoU of each benchmark's targets in %. Each axis runs from the lowest value shown on it (inner ring) to the "
    "highest (outer ring), as written at its end: areas and distances from the centre have no meaning. "
    f"{CHOSEN} are shown."
)


def _classes(board: Board) -> str:
    about = "In %, means over seeds and over the targets whose labels show the class"
    if board.comparison.undistilled is None:
        return f"{about}."
    return (
        f"{about}. First line: IoU of {board.comparison.undistilled}; below: points that the others have more (blue) "
        f"or less (red), with full colour from {heat.colour_limit(board):.0f} points on. *: other seeds than "
        f"{board.comparison.undistilled} has, so that the difference of means is not paired."
    )


def _curves(board: Board) -> str:
    return (
        f"Mean mIoU at the kept points of the last stage, means over seeds. Left, solid: of the targets "
        f"({', '.join(board.columns)}); right, dashed: of the source's validation images "
        f"({', '.join(board.validated) or 'none'}). The last point is what the board shows. {CHOSEN} are in colour."
    )
