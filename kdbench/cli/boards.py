"""`kdbench leaderboard` and `list`: what is there. Starts without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from kdbench.cli.shared import Results, complain, out
from kdbench.errors import KdbenchError
from kdbench.files import write_atomically
from kdbench.places import default_reference, default_results
from kdbench.spec import split_list

if TYPE_CHECKING:
    from kdbench.report.board import Board

Format = Literal["table", "markdown", "csv", "latex", "html", "json"]


def leaderboard(
    protocol: Annotated[str | None, typer.Option(help="A protocol's name or id.")] = None,
    benchmark: Annotated[str | None, typer.Option(help="Benchmarks, comma-separated.")] = None,
    pair: Annotated[str | None, typer.Option(help="teacher:student, comma-separated.")] = None,
    results: Results = None,
    format_: Annotated[
        Format, typer.Option("--format", help="How it is written; csv and json hold everything.")
    ] = "table",
    output: Annotated[Path | None, typer.Option(help="A file to write instead of the terminal.")] = None,
    classes: Annotated[bool, typer.Option("--classes", help="Also pixels, and the IoU of every class.")] = False,
    selection: Annotated[bool, typer.Option("--selection", help="Also other rules than the last point.")] = False,
    costs: Annotated[
        bool, typer.Option("--costs", help="Also what training and inference take, and the Pareto front.")
    ] = False,
    include_images: Annotated[
        bool, typer.Option("--include-images", help="In html: also pictures of real data sets, whose licences hold.")
    ] = False,
    published: Annotated[
        bool, typer.Option("--published", help="Instead: a paper's numbers beside those measured under its protocol.")
    ] = False,
) -> None:
    """Tables of methods for every benchmark and pair, from the records of runs and the committed reference."""
    benchmarks = None if benchmark in (None, "all") else list(split_list(benchmark))
    pairs = None if pair in (None, "all") else list(split_list(pair))
    if results is not None and not results.exists():
        raise KdbenchError(f"--results {results} does not exist. Leave it out for the records of this checkout's runs.")
    if include_images and (published or format_ != "html"):
        raise KdbenchError("--include-images is for the page of boards: add --format html, without --published.")
    results, terminal = results or default_results(), Console()
    if published:
        print_published(format_, output, results, protocol, benchmarks, pairs, terminal)
    else:
        print_boards(
            format_, output, results, protocol, benchmarks, pairs, terminal, classes, selection, costs, include_images
        )


def print_boards(
    format_: Format,
    output: Path | None,
    results: Path,
    protocol: str | None,
    benchmarks: list[str] | None,
    pairs: list[str] | None,
    terminal: Console,
    classes: bool = False,
    selection: bool = False,
    costs: bool = False,
    include_images: bool = False,
) -> None:
    """The boards of all records; see leaderboard."""
    from kdbench.report import board, entries, exports, formats, views

    loaded = entries.load(results, default_reference(), protocol=protocol, benchmarks=benchmarks, pairs=pairs)
    found = board.boards(loaded.entries)
    if format_ in exports.EXPORTS:
        text = exports.EXPORTS[format_](found)
    elif format_ == "html":
        text = _page(found, include_images)
    else:
        text = formats.render(format_, views.tables(found, classes, selection, costs), _coloured(output, terminal))
    _deliver(text, output, loaded.faults)


def _page(found: list[Board], include_images: bool) -> str:
    from kdbench.report import gallery, page

    drawn = {index: gallery.gallery_of(board, include_images) for index, board in enumerate(found)}
    return page.to_html(found, {index: each for index, each in drawn.items() if each})


def print_published(
    format_: Format,
    output: Path | None,
    results: Path,
    protocol: str | None,
    benchmarks: list[str] | None,
    pairs: list[str] | None,
    terminal: Console,
) -> None:
    """Published numbers, with what was measured for them, if anything was."""
    from kdbench.report import board, entries, formats, ledger, published

    numbers = published.choose(published.read_published(), protocol, benchmarks, pairs)
    loaded = entries.read(results, default_reference())
    matches = published.match(numbers, board.boards(loaded.entries))
    if format_ in ledger.EXPORTS:
        text = ledger.EXPORTS[format_](matches)
    elif format_ == "html":
        from kdbench.report import page

        text = page.tables_to_html(ledger.tables(matches))
    else:
        text = formats.render(format_, ledger.tables(matches), _coloured(output, terminal))
    _deliver(text, output, loaded.faults)


def _coloured(output: Path | None, terminal: Console) -> bool:
    return output is None and terminal.is_terminal


def _deliver(text: str, output: Path | None, faults: list[str]) -> None:
    for fault in faults:
        complain(fault)
    if output is None:
        out(text)
    else:
        write_atomically(output, (text.rstrip("\n") + "\n").encode())
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
