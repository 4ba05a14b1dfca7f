"""Committed boards agree with the paper no less than the committed value says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from kdbench.report.agreement import FILE, agreements
from kdbench.report.boards import boards
from kdbench.report.frame import read
from kdbench.report.published import read_published
from kdbench.tools.ci_checks.result import CheckResult

NAME = "agreement"
ROUNDING = 1e-4
"""Of a committed value."""


def check(reference: Path | None) -> Iterator[CheckResult]:
    """One line for every protocol and pair whose agreement is committed; none is without the file."""
    path = reference / FILE if reference else None
    if reference is None or path is None or not path.is_file():
        return
    repair = f'kdbench leaderboard --agreement --results "$(mktemp -d)" --format json --output {path}'
    try:
        committed = {(held["protocol_id"], held["pair"]): float(held["tau"]) for held in json.loads(path.read_bytes())}
    except (ValueError, KeyError, TypeError) as error:
        yield CheckResult(NAME, "FAIL", f"{path} is no list of agreements ({error}). Write it again: {repair}", path)
        return
    found = agreements(read_published(), boards(read(None, reference).frame))
    today = {(each.protocol_id, each.pair): each.tau for each in found}
    for (protocol_id, pair), tau in committed.items():
        name, now = f"{NAME} {protocol_id} {pair}", today.get((protocol_id, pair))
        if now is None or now < tau - ROUNDING:
            shown = "nothing to compare" if now is None else f"{now:.4f}"
            detail = f"the committed records give {shown}, and {path} says {tau:.4f}. Where that is meant: {repair}"
            yield CheckResult(name, "FAIL", detail, path)
        else:
            yield CheckResult(name, "ok", f"tau {now:.2f} (committed {tau:.2f})")
