"""`kdbench check`: what a project's CI gates on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kdbench.errors import KdbenchError
from kdbench.report.records import Record, read_record, record_files
from kdbench.report.scores import domain_miou

PINNED = "smoke"
TOLERANCE = 3.0
"""mIoU points by which a smoke cell may differ on another machine or with other library versions: a smoke cell learns
next to nothing, and sums that are added in another order move a few of its pixels."""


@dataclass(frozen=True)
class Gate:
    """One check's outcome."""

    name: str
    passed: bool
    detail: str


def gates(results: Path, reference: Path | None) -> Iterator[Gate]:
    """Every gate in order."""
    folders = [folder for folder in (results, reference) if folder is not None and folder.is_dir()]
    yield _records_validate(folders)
    pinned = [] if reference is None else [_read(path) for path in record_files(reference)]
    smoke = [record for record in pinned if record is not None and _is_pin(record)]
    if not smoke:
        yield Gate("pinned cells agree", False, f"no pinned {PINNED} record under {reference}; nothing was compared")
    for record in smoke:
        yield _rerun_agrees(record)


def _records_validate(folders: list[Path]) -> Gate:
    files = [path for folder in folders for path in record_files(folder)]
    faults = []
    for path in files:
        try:
            read_record(path)
        except KdbenchError as error:
            faults.append(str(error))
    where = ", ".join(map(str, folders)) or "no folder"
    detail = "; ".join(faults) if faults else f"{len(files)} records under {where}"
    return Gate("every record validates", not faults, detail)


def _read(path: Path) -> Record | None:
    try:
        return read_record(path)
    except KdbenchError:
        return None


def _is_pin(record: Record) -> bool:
    """A smoke cell of a method; a teacher's own row has no request of its own that could be run again."""
    return record.spec.resolved.protocol == PINNED and record.spec.resolved.student is not None


def _rerun_agrees(pinned: Record) -> Gate:
    cell = pinned.spec.resolved
    name = f"pinned {cell.benchmark} {cell.teacher}:{cell.student} {cell.method}{cell.variant and '@' + cell.variant}"
    try:
        fresh = _rerun(pinned)
    except KdbenchError as error:
        return Gate(name, False, str(error))
    if pinned.result is None or fresh.result is None:
        return Gate(name, False, f"the cell failed: {fresh.error or pinned.error}")
    if [d.domain for d in pinned.result.domains] != [d.domain for d in fresh.result.domains]:
        return Gate(name, False, "the benchmark's domains are others than the pin's; pin again")
    if _same_machine(pinned, fresh):
        same = pinned.result.model_dump_json() == fresh.result.model_dump_json()
        return Gate(name, same, "identical result" if same else "the result differs in an equal environment")
    worst = max(
        abs(domain_miou(a) - domain_miou(b)) for a, b in zip(pinned.result.domains, fresh.result.domains, strict=True)
    )
    return Gate(
        name, worst <= TOLERANCE, f"other environment: mIoU within {worst:.2f} of the pin (allowed {TOLERANCE})"
    )


def _rerun(pinned: Record) -> Record:
    """The pin's cell once more, from nothing; nobody's store is touched."""
    from kdbench.engine.grid import expand, make_lab, run_grid
    from kdbench.progress import Silent
    from kdbench.spec import RunSpec

    cell = pinned.spec.resolved
    with tempfile.TemporaryDirectory() as folder:
        spec = RunSpec(
            methods=(cell.method,),
            pairs=(f"{cell.teacher}:{cell.student}",),
            benchmarks=(cell.benchmark,),
            protocol=cell.protocol,
            seeds=(cell.seed,),
            settings=tuple(f"{name}={value}" for name, value in cell.knobs.items()),
            device="cpu",
            results=Path(folder, "results"),
            store=Path(folder, "store"),
            references=False,
        )
        lab = make_lab(spec, Silent())
        if lab.protocol.id != cell.protocol_id:
            raise KdbenchError(
                f"the pin was made under {cell.protocol_id}, today's protocol is {lab.protocol.id}; pin again"
            )
        (done,) = run_grid(spec, lab, expand(spec, lab))
    return done.record


def _same_machine(pinned: Record, fresh: Record) -> bool:
    same_code = pinned.spec.resolved.key == fresh.spec.resolved.key
    return same_code and pinned.run.host == fresh.run.host and pinned.run.versions == fresh.run.versions
