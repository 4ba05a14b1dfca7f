"""What the data doctor reports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from kdbench.data.datasets.files import DataFile

Level = Literal["fault", "note"]
SHOWN = 3
"""Files that a issue names; it counts the others."""


@dataclass(frozen=True)
class Issue:
    """Something that is wrong (fault), or that one should know (note)."""

    level: Level
    what: str
    files: tuple[str, ...]
    repair: str


def issue(level: Level, what: str, files: Iterable[DataFile | str], repair: str) -> Issue:
    """What is wrong with some files: their number comes first, and the first of them are named."""
    named = tuple(map(str, files))
    return Issue(level, f"{len(named)} {what}", named[:SHOWN], repair)
