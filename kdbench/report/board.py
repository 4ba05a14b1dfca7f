"""A board: which method did how well on one benchmark with one pair, as a function of records and side files."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from kdbench.errors import KdbenchError
from kdbench.metrics import domains
from kdbench.names import benchmark_title, domain_name, model_name
from kdbench.report.comparison import Comparison, Difference, compare
from kdbench.report.costs import pareto
from kdbench.report.entries import Entry, Place
from kdbench.report.images import Resampled, interval, read_targets
from kdbench.report.old_statistics import Interval
from kdbench.report.rows import Row, make_row

MODELS = ("teacher", "undistilled", "distilled")


@dataclass(frozen=True)
class OldBoard:
    """Rows that may be ranked together. Domains and title are named as displayed; worlds: of each domain.

    columns: the targets. sources: what was trained on. validated: those of them that were tested on as well.
    over_images: intervals of the differences to the undistilled student, by method. faults: side files that cannot be
    used for them.
    """

    protocol_id: str
    protocol: str
    data_source: str
    data_sources: Mapping[str, str]
    benchmark: str
    label_fraction: str
    title: str
    pair: str
    family: str | None
    decoder: str
    model_set: str
    columns: tuple[str, ...]
    validated: tuple[str, ...]
    sources: tuple[str, ...]
    classes: tuple[str, ...]
    rows: tuple[Row, ...]
    comparison: Comparison
    over_images: Mapping[str, Interval]
    faults: tuple[str, ...]

    @property
    def models(self) -> tuple[str, ...]:
        """Teacher and student as displayed; the teacher alone where no student was run."""
        return tuple(model_name(name, self.model_set) for name in self.pair.split(":"))

    @property
    def setting(self) -> str:
        """In which world, under which protocol."""
        few = "" if self.label_fraction == "1" else f", {self.label_fraction} of the source's labels"
        return f"world {self.data_source}, protocol {self.protocol_id}, decoder {self.decoder}{few}"

    @property
    def conditions(self) -> str:
        """Who was tested, and the setting."""
        return " -> ".join(self.models) + (f" ({self.family})" if self.family else "") + f"; {self.setting}"

    @property
    def front(self) -> set[str]:
        """The students that no other of those that compete beats at once in mean and in operations of training."""
        competing = ranked(self.rows, self.comparison)
        return pareto(row for row in self.rows if row.method in competing)


Board = OldBoard


def boards(entries: Iterable[Entry]) -> list[Board]:
    """One board for every protocol id, world, benchmark and pair, in that order; see Place."""
    places: dict[Place, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        places[entry.place][entry.pair].append(entry)
    return [board for place in sorted(places) for board in _boards(place, places[place])]


class Scored(Protocol):
    """What can be compared: a row of a board, or of a summary."""

    @property
    def method(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def reference(self) -> bool: ...
    @property
    def seeds(self) -> tuple[int, ...]: ...
    @property
    def scores(self) -> Mapping[int, float]: ...
    @property
    def mean(self) -> float | None: ...
    @property
    def deviation(self) -> float | None: ...


def compare_rows(rows: Iterable[Scored]) -> Comparison:
    """A board's findings. Compared with is the first undistilled row, one without a variant before all others."""
    rows = list(rows)
    students = {row.method: row.scores for row in rows if row.role != "teacher" and row.scores}
    alone = [row.method for row in rows if row.role == "undistilled" and row.method in students]
    teacher = next((row.scores for row in rows if row.role == "teacher"), {})
    return compare(students, min(alone, key=lambda method: "[" in method, default=None), teacher)


def ranked(rows: Iterable[Scored], found: Comparison) -> set[str]:
    """The students that compete for a rank or a mark: those with the board's seeds."""
    return {row.method for row in rows if row.role != "teacher" and row.scores and tuple(row.scores) == found.seeds}


def _boards(place: Place, pairs: dict[str, list[Entry]]) -> Iterator[Board]:
    own = pairs.get(place.teacher, [])
    for pair in sorted(pairs.keys() - {place.teacher}) or [place.teacher]:
        yield _board(pair, own + (pairs[pair] if pair != place.teacher else []))


