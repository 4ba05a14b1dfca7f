"""The one exception that a user is meant to read: what was asked, what exists, the nearest name, the repair."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class KdbenchError(Exception):
    """A request that cannot be served, or a run that cannot go on; printed without a traceback."""

    status = 2
    """The exit status: the request was wrong."""


def unknown(kind: str, asked: str, known: Iterable[str], hint: str = "") -> KdbenchError:
    """An error for a name that does not exist, with the names that do and the nearest of them."""
    names = sorted(known)
    # Among names as short as the methods', letters in the wrong order are likelier than other letters.
    near = sorted(get_close_matches(asked, names, n=8, cutoff=0.5), key=lambda name: sorted(name) != sorted(asked))
    guess = f" Did you mean '{near[0]}'?" if near else ""
    listed = ", ".join(names) if names else "none"
    return KdbenchError(f"unknown {kind} '{asked}'.{guess} Known: {listed}.{' ' + hint if hint else ''}")
