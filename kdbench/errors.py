"""KdbenchError, whose text tells a user what was asked, what exists and how to mend it."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from difflib import get_close_matches


class KdbenchError(Exception):
    """A wrong request, or a run that cannot go on. The command line prints it without a traceback."""

    status = 2
    """Exit status of the command line: the request was wrong."""


def describe(error: BaseException) -> str:
    """Return an error's text; that of another exception than KdbenchError names the line of code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, KdbenchError) or not frames:
        return str(error) or type(error).__name__
    if isinstance(error, SyntaxError):
        # Its text has the author's line; the frames are those of Python's import.
        return f"SyntaxError: {error}"
    # The author's own line says more than the depths of a library that it called.
    frame = next((f for f in reversed(frames) if "site-packages" not in f.filename), frames[-1])
    file = frame.filename.rpartition("/")[2]
    return f"{type(error).__name__}: {error} (at {file}, line {frame.lineno}, in {frame.name})"


def unknown(kind: str, asked: str, known: Iterable[str], hint: str = "") -> KdbenchError:
    """Return the error for an unknown name, with the nearest known name and all of them."""
    names = sorted(known)
    # Among names as short as the methods', letters in the wrong order are likelier than other letters.
    near = sorted(get_close_matches(asked, names, n=8, cutoff=0.5), key=lambda name: sorted(name) != sorted(asked))
    guess = f" Did you mean '{near[0]}'?" if near else ""
    listed = ", ".join(names) if names else "none"
    return KdbenchError(f"unknown {kind} '{asked}'.{guess} Known: {listed}.{' ' + hint if hint else ''}")