def _board(pair: str, entries: list[Entry]) -> Board:
    cell = entries[-1].cell
    targets, sources = _names(entries, "target"), _names(entries, "source")
    served = {domain.domain: domain.data_source for entry in entries for domain in entry.domains}
    shown = {name: domain_name(name, data_source) for name, data_source in served.items()}
    methods = {group[0].label: group for group in _methods(entries)}
    weights = _weights(entries)
    rows = sorted((make_row(group, targets, sources, weights) for group in methods.values()), key=_order)
    comparison = compare_rows(rows)
    over_images, faults = _over_images(comparison, methods)
    return Board(
        protocol_id=cell.protocol_id,
        protocol=cell.protocol,
        data_source=cell.data_source,
        data_sources={shown[name]: data_source for name, data_source in served.items()},
        benchmark=cell.benchmark,
        label_fraction=cell.label_fraction,
        title=benchmark_title(cell.title, cell.data_source),
        pair=pair,
        family=cell.family,
        decoder=cell.decoder,
        model_set=cell.model_set,
        columns=tuple(shown[name] for name in targets),
        validated=tuple(shown[name] for name in sources),
        sources=_trained(entries) or tuple(shown[name] for name in sources),
        classes=tuple(cell.classes),
        rows=tuple(rows),
        comparison=comparison,
        over_images=over_images,
        faults=faults,
    )


def _weights(entries: list[Entry]) -> dict[str, str]:
    """The weights that most of the records began with, by model; of equally many the first by name."""
    began: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        for model, weights in entry.cell.weights.items():
            began[model].append(weights)
    return {model: Counter(sorted(weights)).most_common(1)[0][0] for model, weights in began.items()}


def _names(entries: list[Entry], role: str) -> list[str]:
    """Every domain of the role in any of the records, in the benchmark's order."""
    return list(dict.fromkeys(domain.domain for entry in entries for domain in domains(entry.record, role)))


def _trained(entries: list[Entry]) -> tuple[str, ...]:
    """The domains of a last stage, which trains on the source images, labelled or not: the benchmark's sources."""
    stages = next((entry.record.result.stages for entry in entries if entry.record.result), [])
    return tuple(domain_name(name, data_source) for name, data_source in stages[-1].data.items()) if stages else ()


def _methods(entries: list[Entry]) -> Iterator[list[Entry]]:
    def label(entry: Entry) -> tuple[int, str]:
        return MODELS.index(entry.cell.role), entry.label

    for _, group in groupby(sorted(entries, key=lambda entry: (label(entry), entry.cell.seed)), label):
        yield list(group)


def _order(row: Row) -> tuple[int, bool, float, str]:
    return MODELS.index(row.role), row.mean is None, -(row.mean or 0.0), row.method


def _over_images(
    comparison: Comparison, methods: dict[str, list[Entry]]
) -> tuple[dict[str, Interval], tuple[str, ...]]:
    """The intervals over images of all differences to the undistilled student, and what is wrong with side files."""
    if comparison.undistilled is None:
        return {}, ()
    faults: list[str] = []

    def drawn(method: str) -> dict[int, dict[str, Resampled] | None]:
        return {entry.cell.seed: _drawn(entry, faults) for entry in methods[method]}

    def found(method: str, difference: Difference) -> Interval | None:
        ours = drawn(method)
        return interval([ours[seed] for seed in difference.seeds], [theirs[seed] for seed in difference.seeds])

    theirs = drawn(comparison.undistilled)
    intervals = {method: found(method, each) for method, each in comparison.to_undistilled.items()}
    return {method: each for method, each in intervals.items() if each}, tuple(faults)


def _drawn(entry: Entry, faults: list[str]) -> dict[str, Resampled] | None:
    try:
        return read_targets(entry.path, entry.record) if entry.path else None
    except KdbenchError as error:
        faults.append(str(error))
        return None
