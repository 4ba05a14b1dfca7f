"""Every record validates, lies where its content says, and is of a known protocol and world and of the shipped zoo."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from kdbench.errors import KdbenchError
from kdbench.models.card import SHIPPED, read_card
from kdbench.models.registry import TOY_MODELS
from kdbench.names import REAL
from kdbench.protocol import MINI, PROTOCOLS, find_protocol
from kdbench.records import Record, read_record, record_files
from kdbench.spec import assign_label_maps
from kdbench.synthetic import WORLDS
from kdbench.tools.ci_checks.gate import Gate, Outcome

NAME = "records"


def gates(folders: Sequence[Path]) -> Iterator[Gate]:
    """One line, or one for every record with a fault."""
    files = [path for folder in folders for path in record_files(folder)]
    where = ", ".join(map(str, folders)) or "no folder"
    faults = [Gate(NAME, Outcome.FAIL, fault, path) for path in files if (fault := _fault(path))]
    if faults:
        yield from faults
    elif files:
        yield Gate(
            NAME,
            Outcome.OK,
            f"{len(files)} are valid, of known protocols and worlds and of the shipped stand-ins, under {where}",
        )
    else:
        yield Gate(NAME, Outcome.SKIP, f"none under {where}")


def _fault(path: Path) -> str:
    try:
        record = read_record(path)
    except KdbenchError as error:
        return str(error)
    fault = _protocol(record) or _world(record) or _misplaced(path, record) or _weights(record)
    return fault and f"{path} {fault}. Remove it and run its cell again."


def _protocol(record: Record) -> str:
    cell, passed = record.spec.resolved, record.spec.passed
    if cell.protocol not in PROTOCOLS:
        return f"is of the unknown protocol '{cell.protocol}' (known: {', '.join(PROTOCOLS)})"
    maps = assign_label_maps(passed.get("label_maps", ()))
    chosen = passed.get("budget", "published"), maps, passed.get("resampling", "bicubic")
    today = find_protocol(cell.protocol, *chosen).id
    return "" if cell.protocol_id == today else f"was made under {cell.protocol_id}; today's protocol is {today}"


def _world(record: Record) -> str:
    domains, known = record.result.domains if record.result else [], sorted({*WORLDS.values(), REAL})
    strange = {record.spec.resolved.data_source, *(domain.data_source for domain in domains)} - set(known)
    return f"is of the unknown world '{min(strange)}' (known: {', '.join(known)})" if strange else ""


def _weights(record: Record) -> str:
    """Stand-ins alone: which of several real weights are right nobody here knows."""
    cell = record.spec.resolved
    if cell.model_set != MINI.model_set:
        return ""
    strange = [model for model, weights in cell.weights.items() if weights != _shipped(model)]
    return f"began with other weights of {' and '.join(strange)} than those shipped" if strange else ""


@cache
def _shipped(model: str) -> str:
    return read_card(SHIPPED, model).weights if model in TOY_MODELS else ""


def _misplaced(path: Path, record: Record) -> str:
    """A copied file would take another record's place on a board."""
    own = record.path()
    return "" if path.resolve().parts[-len(own.parts) :] == own.parts else f"holds the record of {own}"
