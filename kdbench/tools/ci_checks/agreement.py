"""Committed boards agree with the paper no less than the committed value says."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from kdbench.report.agreement import FILE, agreements
from kdbench.report.boards import boards
from kdbench.report.frame import read
from kdbench.report.published import read_published
from kdbench.tools.ci_checks.result import CheckResult

NAME = "agreement"
ROUNDING = 1e-9
"""Of means added up on another machine."""


def check(reference: Path | None) -> Iterator[CheckResult]:
    """One line for every protocol, data source and pair whose agreement is committed."""
    path = reference / FILE if reference else None
    if reference is None or path is None or not path.is_file():
        yield CheckResult(NAME, "skip", f"no {FILE} under {reference or 'no folder'}")
        return
    repair = f'kdbench leaderboard --agreement --results "$(mktemp -d)" --format json --output {path}'
    try:
        held = [each for each in json.loads(path.read_bytes()) if each["tau"] is not None]
        committed = {(each["protocol_id"], each["data_source"], each["pair"]): float(each["tau"]) for each in held}
    except (ValueError, KeyError, TypeError) as error:
        yield CheckResult(NAME, "FAIL", f"{path} is no list of agreements ({error}). Write it again: {repair}", path)
        return
    found = agreements(read_published(), boards(read(None, reference).frame))
    today = {(each.protocol_id, each.data_source, each.pair): each.tau for each in found}
    for cell, tau in committed.items():
        name, now = " ".join((NAME, *cell)), today.get(cell, math.nan)
        if math.isnan(now) or now < tau - ROUNDING:
            shown = "nothing to compare" if math.isnan(now) else f"{now:.4f}"
            detail = f"the committed records give {shown}, and {path} says {tau:.4f}. Where that is meant: {repair}"
            yield CheckResult(name, "FAIL", detail, path)
        else:
            yield CheckResult(name, "ok", f"tau {now:.2f} (committed {tau:.2f})")
