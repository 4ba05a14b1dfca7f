"""The committed results, through every gate that trains nothing but the pins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kdbench.protocol import SMOKE

pytestmark = pytest.mark.slow
REFERENCE = Path(__file__).parents[2] / "results" / "reference"


def test_the_committed_pins_are_met() -> None:
    command = [sys.executable, "-m", "kdbench.cli", "check", "--smoke", "--reference", str(REFERENCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"ok    {SMOKE.id} " in done.stdout


def test_the_shipped_stages_are_what_todays_code_computes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kdbench.cli", "models", "verify", "--device", "cpu", "--store", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "proxy of gkd, dinov2-l:resnet50, protocol mini" in done.stdout
