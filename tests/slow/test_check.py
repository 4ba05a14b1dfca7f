"""The committed pins, run again from nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def test_the_committed_pins_are_met() -> None:
    done = subprocess.run([sys.executable, "-m", "kdbench.cli", "check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pinned" in done.stdout
