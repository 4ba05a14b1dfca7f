"""A board: which method did how well on one benchmark with one pair. A pure function of records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from kdbench.errors import KdbenchError, unknown
from kdbench.report.names import benchmark_title, domain_name, model_name
from kdbench.report.records import DomainResult, Record, Resolved, read_record, record_files
from kdbench.report.scores import domain_miou, domains

ROLES = ("teacher", "undistilled", "distilled")


@dataclass(frozen=True)
class Entry:
    """A record, and whether it comes from the committed folder."""

    record: Record
    reference: bool = False

    @property
    def cell(self) -> Resolved:
        """What was run."""
        return self.record.spec.resolved

    @property
    def pair(self) -> str:
        """As typed on the command line; the teacher's name alone for its own row."""
        return f"{self.cell.teacher}:{self.cell.student}" if self.cell.student else self.cell.teacher


class Loaded(NamedTuple):
    """What could be read, and one message for every file that could not."""

    entries: list[Entry]
    faults: list[str]


class Place(NamedTuple):
    """Records are compared only within one place. strays: domains that another world served than the cell's own."""

    protocol_id: str
    world: str
    benchmark: str
    label_fraction: str
    teacher: str
    strays: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Row:
    """A method's values, in percent and as means over its seeds; None where one is missing. gap: source minus mean."""

    method: str
    role: str
    seeds: tuple[int, ...]
    targets: tuple[float | None, ...]
    mean: float | None
    source: float | None
    gap: float | None
    parameters: int | None
    reference: bool
    remark: str


@dataclass(frozen=True)
class Board:
    """Rows that may be ranked together. Domains and title are named as displayed; worlds: of each domain."""

    protocol_id: str
    protocol: str
    world: str
    worlds: dict[str, str]
    benchmark: str
    label_fraction: str
    title: str
    pair: str
    family: str | None
    decoder: str
    zoo: str
    columns: tuple[str, ...]
    source: str
    rows: tuple[Row, ...]

    @property
    def models(self) -> tuple[str, ...]:
        """Teacher and student as displayed; the teacher alone where no student was run."""
        return tuple(model_name(name, self.zoo) for name in self.pair.split(":"))

    @property
    def caption(self) -> tuple[str, str, str]:
        """What was tested, under which conditions, and what the numbers are."""
        few = "" if self.label_fraction == "1" else f", {self.label_fraction} of the source's labels"
        who = " -> ".join(self.models) + (f" ({self.family})" if self.family else "")
        return (
            f"{self.benchmark}: {self.title}",
            f"{who}; world {self.world}, protocol {self.protocol_id}, decoder {self.decoder}{few}",
            "mIoU in %; gap: source minus mean of targets",
        )


def load(
    runs: Path,
    reference: Path | None,
    *,
    protocol: str | None = None,
    benchmarks: Iterable[str] | None = None,
    pairs: Iterable[str] | None = None,
) -> Loaded:
    """Records of both folders; a run's cell replaces the reference's. protocol: a name or an id. A teacher's own record
    comes with the pairs that are asked for."""
    cells: dict[Path, Entry] = {}
    faults: list[str] = []
    for folder, committed in ((reference, True), (runs, False)):
        for path in record_files(folder) if folder else ():
            try:
                record = read_record(path)
            except KdbenchError as error:
                faults.append(str(error))
            else:
                cells[record.path()] = Entry(record, committed)
    if not cells:
        raise _nothing([runs, reference], faults)
    return Loaded(_chosen(list(cells.values()), protocol, benchmarks, pairs), faults)


