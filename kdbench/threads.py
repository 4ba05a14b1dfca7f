"""Lets torch's threads sleep while they wait. Imports no torch: OpenMP reads its settings when torch is loaded."""

from __future__ import annotations

import os
import sys
import warnings

VARIABLE = "OMP_WAIT_POLICY"


def wait_passively() -> None:
    """Set OMP_WAIT_POLICY=PASSIVE for this process and those that it starts, unless the user has set it.

    Waiting threads spin by default, which costs other programs on the machine their time, and training even more where
    these take a core. Where torch is loaded already, the setting comes too late for this process: a warning says so.
    """
    if VARIABLE in os.environ:
        return
    os.environ[VARIABLE] = "PASSIVE"
    if "torch" in sys.modules:
        warnings.warn(
            "torch was imported before kdbench, so its threads spin while they wait, which is slow beside other "
            f"programs. To let them sleep, import kdbench first, or set {VARIABLE}=PASSIVE before torch is imported "
            f"(in a notebook: restart, then `%env {VARIABLE}=PASSIVE` in the first cell).",
            stacklevel=3,
        )
