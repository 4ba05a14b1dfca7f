"""`kdbench check`: checks for CI. Without --smoke and --method it starts and runs without torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdbench.cli.console import Results, out
from kdbench.errors import KdbenchError
from kdbench.files import default_reference, default_results

if TYPE_CHECKING:
    from kdbench.tools.ci_checks.result import CheckResult


def check(
    results: Results = None,
    reference: Annotated[Path | None, typer.Option(help="Committed records. [results/reference]")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Also: pinned smoke cells, run again on the CPU.")] = False,
    against: Annotated[
        Path | None, typer.Option(help="Also: records and costs.json of an earlier state, to find what fell back.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Also: a method keeps the contract; a name or a file.")] = None,
    annotations: Annotated[
        bool, typer.Option("--annotations", help="Also print failures as annotations of GitHub Actions.")
    ] = False,
) -> None:
    """Checks for CI: records are valid, committed boards are theirs; more with options. Exit status 1 on a failure."""
    for option, folder in (("--results", results), ("--reference", reference), ("--against", against)):
        if folder is not None and not folder.is_dir():
            raise KdbenchError(f"{option} {folder} is no folder. Name one that exists, or leave it out.")
    if method:
        from kdbench.plugins import method_origin

        method_origin(method)
    failed = False
    reference = reference or default_reference()
    for result in _check(_shown(results or default_results()), reference and _shown(reference), smoke, against, method):
        failed |= result.failed
        out(result.line)
        if annotations and result.failed:
            out(result.annotation)
    if failed:
        raise typer.Exit(1)


def _check(
    results: Path, reference: Path | None, smoke: bool, against: Path | None, method: str | None
) -> Iterator[CheckResult]:
    from kdbench.tools.ci_checks import agreement, boards, records, scores, speed

    if method:
        from kdbench.tools.ci_checks import contract

        yield from contract.check(method)
    yield from records.check([folder for folder in dict.fromkeys((results, reference)) if folder and folder.is_dir()])
    yield from boards.check(reference)
    yield from agreement.check(reference)
    if against:
        yield from scores.check(results, reference, against)
        yield from speed.check(results, reference, against)
    if smoke:
        from kdbench.tools.ci_checks import smoke as pins

        yield from pins.check(reference)


def _shown(folder: Path) -> Path:
    """Return a folder relative to the working folder, where it lies below it."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