def boards(entries: Iterable[Entry]) -> list[Board]:
    """One board for every protocol id, world, benchmark and pair, in that order; see Place."""
    places: dict[Place, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        places[_place(entry)][entry.pair].append(entry)
    return [board for place in sorted(places) for board in _boards(place, places[place])]


def _nothing(folders: list[Path | None], faults: list[str]) -> KdbenchError:
    looked = " and ".join(str(folder) for folder in folders if folder)
    first = f" {len(faults)} could not be read; the first: {faults[0]}" if faults else ""
    return KdbenchError(
        f"no records in {looked}.{first} Make some with `kdbench run --method METHOD --pair TEACHER:STUDENT`, "
        "or name the folder that holds them with --results DIR."
    )


def _chosen(
    entries: list[Entry], protocol: str | None, benchmarks: Iterable[str] | None, pairs: Iterable[str] | None
) -> list[Entry]:
    if protocol is not None:
        _check("protocol", [protocol], {name for e in entries for name in (e.cell.protocol, e.cell.protocol_id)})
        entries = [e for e in entries if protocol in (e.cell.protocol, e.cell.protocol_id)]
    if benchmarks is not None:
        wanted = _check("benchmark", benchmarks, {e.cell.benchmark for e in entries})
        entries = [e for e in entries if e.cell.benchmark in wanted]
    if pairs is not None:
        wanted = _check("pair", pairs, {e.pair for e in entries})
        places = {_place(e) for e in entries if e.pair in wanted}
        entries = [e for e in entries if e.pair in wanted or (not e.cell.student and _place(e) in places)]
    return entries


def _check(kind: str, asked: Iterable[str], held: set[str]) -> set[str]:
    asked = list(asked)
    for name in asked:
        if name not in held:
            raise unknown(f"{kind} (in the records)", name, held, "Other names have to be run first: `kdbench run`.")
    return set(asked)


def _place(entry: Entry) -> Place:
    cell = entry.cell
    strays = sorted((domain.domain, domain.world) for domain in _domains(entry) if domain.world != cell.world)
    return Place(cell.protocol_id, cell.world, cell.benchmark, cell.label_fraction, cell.teacher, tuple(strays))


def _domains(entry: Entry) -> list[DomainResult]:
    return domains(entry.record, "target") + domains(entry.record, "source")


def _boards(place: Place, pairs: dict[str, list[Entry]]) -> Iterator[Board]:
    own = pairs.get(place.teacher, [])
    for pair in sorted(pairs.keys() - {place.teacher}) or [place.teacher]:
        yield _board(pair, own + (pairs[pair] if pair != place.teacher else []))


def _board(pair: str, entries: list[Entry]) -> Board:
    cell = entries[-1].cell
    targets, sources = _names(entries, "target"), _names(entries, "source")
    served = {domain.domain: domain.world for entry in entries for domain in _domains(entry)}
    shown = {name: domain_name(name, world) for name, world in served.items()}
    rows = [_row(group, targets, sources) for group in _methods(entries)]
    return Board(
        protocol_id=cell.protocol_id,
        protocol=cell.protocol,
        world=cell.world,
        worlds={shown[name]: world for name, world in served.items()},
        benchmark=cell.benchmark,
        label_fraction=cell.label_fraction,
        title=benchmark_title(cell.title, cell.world),
        pair=pair,
        family=cell.family,
        decoder=cell.decoder,
        zoo=cell.zoo,
        columns=tuple(shown[name] for name in targets),
        source=", ".join(shown[name] for name in sources),
        rows=tuple(sorted(rows, key=_rank)),
    )


def _names(entries: list[Entry], role: str) -> list[str]:
    """Every domain of the role in any of the records, in the benchmark's order."""
    return list(dict.fromkeys(domain.domain for entry in entries for domain in domains(entry.record, role)))


def _methods(entries: list[Entry]) -> Iterator[list[Entry]]:
    def label(entry: Entry) -> tuple[int, str]:
        return ROLES.index(entry.cell.role), _label(entry.cell)

    for _, group in groupby(sorted(entries, key=lambda entry: (label(entry), entry.cell.seed)), label):
        yield list(group)


def _label(cell: Resolved) -> str:
    return f"{cell.method}[{cell.variant}]" if cell.variant else cell.method


def _rank(row: Row) -> tuple[int, bool, float, str]:
    return ROLES.index(row.role), row.mean is None, -(row.mean or 0.0), row.method


def _row(seeds: list[Entry], targets: list[str], sources: list[str]) -> Row:
    scores = _scores(seeds)
    each = tuple(scores.get(name) for name in targets)
    mean, source = _mean(each), _mean([scores.get(name) for name in sources])
    parameters = {entry.record.result.parameters.get("deployed") for entry in seeds if entry.record.result}
    return Row(
        method=_label(seeds[0].cell),
        role=seeds[0].cell.role,
        seeds=tuple(entry.cell.seed for entry in seeds),
        targets=each,
        mean=mean,
        source=source,
        gap=None if mean is None or source is None else source - mean,
        parameters=parameters.pop() if len(parameters) == 1 else None,
        reference=all(entry.reference for entry in seeds),
        remark="; ".join(dict.fromkeys(_remarks(seeds))),
    )


def _scores(seeds: list[Entry]) -> dict[str, float | None]:
    """Each domain's mean over the seeds; nothing where their domains or knobs differ, or one of them failed."""
    seen = [{domain.domain: domain_miou(domain) for domain in _domains(entry)} for entry in seeds]
    if any(scores.keys() != seen[0].keys() for scores in seen) or _knobs_differ(seeds):
        return {}
    return {name: _mean([scores[name] for scores in seen]) for name in seen[0]}


def _knobs_differ(seeds: list[Entry]) -> bool:
    return any(entry.cell.knobs != seeds[0].cell.knobs for entry in seeds)


def _mean(values: Iterable[float | None]) -> float | None:
    """The plain mean, only where nothing is missing."""
    there = list(values)
    known = [value for value in there if value is not None and isfinite(value)]
    return sum(known) / len(known) if known and len(known) == len(there) else None


def _remarks(seeds: list[Entry]) -> Iterator[str]:
    yield from (entry.cell.remark for entry in seeds if entry.cell.remark)
    failed = [entry for entry in seeds if entry.record.status == "failed"]
    for entry in failed:
        reason = ((entry.record.error or "").strip().splitlines() or ["no reason recorded"])[0]
        yield f"{f'seed {entry.cell.seed} ' if len(seeds) > 1 else ''}failed: {reason}"
    if not failed and len({frozenset(domain.domain for domain in _domains(entry)) for entry in seeds}) > 1:
        yield "blank: its seeds were tested on different domains"
    if _knobs_differ(seeds):
        yield "blank: its seeds were run with different knobs"
    committed = [str(entry.cell.seed) for entry in seeds if entry.reference]
    if 0 < len(committed) < len(seeds):
        yield f"seed {', '.join(committed)}: reference"
