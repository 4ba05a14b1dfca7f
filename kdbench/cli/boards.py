"""`kdbench leaderboard`, `list` and `check`: what is there and whether it holds. Starts without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from kdbench.cli.shared import Results, complain, out
from kdbench.places import default_reference, default_results
from kdbench.spec import split_list

Format = Literal["table", "markdown", "csv", "latex", "html", "json"]


def leaderboard(
    protocol: Annotated[str | None, typer.Option(help="A protocol's name or id.")] = None,
    benchmark: Annotated[str | None, typer.Option(help="Benchmarks, comma-separated.")] = None,
    pair: Annotated[str | None, typer.Option(help="teacher:student, comma-separated.")] = None,
    results: Results = None,
    format_: Annotated[Format, typer.Option("--format", help="How it is written.")] = "table",
    output: Annotated[Path | None, typer.Option(help="A file to write instead of the terminal.")] = None,
) -> None:
    """Tables of methods for every benchmark and pair, from the records of runs and the committed reference."""
    benchmarks = None if benchmark in (None, "all") else list(split_list(benchmark))
    pairs = None if pair in (None, "all") else list(split_list(pair))
    print_boards(format_, output, results or default_results(), protocol, benchmarks, pairs, terminal=Console())


def print_boards(
    format_: Format,
    output: Path | None,
    results: Path,
    protocol: str | None,
    benchmarks: list[str] | None,
    pairs: list[str] | None,
    terminal: Console,
) -> None:
    from kdbench.report import board, formats

    loaded = board.load(results, default_reference(), protocol=protocol, benchmarks=benchmarks, pairs=pairs)
    text = formats.render(format_, board.boards(loaded.entries), colour=output is None and terminal.is_terminal)
    for fault in loaded.faults:
        complain(fault)
    if output is None:
        out(text)
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
        out(f"written: {output}")


def list_(
    what: Annotated[
        Literal["methods", "benchmarks", "pairs", "models", "protocols", "datasets", "domains"],
        typer.Argument(help="What to list."),
    ],
    format_: Annotated[Literal["table", "markdown", "json"], typer.Option("--format")] = "table",
) -> None:
    """What there is: methods, benchmarks, pairs, models, protocols, data sets or the built-in world's domains."""
    from kdbench.listing import document, listing, render

    page = document(what) if format_ == "markdown" else None
    out(page or render(listing(what), format_))


def check(
    results: Results = None,
    reference: Annotated[Path | None, typer.Option(help="Pinned records. [results/reference]")] = None,
) -> None:
    """Gates for CI: every record validates; pinned smoke cells, run again, agree. Exit status 1 on a failure."""
    from kdbench.gates import gates

    passed = True
    for gate in gates(results or default_results(), reference or default_reference()):
        passed &= gate.passed
        out(f"{'ok  ' if gate.passed else 'FAIL'}  {gate.name}: {gate.detail}")
    if not passed:
        raise typer.Exit(1)
