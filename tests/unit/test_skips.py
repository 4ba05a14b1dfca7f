"""In CI a skip is a failure, unless it names the optional part that is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
SKIPS = "import pytest\ndef test_a(): pass\ndef test_b(): pytest.skip('{reason}')\n"
MODULE = "import pytest\npytest.skip('not today', allow_module_level=True)\n"


@pytest.mark.parametrize(
    ("text", "in_ci", "passes"),
    [
        (SKIPS.format(reason="not today"), "", True),
        (SKIPS.format(reason="not today"), "1", False),
        (SKIPS.format(reason="optional: detectron2"), "1", True),
        (MODULE, "1", False),
    ],
)
def test_a_skip_without_an_optional_part_fails_in_ci(tmp_path: Path, text: str, in_ci: str, passes: bool) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "test_it.py").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    environment = os.environ | {"KDBENCH_NO_SKIPS": in_ci}
    done = subprocess.run(command, env=environment, capture_output=True, check=False, cwd=tmp_path)
    assert (done.returncode == 0) == passes, done.stdout
