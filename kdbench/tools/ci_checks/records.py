"""Checks that every record is valid, lies where its content says, and is of a known protocol and data source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from kdbench.errors import KdbenchError
from kdbench.models.registry import TOY_MODELS
from kdbench.models.toy import SHIPPED, toy_card
from kdbench.names import REAL
from kdbench.protocol import MINI
from kdbench.records import Record, read_record, record_files
from kdbench.spec import recorded_protocol
from kdbench.synthetic import WORLDS
from kdbench.tools.ci_checks.result import CheckResult

NAME = "records"


def check(folders: Sequence[Path]) -> Iterator[CheckResult]:
    """Yield one result, or one for every record with a fault."""
    files = [path for folder in folders for path in record_files(folder)]
    where = ", ".join(map(str, folders)) or "no folder"
    faults = [CheckResult(NAME, "FAIL", fault, path) for path in files if (fault := _fault(path))]
    yield from faults
    if not files:
        yield CheckResult(NAME, "skip", f"none under {where}")
    elif not faults:
        detail = f"{len(files)} under {where} are valid; protocols, data sources and toy models' weights are today's"
        yield CheckResult(NAME, "ok", detail)


def _fault(path: Path) -> str:
    try:
        record = read_record(path)
    except KdbenchError as error:
        return str(error)
    fault = _protocol(record) or _data_source(record) or _misplaced(path, record) or _weights(record)
    return fault and f"{path} {fault}. Remove it and run its cell again."


def _protocol(record: Record) -> str:
    cell = record.spec.resolved
    try:
        today = recorded_protocol(cell.protocol, record.spec.passed).id
    except KdbenchError as error:
        return f"is of a protocol that cannot be had ({str(error).rstrip('.')})"
    return "" if cell.protocol_id == today else f"was made under {cell.protocol_id}; today's protocol is {today}"


def _data_source(record: Record) -> str:
    domains, known = record.result.domains if record.result else [], {*WORLDS.values(), REAL}
    strange = {record.spec.resolved.data_source, *(domain.data_source for domain in domains)} - known
    return f"is of the unknown data source '{min(strange)}' (known: {', '.join(sorted(known))})" if strange else ""


def _misplaced(path: Path, record: Record) -> str:
    """A copied file would take another record's place on a board."""
    own = record.path()
    return "" if path.resolve().parts[-len(own.parts) :] == own.parts else f"holds the record of {own}"


def _weights(record: Record) -> str:
    """Compare toy models only: of real weights and of a user's own several may be right."""
    cell = record.spec.resolved
    if cell.model_set != MINI.model_set:
        return ""
    strange = [name for name, found in cell.weights.items() if name in TOY_MODELS and found != _shipped(name)]
    return f"began with other weights of {' and '.join(strange)} than those shipped" if strange else ""


@cache
def _shipped(model: str) -> str:
    return toy_card(SHIPPED, model).weights
