"""Checks a method plug-in against kdbench.conformance, for its author's CI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kdbench.conformance import CHECKS, PAIRS, check_method
from kdbench.errors import KdbenchError
from kdbench.tools.ci_checks.result import CheckResult

RULES = {check.__name__: check.__doc__ or "" for check in CHECKS}


def check(method: str) -> Iterator[CheckResult]:
    """Yield one result, or one for every fault with the check and pair where it showed first.

    method: a name, or the path of a file.
    """
    name, file = f"method {method}", Path(method) if Path(method).is_file() else None
    try:
        faults = [row for row in check_method(method) if row[2]]
    except KdbenchError as error:
        yield CheckResult(name, "FAIL", str(error), file)
        return
    shown: dict[str, list[str]] = {}
    for pair, rule, fault in faults:
        shown.setdefault(fault, []).append(f"{rule} {pair}")
    for fault, places in shown.items():
        asked = RULES[places[0].partition(" ")[0]]
        again = f" The same in {len(places) - 1} further checks and pairs." if len(places) > 1 else ""
        yield CheckResult(f"{name} {places[0]}", "FAIL", f"{fault.rstrip('.')}. The contract: {asked}{again}", file)
    if not faults:
        yield CheckResult(name, "ok", f"keeps {len(CHECKS)} checks on {len(PAIRS)} pairs")
