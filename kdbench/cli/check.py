"""`kdbench check`: gates for CI. Without --smoke and --method it starts and runs without torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdbench.cli.shared import Results, out
from kdbench.errors import KdbenchError
from kdbench.files import write_atomically
from kdbench.paths import default_reference, default_results

if TYPE_CHECKING:
    from kdbench.tools.ci_checks.gate import Gate


def check(
    results: Results = None,
    reference: Annotated[Path | None, typer.Option(help="Committed records. [results/reference]")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Also: pinned smoke cells, run again on the CPU.")] = False,
    against: Annotated[
        Path | None, typer.Option(help="Also: records and costs.json of an earlier state, to find what fell back.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Also: a method keeps the contract; a name or a file.")] = None,
    junit: Annotated[Path | None, typer.Option(help="A JUnit file to write.")] = None,
    annotations: Annotated[
        bool, typer.Option("--annotations", help="Also print failures as annotations of GitHub Actions.")
    ] = False,
) -> None:
    """Gates for CI: records validate and committed boards are theirs; more with options. Exit status 1 on a failure."""
    from kdbench.tools.ci_checks.gate import Outcome, annotation
    from kdbench.tools.ci_checks.gate import junit as junit_report

    for option, folder in (("--results", results), ("--reference", reference), ("--against", against)):
        if folder is not None and not folder.is_dir():
            raise KdbenchError(f"{option} {folder} is no folder. Name one that exists, or leave it out.")
    if method:
        from kdbench.plugins import method_origin

        method_origin(method)
    results, reference = results or default_results(), reference or default_reference()
    found = []
    for gate in _gates(_shown(results), reference and _shown(reference), smoke, against, method):
        found.append(gate)
        out(gate.line)
        if annotations and gate.outcome == Outcome.FAIL:
            out(annotation(gate))
    if junit:
        write_atomically(junit, junit_report(found))
    if any(gate.outcome == Outcome.FAIL for gate in found):
        raise typer.Exit(1)


def _gates(
    results: Path, reference: Path | None, smoke: bool, against: Path | None, method: str | None
) -> Iterator[Gate]:
    from kdbench.tools.ci_checks import boards, records, scores, speed

    yield from records.gates([folder for folder in dict.fromkeys((results, reference)) if folder and folder.is_dir()])
    yield from boards.gates(reference)
    if against:
        yield from scores.gates(results, reference, against)
        yield from speed.gates(results, reference, against)
    if smoke:
        from kdbench.tools.ci_checks import smoke as pinned

        yield from pinned.gates(reference)
    if method:
        from kdbench.tools.ci_checks import contract

        yield from contract.gates(method)


def _shown(folder: Path) -> Path:
    """As seen from the working folder, where it lies below it."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
