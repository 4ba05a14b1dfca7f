"""torch's threads sleep while they wait, wherever kdbench is imported first."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def run(code: str, **environment: str) -> tuple[str, str]:
    """Run a program without the tests' own setting. Returns what it prints and what it warns of."""
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=inherited | environment, capture_output=True, text=True, check=True
    )
    return done.stdout, done.stderr


SHOW = "import os, sys; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"


@pytest.mark.parametrize(
    ("environment", "expected"), [({}, "PASSIVE False\n"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE False\n")]
)
def test_threads_wait_passively_unless_the_user_says_otherwise(environment: dict[str, str], expected: str) -> None:
    assert run(f"import kdbench; {SHOW}", **environment) == (expected, "")


def test_where_torch_is_loaded_already_a_warning_says_once_what_to_do() -> None:
    loaded = "import sys; sys.modules['torch'] = sys; import kdbench, kdbench.errors"
    _, warned = run(loaded)
    assert warned.count("set OMP_WAIT_POLICY=PASSIVE before torch is imported") == 1
    assert run(loaded, OMP_WAIT_POLICY="ACTIVE") == ("", "")
