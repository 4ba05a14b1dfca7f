"""Default folders of results and of the store."""

from __future__ import annotations

import os
from pathlib import Path


def checkout() -> Path | None:
    """Return the root of the checkout that this package runs from, if it runs from one."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "setup.cfg").is_file() and (root / "methods").is_dir() else None


def default_results() -> Path:
    """Return the folder that runs write: results/runs in a checkout, ./kdbench-results outside of one."""
    root = checkout()
    return root / "results" / "runs" if root else Path("kdbench-results")


def default_reference() -> Path | None:
    """Return the folder of the committed records, in a checkout."""
    root = checkout()
    return root / "results" / "reference" if root else None


def default_store() -> Path:
    """Return where finished stages are kept: $KDBENCH_STORE, else the user's cache folder."""
    return Path(os.environ.get("KDBENCH_STORE") or Path.home() / ".cache" / "kdbench")
