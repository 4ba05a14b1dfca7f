"""The one exception that a user is meant to read (what was asked, what exists, the nearest name, the repair), and how
others are told."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from difflib import get_close_matches


class KdbenchError(Exception):
    """A request that cannot be served, or a run that cannot go on; printed without a traceback."""

    status = 2
    """The exit status: the request was wrong."""


def describe(error: BaseException) -> str:
    """An error in words: of a KdbenchError its own, of others also the line of code that they come from."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, KdbenchError) or not frames:
        return str(error) or type(error).__name__
    # The author's own line says more than the depths of a library that it called.
    frame = next((f for f in reversed(frames) if "site-packages" not in f.filename), frames[-1])
    file = frame.filename.rpartition("/")[2]
    return f"{type(error).__name__}: {error} (at {file}, line {frame.lineno}, in {frame.name})"


def unknown(kind: str, asked: str, known: Iterable[str], hint: str = "") -> KdbenchError:
    """An error for a name that does not exist, with the names that do and the nearest of them."""
    names = sorted(known)
    # Among names as short as the methods', letters in the wrong order are likelier than other letters.
    near = sorted(get_close_matches(asked, names, n=8, cutoff=0.5), key=lambda name: sorted(name) != sorted(asked))
    guess = f" Did you mean '{near[0]}'?" if near else ""
    listed = ", ".join(names) if names else "none"
    return KdbenchError(f"unknown {kind} '{asked}'.{guess} Known: {listed}.{' ' + hint if hint else ''}")
