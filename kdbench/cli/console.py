"""What several verbs share: options, the text that they print, and progress: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich import progress as rich
from rich.console import Console

from kdbench.errors import KdbenchError
from kdbench.progress import Progress

Results = Annotated[Path | None, typer.Option(help="Where records are written and read. [results/runs]")]
StoreOption = Annotated[Path | None, typer.Option(help="Where finished stages are kept. [~/.cache/kdbench]")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder with the real data sets; without it, the built-in world.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")]
PackDir = Annotated[
    Path | None,
    typer.Option(envvar="KDBENCH_PACKS", help="Folder for packed pixels. [kdbench-packed in each data set's folder]"),
]
SILENT_SECONDS = 30
"""How long lines say nothing of work that goes on."""


def needed(data_root: Path | None) -> Path:
    """--data-root, where a verb cannot do without it."""
    if data_root is None:
        raise KdbenchError("add --data-root DIR, the folder that holds the data sets.")
    return data_root


def use_packs(folder: Path | None) -> None:
    """Take packed pixels from a folder, in this process and those that it starts."""
    if folder is not None:
        os.environ["KDBENCH_PACKS"] = str(folder.absolute())


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Around work of which nothing is lost when it is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        complain("stopped. The same command continues where it was.")
        raise typer.Exit(130) from None


def complain(text: str) -> None:
    """Print to standard error."""
    print_line(Console(stderr=True), f"kdbench: {text}")


def print_line(console: Console, text: str) -> None:
    """Print a text as it is, without markup; the terminal wraps it."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def out(text: str) -> None:
    """Print to standard output, as it is, at once."""
    sys.stdout.write(text.rstrip("\n") + "\n")
    sys.stdout.flush()


class Bars(Progress):
    """Shows a bar for the work at hand, with the latest losses."""

    def __init__(self, console: Console) -> None:
        self._progress = rich.Progress(
            rich.TextColumn("{task.description}", markup=False),
            rich.BarColumn(bar_width=24),
            rich.MofNCompleteColumn(),
            rich.TimeElapsedColumn(),
            rich.TimeRemainingColumn(),
            rich.TextColumn("{task.fields[losses]}", style="dim", markup=False),
            console=console,
            transient=True,
        )
        self._task: rich.TaskID | None = None

    def begin(self, what: str, total: int) -> None:
        """Start a bar."""
        self._progress.start()
        self._task = self._progress.add_task(what, total=total, losses="")

    def advance(self, done: int, losses: Mapping[str, float]) -> None:
        """Move the bar."""
        if self._task is not None:
            self._progress.update(self._task, completed=done, losses=_text(losses))

    def end(self) -> None:
        """Remove the bar."""
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._progress.stop()
            self._task = None

    def note(self, text: str) -> None:
        """Print a line."""
        print_line(self._progress.console, text)


class Lines(Progress):
    """Prints a line when a piece of work ends, and one now and then while it goes on."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begin(self, what: str, total: int) -> None:
        """Remember what is done."""
        self._what, self._total, self._done = what, total, 0
        self._started = self._printed = time.perf_counter()
        self._losses: Mapping[str, float] = {}

    def advance(self, done: int, losses: Mapping[str, float]) -> None:
        """Remember how far it is; print that after a long silence."""
        self._done, self._losses = done, losses
        if time.perf_counter() - self._printed > SILENT_SECONDS and done < self._total:
            self.end()

    def end(self) -> None:
        """Print steps, seconds and losses."""
        self._printed = time.perf_counter()
        losses = f"  {_text(self._losses)}" if self._losses else ""
        self.note(f"  {self._what}: {self._done}/{self._total} in {self._printed - self._started:.1f} s{losses}")

    def note(self, text: str) -> None:
        """Print a line."""
        print_line(self._console, text)


def progress_for(console: Console) -> Progress:
    """Return bars on a terminal, lines elsewhere."""
    return Bars(console) if console.is_terminal else Lines(console)


def _text(losses: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.3g}" for name, value in losses.items())
