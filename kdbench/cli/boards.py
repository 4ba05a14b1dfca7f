"""`kdbench leaderboard` and `list`: what is there. Starts without torch."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer
from rich.console import Console

from kdbench.cli.console import Results, complain, out
from kdbench.errors import KdbenchError
from kdbench.files import default_reference, default_results, write_atomically
from kdbench.spec import split_list

if TYPE_CHECKING:
    from kdbench.report.tables import Table

Format = Literal["table", "markdown", "csv", "latex", "html", "json"]
T = TypeVar("T")
Exports = Mapping[str, Callable[[T], str]]


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
    selection: Annotated[bool, typer.Option("--selection", help="Also other rules than the last snapshot.")] = False,
    costs: Annotated[
        bool, typer.Option("--costs", help="Also what training and inference take, and the Pareto front.")
    ] = False,
    include_images: Annotated[
        bool, typer.Option("--include-images", help="In html: also pictures of real data sets, whose licences hold.")
    ] = False,
    published: Annotated[
        bool, typer.Option("--published", help="Instead: a paper's numbers beside those measured under its protocol.")
    ] = False,
    agreement: Annotated[
        bool, typer.Option("--agreement", help="Instead: whether the methods stand in a paper's order.")
    ] = False,
) -> None:
    """Tables of methods for every benchmark and pair, from the records of runs and the committed reference."""
    if results is not None and not results.is_dir():
        raise KdbenchError(f"--results {results} is no folder. Leave it out for the records of this checkout's runs.")
    if published and agreement:
        raise KdbenchError("--published and --agreement are two tables: ask for one of them.")
    if include_images and (published or agreement or format_ != "html"):
        raise KdbenchError("--include-images is for the page of boards: add --format html, without another table.")
    asked = BoardRequest(results or default_results(), protocol, _names(benchmark), _names(pair), format_, output)
    if published:
        print_published(asked)
    elif agreement:
        print_agreement(asked)
    else:
        flags = {"classes": classes, "selection": selection, "costs": costs}
        with _garbage_kept():
            print_boards(asked, {name for name, wanted in flags.items() if wanted}, include_images)


@contextlib.contextmanager
def _garbage_kept() -> Iterator[None]:
    """Pause Python's garbage collector, which takes an eighth of a leaderboard's time and finds next to nothing."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@dataclass(frozen=True)
class BoardRequest:
    """Of which records boards are made (of all where something is None), in which format, and for which file.

    Without a file they go to the terminal.
    """

    results: Path
    protocol: str | None = None
    benchmarks: list[str] | None = None
    pairs: list[str] | None = None
    format: Format = "table"
    file: Path | None = None
    terminal: Console = field(default_factory=Console)

    def deliver(self, faults: Sequence[str], found: T, tables: Callable[[T], list[Table]], exports: Exports[T]) -> None:
        """Write what was found, and to the errors what was left out of it.

        tables: for people. exports: by format, those that programs read, and a page that shows more than the tables.
        """
        from kdbench.report.formats import render

        for fault in faults:
            complain(fault)
        if self.format in exports:
            text = exports[self.format](found)
        elif self.format == "html":
            from kdbench.report.html import page

            text = page.tables_to_html(tables(found))
        else:
            text = render(self.format, tables(found), self.file is None and self.terminal.is_terminal)
        if self.file is None:
            out(text)
            return
        try:
            write_atomically(self.file, (text.rstrip("\n") + "\n").encode())
        except OSError as error:
            raise KdbenchError(f"--output '{self.file}' cannot be written: {error.strerror}. Name a file.") from error
        out(f"written: {self.file}")


def _names(text: str | None) -> list[str] | None:
    return None if text in (None, "all") else list(split_list(text))


def print_boards(asked: BoardRequest, also: Collection[str] = (), include_images: bool = False) -> None:
    """Write the boards of all records; also: what is shown besides, by its name in EXTRA."""
    from kdbench.report import boards, formats, frame, tables

    loaded = frame.load(
        asked.results, default_reference(), protocol=asked.protocol, benchmarks=asked.benchmarks, pairs=asked.pairs
    )
    found = boards.boards(loaded.frame)

    def to_page(found: Sequence[boards.Board]) -> str:
        from kdbench.report.html import page

        return page.to_html(found, include_images)

    asked.deliver(
        loaded.faults, found, lambda boards: tables.tables(boards, also), {**formats.EXPORTS, "html": to_page}
    )


def print_published(asked: BoardRequest) -> None:
    """Write published numbers, with what was measured for them, if anything was."""
    from kdbench.report import boards, frame, published

    numbers = published.choose(published.read_published(), asked.protocol, asked.benchmarks, asked.pairs)
    loaded = frame.read(asked.results, default_reference())
    matches = published.match(numbers, boards.boards(loaded.frame))
    asked.deliver(loaded.faults, matches, published.published_tables, published.EXPORTS)


def print_agreement(asked: BoardRequest) -> None:
    """Write how far measured boards order the methods as a paper does."""
    from kdbench.report import agreement, boards, frame, published

    loaded = frame.load(
        asked.results, default_reference(), protocol=asked.protocol, benchmarks=asked.benchmarks, pairs=asked.pairs
    )
    numbers = published.read_published()
    found = agreement.agreements(numbers, boards.boards(loaded.frame))
    if not found:
        pairs = ", ".join(sorted({pair for pair in numbers.pair[numbers.measured_as != ""] if pair}))
        raise KdbenchError(
            f"nothing to compare: no record is of a published pair under a shipped protocol. Run one of {pairs}."
        )
    asked.deliver(loaded.faults, found, agreement.agreement_tables, agreement.EXPORTS)


def list_(
    what: Annotated[
        Literal["methods", "benchmarks", "pairs", "models", "protocols", "datasets", "domains"],
        typer.Argument(help="What to list."),
    ],
    format_: Annotated[Literal["table", "markdown", "json"], typer.Option("--format")] = "table",
    show: Annotated[str, typer.Option(help="Every number of one protocol, as YAML.")] = "",
) -> None:
    """What there is: methods, benchmarks, pairs, models, protocols, data sets or the built-in world's domains."""
    if show:
        from kdbench.protocol import as_yaml, find_protocol

        if what != "protocols":
            raise KdbenchError(f"--show {show}: it shows a protocol. Write `kdbench list protocols --show {show}`.")
        out(as_yaml(find_protocol(show)))
        return
    if what == "methods" and format_ == "markdown":
        from kdbench.tools import method_pages

        out(method_pages.document(default_reference()))
        return
    from kdbench.cli.listing import listing, render

    out(render(listing(what), format_))
