"""What boards show: each its ranking and differences, and what was asked for besides; several their averages."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from kdbench.report.board import Board, Scored, ranked
from kdbench.report.comparison import Comparison
from kdbench.report.differences import differences
from kdbench.report.extra_tables import DETAILS
from kdbench.report.old_statistics import ENOUGH
from kdbench.report.rows import Row
from kdbench.report.summary import Families, FamilyRow, Summary, SummaryRow, families, summaries
from kdbench.report.table import REFERENCE, Column, Table, label, make_table, number, plain, signed, signs, spread


def tables(boards: Sequence[Board], also: Collection[str] = ()) -> list[Table]:
    """Every board's own tables with those of DETAILS that are asked for, then those over several boards."""
    return [table for board in boards for table in (*of_board(board), *on_request(board, also))] + over_boards(boards)


def of_board(board: Board) -> list[Table]:
    """Its ranking and its differences."""
    found = differences(
        board.benchmark, board.conditions, board.rows, board.comparison, board.over_images, board.faults
    )
    return [_ranking(board), *found]


def on_request(board: Board, names: Collection[str]) -> list[Table]:
    """What DETAILS has under these names, in its own order."""
    return [table for name, make in DETAILS.items() if name in names for table in make(board)]


def over_boards(boards: Sequence[Board]) -> list[Table]:
    """The summaries of every pair, then those of families."""
    found = summaries(boards)
    return [table for each in found for table in of_summary(each)] + [of_families(each) for each in families(found)]


def of_summary(summary: Summary) -> list[Table]:
    """The averages over benchmarks and their differences."""
    title = f"{len(summary.boards)} benchmarks"
    return [_averages(summary), *differences(title, summary.common.conditions, summary.rows, summary.comparison)]


def _ranking(board: Board) -> Table:
    found, several = board.comparison, len(board.columns) != 1
    footnotes = {row.method: "; ".join(_footnotes(row, found)) for row in board.rows}
    marks = signs(footnotes.values())
    validated = f"source: {', '.join(board.validated)}" if board.validated else "source"
    columns: list[Column[Row]] = [
        *_rank(found),
        Column[Row]("method", lambda row: label(row) + marks.get(footnotes[row.method], "")),
        Column[Row]("seeds", lambda row: str(len(row.seeds))),
        Column[Row]("mean" if several else "".join(board.columns), _mean, lambda row: row.mean),
        *(_target(index, title) for index, title in enumerate(board.columns) if several),
        *([plain("worst", _worst)] if several else []),
        plain(validated, lambda row: row.source),
        plain("gap", lambda row: row.gap, better=-1),
    ]
    notes = [f"{sign} {footnote}" for footnote, sign in marks.items()]
    return make_table(
        columns,
        board.rows,
        ranked(board.rows, found),
        title=f"{board.benchmark}: {board.title}",
        conditions=board.conditions,
        about="mIoU in %, mean ± standard deviation over seeds; gap: source minus mean of targets",
        notes=(*notes, *_committed(board.rows), *_unranked(found)),
    )


def _rank(found: Comparison) -> list[Column[Scored]]:
    return [Column("rank", lambda row: str(found.ranks.get(row.method, "")))] if found.ranks else []


def _target(index: int, title: str) -> Column[Row]:
    return plain(title, lambda row: row.targets[index])


def _worst(row: Row) -> float | None:
    return row.worst


def _mean(row: Scored) -> str:
    return spread(row.mean, row.deviation)


def _footnotes(row: Row, found: Comparison) -> Iterator[str]:
    if row.footnote:
        yield row.footnote
    if row.scores and found.seeds and row.seeds != found.seeds:
        unranked = "" if row.role == "teacher" else ": not ranked"
        yield f"{_listed(row.seeds)} where the ranking has {_listed(found.seeds)}{unranked}"


def _listed(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _committed(rows: Iterable[Scored]) -> list[str]:
    return [f"{REFERENCE} committed reference"] if any(row.reference for row in rows) else []


def _unranked(found: Comparison) -> list[str]:
    if found.ranks or not (found.to_undistilled or found.to_best):
        return []
    return [f"Not ranked: ranks need {ENOUGH} paired seeds. The order is that of the means."]


def _averages(summary: Summary) -> Table:
    found, rows = summary.comparison, [row for row in summary.rows if row.mean is not None]
    columns: list[Column[SummaryRow]] = [
        *_rank(found),
        Column("method", label),
        Column[SummaryRow]("seeds", lambda row: str(len(row.seeds) or "")),
        Column[SummaryRow]("average", _mean, lambda row: row.mean),
        *(_source(index, name) for index, name in enumerate(summary.sources)),
        *([Column[SummaryRow]("mean rank", lambda row: number(row.ranks))] if found.ranks else []),
    ]
    sources = "; ".join(f"{name}: {', '.join(benchmarks)}" for name, benchmarks in summary.sources.items())
    return make_table(
        columns,
        rows,
        ranked(rows, found),
        title=f"{len(summary.boards)} benchmarks: average over {len(summary.sources)} sources",
        conditions=summary.common.conditions,
        about=f"mIoU in %, mean ± standard deviation over seeds. Benchmarks of one source count as one: {sources}",
        notes=(*_left_out(summary), *_committed(rows), *_unranked(found)),
    )


def _left_out(summary: Summary) -> list[str]:
    missing = [row.method for row in summary.rows if row.mean is None]
    return [f"Left out, since not all benchmarks have them: {', '.join(missing)}."] if missing else []


def _source(index: int, name: str) -> Column[SummaryRow]:
    return Column(name, lambda row: number(row.sources[index]), lambda row: row.sources[index])


def of_families(found: Families) -> Table:
    """The averages of families of pairs."""
    board = found.summaries[0].common
    columns = [Column[FamilyRow]("method", lambda row: row.method)]
    for index, name in enumerate(found.families):
        columns += _family(index, name)
    pairs = "; ".join(f"{name}: {', '.join(pairs)}" for name, pairs in found.families.items())
    rows = [row for row in found.rows if any(mean is not None for mean in row.means)]
    return make_table(
        columns,
        rows,
        {row.method for row in rows},
        title=f"{len(found.summaries[0].boards)} benchmarks: {' and '.join(found.families)}",
        conditions=board.setting,
        about=f"Average over sources in % and gain on the undistilled student, means over pairs. {pairs}",
    )


def _family(index: int, name: str) -> list[Column[FamilyRow]]:
    return [
        Column(name, lambda row: number(row.means[index]), lambda row: row.means[index]),
        Column(f"gain {name}", lambda row: signed(row.gains[index])),
    ]
