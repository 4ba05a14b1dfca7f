"""Which revision of the software ran."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import kdbench


@cache
def revision() -> str:
    """The version, with the commit where this is a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return kdbench.__version__
    return f"{kdbench.__version__}+{found}"
