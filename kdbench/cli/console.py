"""Progress as people see it: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Bars:
    """One bar for the work at hand, with the latest losses."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}", style="dim", markup=False),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None

    def begin(self, what: str, total: int) -> None:
        """A new bar."""
        self._progress.start()
        self._task = self._progress.add_task(what, total=total, losses="")

    def advance(self, done: int, losses: Mapping[str, float]) -> None:
        """The bar moves."""
        if self._task is not None:
            self._progress.update(self._task, completed=done, losses=_shown(losses))

    def end(self) -> None:
        """The bar goes."""
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._progress.stop()
            self._task = None

    def note(self, text: str) -> None:
        """A line."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class Lines:
    """For logs: a line when a piece of work ends, and one now and then while it goes on."""

    EVERY_SECONDS = 30

    def __init__(self, console: Console) -> None:
        self._console = console
        self._what, self._total, self._done, self._started = "", 0, 0, 0.0
        self._losses: Mapping[str, float] = {}
        self._said = 0.0

    def begin(self, what: str, total: int) -> None:
        """Remembers what is done."""
        self._what, self._total, self._done, self._started = what, total, 0, time.perf_counter()
        self._losses, self._said = {}, self._started

    def advance(self, done: int, losses: Mapping[str, float]) -> None:
        """Remembers how far it is, and says so if it was silent for long."""
        self._done, self._losses = done, losses
        if time.perf_counter() - self._said > self.EVERY_SECONDS and done < self._total:
            self._say()

    def end(self) -> None:
        """One line with steps, seconds and losses."""
        self._say()

    def _say(self) -> None:
        self._said = time.perf_counter()
        seconds = time.perf_counter() - self._started
        losses = f"  {_shown(self._losses)}" if self._losses else ""
        self.note(f"  {self._what}: {self._done}/{self._total} in {seconds:.1f} s{losses}")

    def note(self, text: str) -> None:
        """A line."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def progress_for(console: Console) -> Bars | Lines:
    """Bars on a terminal, lines elsewhere."""
    return Bars(console) if console.is_terminal else Lines(console)


def _shown(losses: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
