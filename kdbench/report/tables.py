"""Tables as people read them: boards and summaries as columns of cells under a caption, whatever the format."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pandas as pd

from kdbench.metrics import domain_miou, domains, role_miou
from kdbench.names import amount, model_name
from kdbench.records import Record
from kdbench.report.boards import ORACLE, RULES, Board, Summary, summaries
from kdbench.report.statistics import ENOUGH, LEVEL, POWER, Comparison

SIGNS = "*†‡§¶"
REFERENCE = "°"
"""Marks a row of committed records."""
COVERED = f"{100 * (1 - LEVEL):.0f} %"
SHOWN_CLASSES = 2
METHODS_ACROSS = 7


@dataclass(frozen=True)
class TableCell:
    """A value, its deviation over seeds and both as displayed; words have no value.

    place: 1 for the best student of its column, 2 for the second, 0 for all others.
    """

    text: str
    value: float | None = None
    deviation: float | None = None
    place: int = 0


@dataclass(frozen=True)
class Column:
    """Cells under a title. words: read from the left and sorted by their text; else numbers."""

    title: str
    cells: tuple[TableCell, ...]
    words: bool = False


@dataclass(frozen=True)
class Table:
    """Columns of equal length. conditions: who was tested under what, which several tables share. about: what the
    numbers are."""

    title: str
    conditions: str
    about: str
    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()

    @property
    def header(self) -> tuple[str, ...]:
        """The titles of the columns."""
        return tuple(column.title for column in self.columns)

    @property
    def lines(self) -> tuple[tuple[TableCell, ...], ...]:
        """The cells, line by line."""
        return tuple(zip(*(column.cells for column in self.columns), strict=True))


def number(value: float | None) -> str:
    """Write one decimal, never a negative zero; nothing for what is missing."""
    return "" if _missing(value) else f"{value:z.1f}"


def signed(value: float | None) -> str:
    """Write one decimal with its sign."""
    text = number(value)
    return text if not text or text.startswith("-") or text == "0.0" else f"+{text}"


def signs(footnotes: Iterable[str]) -> dict[str, str]:
    """Give every footnote a sign: * to ¶, then the same doubled, and so on."""
    different = dict.fromkeys(footnote for footnote in footnotes if footnote)
    return {footnote: SIGNS[i % len(SIGNS)] * (1 + i // len(SIGNS)) for i, footnote in enumerate(different)}


def words(title: str, texts: Iterable[str]) -> Column:
    """Make a column of words."""
    return Column(title, tuple(map(TableCell, texts)), words=True)


def numbers(title: str, values: Iterable[float | None], text: Callable[[Any], str] = number) -> Column:
    """Make a column of numbers; text writes one that is there."""
    known = [None if _missing(value) else value for value in values]
    return Column(title, tuple(TableCell("" if value is None else text(value), value) for value in known))


def scores(
    title: str, values: pd.Series, ranked: pd.Series, deviations: pd.Series | None = None, better: int = 1
) -> Column:
    """Make a column of scores and mark the best two among `ranked`; better: 1 where more is better, -1 where less is.

    What is displayed is compared, so that equal numbers on the page share a mark.
    """
    shown = values.where(ranked).dropna().map(lambda value: round(value, 1))
    best = sorted(set(shown), reverse=better > 0)[:2] if len(shown) > 1 else []
    cells = []
    for method, value in values.items():
        spread = None if deviations is None or _missing(deviations[method]) else float(deviations[method])
        text = number(value) + ("" if spread is None else f" ± {number(spread)}")
        place = best.index(shown[method]) + 1 if method in shown.index and shown[method] in best else 0
        cells.append(TableCell(text, None if _missing(value) else float(value), spread, place))
    return Column(title, tuple(cells))


def _missing(value: float | None) -> bool:
    return value is None or value != value


def labels(rows: pd.DataFrame) -> list[str]:
    """Write each method with its role, where that is another than its name, and a sign where all of it is committed."""
    return [
        method + ("" if role in ("distilled", method) else f", {role}") + REFERENCE * reference
        for method, role, reference in zip(rows.index, rows.role, rows.reference, strict=True)
    ]


def tables(boards: Sequence[Board], also: Collection[str] = ()) -> list[Table]:
    """Every board's own tables with those of EXTRA that are asked for, then those over several boards."""
    own = [table for board in boards for table in (*board_tables(board), *extra_tables(board, also))]
    return own + [table for summary in summaries(boards) for table in board_tables(summary)]


