"""The result of one check, as a line for people and as an annotation of GitHub Actions."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_RESERVED = "%\r\n"
"""Characters that GitHub's workflow commands need escaped in a message; titles and file names need `:` and `,` too."""


@dataclass(frozen=True)
class CheckResult:
    """A check that passed, one fault that it found, or a check that had nothing to look at ("skip", not a failure).

    detail says what is wrong and ends in the repair. file: where to look.
    """

    name: str
    status: Literal["ok", "FAIL", "skip"]
    detail: str
    file: Path | None = None

    @property
    def failed(self) -> bool:
        """Whether `kdbench check` has to fail."""
        return self.status == "FAIL"

    @property
    def line(self) -> str:
        """Return the printed line."""
        return f"{self.status:<4}  {self.name}: {' '.join(self.detail.split())}"

    @property
    def annotation(self) -> str:
        """Return GitHub's workflow command for an error; the file is named relative to the working folder."""
        file = f"file={_escaped(os.path.relpath(self.file), _RESERVED + ':,')}," if self.file else ""
        title = _escaped(f"kdbench check: {self.name}", _RESERVED + ":,")
        return f"::error {file}title={title}::{_escaped(self.detail, _RESERVED)}"


def _escaped(text: str, special: str) -> str:
    return text.translate({ord(character): f"%{ord(character):02X}" for character in special})
