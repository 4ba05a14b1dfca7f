"""A plug-in keeps the contract of methods: kdbench.conformance, for its author's CI."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from kdbench.conformance import CHECKS, PAIRS, check_method
from kdbench.errors import KdbenchError
from kdbench.tools.ci_checks.gate import Gate, Outcome

ASKED = {check.__name__: check.__doc__ for check in CHECKS}


def gates(method: str) -> Iterator[Gate]:
    """One line, or one for every fault, with where it showed first. method: a name, or the path of a file."""
    name, file = f"method {method}", Path(method) if Path(method).is_file() else None
    try:
        rows = check_method(method)
    except KdbenchError as error:
        yield Gate(name, Outcome.FAIL, str(error), file)
        return
    first: dict[str, tuple[str, str]] = {}
    for pair, check, fault in rows:
        if fault:
            first.setdefault(fault, (check, pair))
    times = Counter(fault for _, _, fault in rows)
    for fault, (check, pair) in first.items():
        again = f" The same in {times[fault] - 1} further checks and pairs." if times[fault] > 1 else ""
        yield Gate(f"{name} {check} {pair}", Outcome.FAIL, f"{fault}. The contract: {ASKED[check]}{again}", file)
    if not first:
        yield Gate(name, Outcome.OK, f"keeps {len(CHECKS)} checks on {len(PAIRS)} pairs")
