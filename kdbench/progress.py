"""How the engine tells what it is doing; the command line decides how that looks."""

from __future__ import annotations

from collections.abc import Mapping


class Progress:
    """Listens to long work: begin, advance many times, end. This one shows nothing."""

    def begin(self, what: str, total: int) -> None:
        """A piece of work with a known number of steps starts."""

    def advance(self, done: int, losses: Mapping[str, float]) -> None:
        """So many of its steps are done; the latest losses, where there are any."""

    def end(self) -> None:
        """The piece of work is over, done or not."""

    def note(self, text: str) -> None:
        """Something worth a line."""


Silent = Progress
"""The same by its name where nothing is to be shown."""
