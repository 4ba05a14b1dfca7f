"""Which records a board is made of: those of both folders, and what may stand on one board."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kdbench.errors import KdbenchError, unknown
from kdbench.metrics import domains
from kdbench.records import DomainResult, Record, Resolved, read_record, record_files


@dataclass(frozen=True)
class Entry:
    """A record, whether it comes from the committed folder, and its file where it was read from one."""

    record: Record
    reference: bool = False
    path: Path | None = None

    @property
    def cell(self) -> Resolved:
        """What was run."""
        return self.record.spec.resolved

    @property
    def pair(self) -> str:
        """As typed on the command line; the teacher's name alone for its own row."""
        return f"{self.cell.teacher}:{self.cell.student}" if self.cell.student else self.cell.teacher

    @property
    def label(self) -> str:
        """The method with its variant, as boards show it."""
        return f"{self.cell.method}[{self.cell.variant}]" if self.cell.variant else self.cell.method

    @property
    def domains(self) -> list[DomainResult]:
        """The targets, then the sources; none of a failed record."""
        return domains(self.record, "target") + domains(self.record, "source")

    @property
    def place(self) -> Place:
        """Where it is ranked."""
        cell = self.cell
        strays = sorted(
            (domain.domain, domain.data_source) for domain in self.domains if domain.data_source != cell.data_source
        )
        return Place(
            cell.protocol_id,
            cell.data_source,
            cell.benchmark,
            cell.label_fraction,
            cell.teacher,
            tuple(cell.classes),
            tuple(strays),
        )


class Place(NamedTuple):
    """Records are compared only within one place. strays: domains that another world served than the cell's own."""

    protocol_id: str
    data_source: str
    benchmark: str
    label_fraction: str
    teacher: str
    classes: tuple[str, ...]
    strays: tuple[tuple[str, str], ...]


class Loaded(NamedTuple):
    """What could be read, and one message for every file that could not."""

    entries: list[Entry]
    faults: list[str]


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
    loaded = read(runs, reference)
    if not loaded.entries:
        raise _nothing([runs, reference], loaded.faults)
    return Loaded(_chosen(loaded.entries, protocol, benchmarks, pairs), loaded.faults)


def read(runs: Path, reference: Path | None) -> Loaded:
    """The same without a choice; no record at all is no error."""
    cells: dict[Path, Entry] = {}
    faults: list[str] = []
    for folder, committed in ((reference, True), (runs, False)):
        for path in record_files(folder) if folder else ():
            try:
                record = read_record(path)
            except KdbenchError as error:
                faults.append(str(error))
            else:
                cells[record.path()] = Entry(record, committed, path)
    return Loaded(list(cells.values()), faults)


def _nothing(folders: list[Path | None], faults: list[str]) -> KdbenchError:
    looked = " and ".join(str(folder) for folder in folders if folder)
    first = f" {len(faults)} could not be read; the first: {faults[0]}" if faults else ""
    return KdbenchError(
        f"no records in {looked}.{first} Make some with `kdbench run --method METHOD --pair TEACHER:STUDENT`, "
        "or name the folder that holds them with --results DIR."
    )


def _protocol_names(cell: Resolved) -> tuple[str, str]:
    return cell.protocol, cell.protocol_id


def _chosen(
    entries: list[Entry], protocol: str | None, benchmarks: Iterable[str] | None, pairs: Iterable[str] | None
) -> list[Entry]:
    if protocol is not None:
        _check("protocol", [protocol], {name for e in entries for name in _protocol_names(e.cell)})
        entries = [e for e in entries if protocol in _protocol_names(e.cell)]
    if benchmarks is not None:
        wanted = _check("benchmark", benchmarks, {e.cell.benchmark for e in entries})
        entries = [e for e in entries if e.cell.benchmark in wanted]
    if pairs is not None:
        wanted = _check("pair", pairs, {e.pair for e in entries})
        places = {e.place for e in entries if e.pair in wanted}
        entries = [e for e in entries if e.pair in wanted or (not e.cell.student and e.place in places)]
    return entries


def _check(kind: str, asked: Iterable[str], held: set[str]) -> set[str]:
    asked = list(asked)
    for name in asked:
        if name not in held:
            raise unknown(f"{kind} (in the records)", name, held, "Other names have to be run first: `kdbench run`.")
    return set(asked)
