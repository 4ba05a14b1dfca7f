"""KdbenchError, whose text tells a user what was asked, what exists and how to mend it."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


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


_ALLOWED = {
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than": "less than {lt:g}",
    "less_than_equal": "{le:g} or less",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "bool_parsing": "true or false",
    "literal_error": "{expected}",
}
"""What a value may be, by the kind of fault that pydantic finds in it."""


def allowed(fault: ErrorDetails) -> str:
    """Say what a value that pydantic refused has to be; of a rarer fault pydantic's own text."""
    if fault["type"] == "extra_forbidden":
        return "there is no such field"
    text = _ALLOWED.get(fault["type"])
    return f"it has to be {text.format(**fault.get('ctx', {}))}" if text else fault["msg"]


def unknown(kind: str, asked: str, known: Iterable[str], hint: str = "", where: str = "") -> KdbenchError:
    """Return the error for an unknown name, with the nearest known name and all of them.

    where: what the name stands in or belongs to, as "of pair 'a:b'".
    """
    names = sorted(known)
    # Among names as short as the methods', letters in the wrong order are likelier than other letters.
    near = sorted(get_close_matches(asked, names, n=8, cutoff=0.5), key=lambda name: sorted(name) != sorted(asked))
    guess = f" Did you mean '{near[0]}'?" if near else ""
    listed = ", ".join(names) if names else "none"
    name, more = f"'{asked}'{where and ' ' + where}", hint and f" {hint}"
    return KdbenchError(f"unknown {kind} {name}.{guess} Known: {listed}.{more}")
