"""How a method is drawn: the same colour and marker in every figure of a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kdbench.report.board import Board, Scored, ranked
from kdbench.report.comparison import Comparison
from kdbench.report.page.svg import INK

# Okabe and Ito's colours as seaborn's "colorblind" has them, without those too pale for paper; INK is no method's.
COLOURS = ("#0173b2", "#d55e00", "#029e73", "#cc78bc", "#de8f05", "#56b4e9", "#949494")
BLUE, VERMILION = COLOURS[:2]
MARKERS = "os^Dv<P>"
SHOWN, BEST = 7, 5
"""Of more methods than SHOWN, figures with a line each bring out the references and the BEST."""


class Look(NamedTuple):
    """A colour and matplotlib's name of a marker."""

    colour: str
    marker: str


REFERENCES = {"teacher": Look(INK, "*"), "undistilled": Look(INK, "X")}


def looks(boards: Sequence[Board]) -> dict[str, Look]:
    """By method. Those that stand out on one board differ in colour, as far as there are colours."""
    held = {row.method: REFERENCES[row.role] for board in boards for row in board.rows if row.role in REFERENCES}
    for board in boards:
        best = leading(board.rows, board.comparison)
        for method in (*best, *(row.method for row in board.rows if row.method not in best)):
            if method not in held:
                held[method] = Look(_colour(held, best if method in best else []), MARKERS[len(held) % len(MARKERS)])
    return held


def _colour(held: Mapping[str, Look], beside: Sequence[str]) -> str:
    """What is rarest beside these methods, then on the page."""
    near = Counter(held[method].colour for method in beside if method in held)
    used = Counter(look.colour for look in held.values())
    return min(COLOURS, key=lambda colour: (near[colour], used[colour]))


def leading(rows: Sequence[Scored], found: Comparison) -> list[str]:
    """Who is brought out: all of a few methods, else the teacher, the undistilled student and the best.

    Those that compete on the board come before those with fewer seeds, whatever their means.
    """
    there = [row for row in rows if row.mean is not None]
    if len(there) <= SHOWN:
        return [row.method for row in there]
    references = [row.method for row in there if row.role == "teacher" or row.method == found.undistilled]
    competing = ranked(there, found)
    distilled = [row for row in there if row.role == "distilled"]
    distilled.sort(key=lambda row: (row.method not in competing, -(row.mean or 0.0)))
    return references + [row.method for row in distilled[:BEST]]
