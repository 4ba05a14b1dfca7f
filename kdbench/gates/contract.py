"""A plug-in keeps the contract of methods: kdbench.conformance, for its author's CI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kdbench.conformance import CHECKS, PAIRS, check_method
from kdbench.errors import KdbenchError
from kdbench.gates.gate import Gate, Outcome

ASKED = {check.__name__: check.__doc__ for check in CHECKS}


def gates(method: str) -> Iterator[Gate]:
    """One line, or one for every check and pair that failed. method: a name, or the path of a file."""
    name, file = f"method {method}", Path(method) if Path(method).is_file() else None
    try:
        rows = check_method(method)
    except KdbenchError as error:
        yield Gate(name, Outcome.FAIL, str(error), file)
        return
    faults = [
        Gate(f"{name} {check} {pair}", Outcome.FAIL, f"{fault}. The contract: {ASKED[check]}", file)
        for pair, check, fault in rows
        if fault
    ]
    yield from faults or [Gate(name, Outcome.OK, f"keeps {len(CHECKS)} checks on {len(PAIRS)} pairs")]
