"""Committed boards equal what the committed records give."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from kdbench.report.boards import boards
from kdbench.report.formats import render
from kdbench.report.frame import read
from kdbench.report.tables import tables
from kdbench.tools.ci_checks.result import CheckResult

PAGE = "boards.md"


def check(reference: Path | None) -> Iterator[CheckResult]:
    """One line for every protocol whose boards are committed."""
    pages = sorted(reference.glob(f"*/{PAGE}")) if reference else []
    if not pages:
        yield CheckResult("boards", "skip", f"no {PAGE} under {reference or 'no folder'}")
    yield from map(_check, pages)


def _check(page: Path) -> CheckResult:
    name = f"boards {page.parent.name}"
    committed = page.read_text(encoding="utf-8", errors="replace")
    difference = _difference(committed.strip().splitlines(), text(page.parent).strip().splitlines())
    if difference:
        repair = (
            f'kdbench leaderboard --protocol {page.parent.name} --results "$(mktemp -d)" --format markdown '
            f"--output {page}"
        )
        return CheckResult(name, "FAIL", f"{difference}. Where the records are right: {repair}", page)
    return CheckResult(name, "ok", f"{page} is what its records give")


def text(folder: Path) -> str:
    """The boards of a folder of committed records."""
    return render("markdown", tables(boards(read(None, folder).frame)))


def _difference(committed: list[str], made: list[str]) -> str:
    for number, (ours, theirs) in enumerate(zip_longest(committed, made, fillvalue=""), 1):
        if ours != theirs:
            return f"line {number} is '{ours}', and the records give '{theirs}'"
    return ""