def board_tables(held: Board | Summary) -> list[Table]:
    """The ranking of a board, or the averages of a summary, and the differences."""
    return [_ranking(held) if isinstance(held, Board) else _averages(held), *_differences(held)]


def extra_tables(board: Board, names: Collection[str]) -> list[Table]:
    """What EXTRA has under these names, in its own order."""
    return [table for name, make in EXTRA.items() if name in names for table in make(board)]


def _ranking(board: Board) -> Table:
    rows, several = board.rows, board.targets.shape[1] != 1
    footnotes = {method: "; ".join(_footnotes(method, board)) for method in rows.index}
    marks = signs(footnotes.values())
    named = [
        f"{label}{marks.get(footnotes[method], '')}" for method, label in zip(rows.index, labels(rows), strict=True)
    ]
    validated = f"source: {', '.join(board.validated)}" if board.validated else "source"
    mean = "mean" if several else "".join(board.targets.columns)
    notes = [f"{sign} {footnote}" for footnote, sign in marks.items()]
    return Table(
        f"{board.benchmark}: {board.title}",
        board.conditions,
        "mIoU in %, mean ± standard deviation over seeds; gap: source minus mean of targets",
        (
            *_rank(rows),
            words("method", named),
            numbers("seeds", rows.seeds.map(len), str),
            scores(mean, rows["mean"], rows.ranked, rows.deviation),
            *(scores(name, board.targets[name], rows.ranked) for name in board.targets if several),
            *([scores("worst", rows.worst, rows.ranked)] if several else []),
            scores(validated, rows.source, rows.ranked),
            scores("gap", rows.gap, rows.ranked, better=-1),
        ),
        (*notes, *_committed(rows), *_unranked(board.comparison), *board.notes),
    )


def _rank(rows: pd.DataFrame) -> list[Column]:
    return [numbers("rank", rows["rank"], lambda rank: f"{rank:.0f}")] if rows["rank"].notna().any() else []


def _footnotes(method: str, board: Board) -> Iterator[str]:
    row, seeds = board.rows.loc[method], board.comparison.seeds
    if row.footnote:
        yield row.footnote
    if not _missing(row["mean"]) and seeds and row.seeds != seeds:
        unranked = "" if row.role == "teacher" else ": not ranked"
        yield f"{_listed(row.seeds)} where the ranking has {_listed(seeds)}{unranked}"


