"""In CI a skip is a failure, unless it names the optional part that is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CONFTEST = Path(__file__).parents[1] / "conftest.py"


def run(folder: Path, text: str, strict: bool) -> int:
    (folder / "conftest.py").write_text(CONFTEST.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "test_it.py").write_text(f"import pytest\n{text}", encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if k != "KDBENCH_NO_SKIPS"}
    if strict:
        environment["KDBENCH_NO_SKIPS"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, check=False, cwd=folder).returncode


def test_a_skip_without_a_reason_fails_in_ci_only(tmp_path: Path) -> None:
    text = "def test_a(): pass\ndef test_b(): pytest.skip('not today')\n"
    assert run(tmp_path, text, strict=False) == 0
    assert run(tmp_path, text, strict=True) == 1


def test_a_skip_that_names_an_optional_part_passes(tmp_path: Path) -> None:
    text = "def test_a(): pass\ndef test_b(): pytest.skip('optional: detectron2')\n"
    assert run(tmp_path, text, strict=True) == 0


def test_a_module_that_skips_itself_fails_in_ci(tmp_path: Path) -> None:
    text = "pytest.skip('not today', allow_module_level=True)\n"
    assert run(tmp_path, text, strict=True) not in (0, 5)
