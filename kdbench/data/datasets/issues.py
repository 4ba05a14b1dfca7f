"""What the data doctor reports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from kdbench.data.datasets.files import Entry

Level = Literal["fault", "note"]
SHOWN = 3
"""Files that a finding names; it counts the others."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong (fault), or that one should know (note)."""

    level: Level
    what: str
    files: tuple[str, ...]
    repair: str


def finding(level: Level, what: str, files: Iterable[Entry | str], repair: str) -> Finding:
    """What is wrong with some files: their number comes first, and the first of them are named."""
    named = tuple(map(str, files))
    return Finding(level, f"{len(named)} {what}", named[:SHOWN], repair)