def _listed(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _committed(rows: pd.DataFrame) -> list[str]:
    return [f"{REFERENCE} committed reference"] if rows.reference.any() else []


def _unranked(found: Comparison) -> list[str]:
    if len(found.ranks) or (found.to_baseline.empty and found.to_best.empty):
        return []
    return [f"Not ranked: ranks need {ENOUGH} paired seeds. The order is that of the means."]


def _averages(summary: Summary) -> Table:
    rows = summary.rows[summary.rows["mean"].notna()]
    sources = "; ".join(f"{name}: {', '.join(benchmarks)}" for name, benchmarks in summary.benchmarks.items())
    missing = ", ".join(summary.rows.index[summary.rows["mean"].isna()])
    return Table(
        f"{summary.name}: average over {len(summary.benchmarks)} sources",
        summary.common.conditions,
        f"mIoU in %, mean ± standard deviation over seeds. Benchmarks of one source count as one: {sources}",
        (
            *_rank(rows),
            words("method", labels(rows)),
            numbers("seeds", rows.seeds.map(len), str),
            scores("average", rows["mean"], rows.ranked, rows.deviation),
            *(scores(name, summary.sources[name][rows.index], rows.ranked) for name in summary.sources),
            *([numbers("mean rank", rows.mean_rank)] if _rank(rows) else []),
        ),
        (
            *([f"Left out, since not all benchmarks have them: {missing}."] if missing else []),
            *_committed(rows),
            *_unranked(summary.comparison),
        ),
    )


def _differences(board: Board | Summary) -> Iterator[Table]:
    """A line for every student that is compared with another; no table where there is none."""
    found = board.comparison
    rows = board.rows[board.rows.index.isin(found.to_baseline.index.union(found.to_best.index))]
    if rows.empty:
        return
    to_baseline, to_best = found.to_baseline.reindex(rows.index), found.to_best.reindex(rows.index)
    over_images, faults = (board.over_images, board.faults) if isinstance(board, Board) else (pd.DataFrame(), ())
    to = f"{found.baseline}, the undistilled student" if found.baseline else "the best"
    columns = [words("method", labels(rows))]
    if len(found.to_baseline):
        columns.append(numbers("difference", to_baseline.value, signed))
        if to_baseline.low.notna().any():
            columns.append(_intervals(f"{COVERED} over seeds (df)", to_baseline, to_baseline.df))
    if len(over_images):
        columns.append(_intervals(f"{COVERED} over images", over_images.reindex(rows.index)))
    columns += _tested(to_baseline)
    if len(found.to_best):
        columns += [numbers("to the best", to_best.value, signed), *_tested(to_best)]
    if len(found.gap_recovered):
        recovered = found.gap_recovered.reindex(rows.index)
        columns.append(numbers("gap recovered", recovered, lambda value: f"{value:z.0f} %"))
    damage = f"{len(faults)} of the files of counts by image cannot be used; the first: " if faults else ""
    yield Table(
        f"{board.name}: differences to {to}",
        board.common.conditions,
        "; ".join(_about_differences(found, len(over_images) > 0)),
        tuple(columns),
        (*_notes(found, board), *(damage + fault for fault in faults[:1])),
    )


def _intervals(title: str, found: pd.DataFrame, df: pd.Series | None = None) -> Column:
    free = [""] * len(found) if df is None else [f" ({value:.0f})" for value in df.fillna(0)]
    return Column(
        title,
        tuple(
            TableCell("") if _missing(low) else TableCell(f"{signed(low)} to {signed(high)}{each}", float(low))
            for low, high, each in zip(found.low, found.high, free, strict=True)
        ),
    )


def _tested(found: pd.DataFrame) -> Iterator[Column]:
    """p and verdict, where any difference has one."""
    if found.p.notna().any():
        yield numbers("p", found.p, lambda p: "<0.001" if p < 0.001 else f"{p:.3f}")
    if (found.verdict.dropna() != "not resolvable").any():
        yield words("verdict", found.verdict.fillna(""))


def _about_differences(found: Comparison, images: bool) -> Iterator[str]:
    yield "Points of mIoU, paired by seed"
    if found.to_baseline.low.notna().any():
        yield "over seeds: Student's t with its degrees of freedom"
    if images:
        yield "over images: bootstrap, for these trained models"
    if found.to_baseline.p.notna().any() or found.to_best.p.notna().any():
        yield "p: two-sided, corrected by Holm" + ", to the best by Bonferroni over all pairs" * bool(
            len(found.to_best)
        )
    if len(found.to_best):
        yield f"the best: {found.best}"
    if len(found.gap_recovered):
        yield "gap recovered: share of the teacher's advantage"


def _notes(found: Comparison, board: Board | Summary) -> Iterator[str]:
    resolved = (pd.concat([found.to_baseline.verdict, found.to_best.verdict]) != "not resolvable").any()
    if not resolved:
        yield f"Not resolvable: a verdict needs {ENOUGH} paired seeds."
    if found.minimum:
        difference, seeds, compared = found.minimum
        yield (
            f"{seeds} paired seeds with this scatter {'resolve' if resolved else 'would resolve'} differences to "
            f"{found.baseline} of {difference:.1f} points and more (power {POWER:.0%}, level {LEVEL:.0%}, "
            f"Holm's worst case of {compared} comparisons)."
        )
    teacher = board.rows["mean"][board.rows.role == "teacher"].notna().any()
    if found.baseline and found.gap_recovered.empty and teacher:
        yield f"No gap to recover: the teacher is not found ahead of {found.baseline}."


def _class_tables(board: Board) -> Iterator[Table]:
    """Pixels and gains, then a line a class, over several tables where there are many methods."""
    yield _gains(board)
    known = board.rows[board.rows["mean"].notna()]
    for start in range(0, len(known), METHODS_ACROSS):
        across = known.iloc[start : start + METHODS_ACROSS]
        yield Table(
            f"{board.benchmark}: IoU by class",
            board.conditions,
            "In %, means over seeds and over the targets whose labels show the class",
            (
                words("class", board.classes.columns),
                *(
                    numbers(label, board.classes.loc[method])
                    for method, label in zip(across.index, labels(across), strict=True)
                ),
            ),
        )


def _gains(board: Board) -> Table:
    """Right pixels, parameters, and the classes that gained and lost most against the baseline."""
    rows, baseline = board.rows, board.comparison.baseline
    columns = [
        words("method", labels(rows)),
        scores("pixels right", rows.accuracy, rows.ranked),
        numbers("params", rows.parameters, lambda count: f"{count / 1e6:.2f} M"),
    ]
    if baseline:
        same = (rows.seeds == rows.seeds[baseline]) & (rows.index != baseline)
        changes = (board.classes - board.classes.loc[baseline]).where(same, axis=0)
        columns += [words("largest gains", _extremes(changes)), words("largest losses", _extremes(changes, -1))]
    to = f"; gains and losses: of the IoU of classes, to {baseline}, over the same seeds" if baseline else ""
    about = f"In %, means over seeds and targets{to}"
    return Table(f"{board.benchmark}: pixels and classes", board.conditions, about, tuple(columns))


def _extremes(changes: pd.DataFrame, sign: int = 1) -> Iterator[str]:
    """Name each method's classes with the largest changes of this sign."""
    for _, row in changes.iterrows():
        first = (sign * row.dropna()).sort_values(ascending=False, kind="stable")[:SHOWN_CLASSES]
        yield ", ".join(f"{name} {signed(sign * change)}" for name, change in first.items() if change > 0)


def _selection_tables(board: Board) -> Iterator[Table]:
    """The same runs under every rule that selects one of their snapshots."""
    chosen, nobody = board.selection, pd.Series(False, board.rows.index)

    def by(rule: str, column: str) -> pd.Series:
        rows = pd.MultiIndex.from_product([board.rows.index, [rule]])
        return chosen[column].reindex(rows).droplevel(1).astype(float)

    yield Table(
        f"{board.benchmark}: rules of selection",
        board.conditions,
        "Mean mIoU of the targets in %, of one of each run's snapshots: the last, which boards use; the best on the "
        "source's validation images; the oracle, the best on the targets themselves: an upper bound. "
        "The oracle's gap: what it has over the last",
        (
            words("method", labels(board.rows)),
            *(scores(rule, by(rule, "mean"), nobody, by(rule, "deviation")) for rule in RULES),
            numbers("oracle's gap", by(ORACLE, "mean") - by(RULES[0], "mean"), signed),
        ),
    )


def _cost_tables(board: Board) -> Iterator[Table]:
    """What training and inference take, and whom nobody beats in score and training at once."""
    rows = board.rows

    def cost(title: str, values: pd.Series, unit: str = "") -> Column:
        return numbers(title, values, lambda value: amount(value, unit))

    columns = (
        words("method", labels(rows)),
        scores("mean", rows["mean"], pd.Series(False, rows.index)),
        words("Pareto", rows.pareto.map({True: "yes", False: ""})),
        cost("student forwards", rows.student_forwards),
        cost("training", rows.train_flops, "FLOP"),
        numbers("time", rows.train_seconds, lambda seconds: str(timedelta(seconds=round(seconds)))),
        cost("memory", rows.memory_mb * 2**20, "B"),
        cost("params", rows.parameters),
        cost("inference", rows.inference_flops, "FLOP"),
        cost("latency", rows.latency_ms / 1000, "s"),
    )
    yield Table(
        f"{board.benchmark}: costs",
        board.conditions,
        "Mean mIoU of the targets in %; means over seeds of all stages together, wherever they were computed; "
        "Pareto: no other ranked student is as good in mean and training and better in one of them. Inference: an "
        "image through what is deployed. Operations: a product with its sum counts as two. What no record tells is "
        "left out",
        tuple(column for column in columns if any(cell.text for cell in column.cells)),
    )


EXTRA: dict[str, Callable[[Board], Iterator[Table]]] = {
    "classes": _class_tables, "selection": _selection_tables, "costs": _cost_tables,
}  # fmt: skip
"""What can be asked for."""


def result_line(record: Record, cached: bool) -> str:
    """Write a cell on a line: benchmark, pair, method, mean mIoU, that of every target, the source's, and the time."""
    cell = record.spec.resolved
    teacher, student = (model_name(name, cell.model_set) if name else "-" for name in (cell.teacher, cell.student))
    head = f"{cell.benchmark:<7} {teacher} -> {student:<13} {cell.id.label:<16} seed {cell.seed}"
    if record.result is None:
        return (
            f"{head}  FAILED: {record.error}" if record.error else f"{head}  stopped after {record.run.seconds:.0f} s"
        )
    each = " ".join(f"{domain_miou(domain):5.1f}" for domain in domains(record, "target"))
    source = f"  source {role_miou(record, 'source'):5.1f}" if domains(record, "source") else ""
    time = "done before" if cached else f"{record.run.seconds:.0f} s"
    return f"{head}  mIoU {role_miou(record, 'target'):5.1f} ({each}){source}  {time}"
