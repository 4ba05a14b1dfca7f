"""What the README promises, run as it stands there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from kdbench.conformance import check_method
from kdbench.engine.grid import Done

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_method_of_the_readme_is_short_conforms_and_runs(
    run_cells: Callable[..., list[Done]], tmp_path: Path
) -> None:
    (text,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(text.strip().splitlines()) <= 30
    plugin = tmp_path / "cosine.py"
    plugin.write_text(text, encoding="utf-8")
    faults = [row for row in check_method(str(plugin)) if row[2]]
    assert not faults
    (done,) = run_cells(methods=(str(plugin),), pairs=("dinov2-b:deit-s",))
    assert done.record.status == "done"
    assert "cosine" in done.record.result.stages[0].losses


def test_every_command_of_the_readme_exists() -> None:
    from typer.testing import CliRunner

    from kdbench.cli import app

    verbs = set(re.findall(r"^kdbench ((?:data |models )?\w+)", README, flags=re.MULTILINE))
    assert {"run", "leaderboard", "list", "check", "data preview"} <= verbs
    for verb in verbs:
        assert CliRunner().invoke(app, [*verb.split(), "--help"]).exit_code == 0, verb


def test_pictures_that_the_readme_shows_exist() -> None:
    root = Path(__file__).parent.parent
    shown = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert shown
    assert all((root / path).is_file() for path in shown)


def test_the_board_of_the_readme_is_the_committed_one() -> None:
    (board,) = re.findall(r"^### 5 benchmarks: average .*?</details>", README, flags=re.DOTALL | re.MULTILINE)
    path = "results/reference/mini-v1/boards.md"
    committed = set((Path(__file__).parent.parent / path).read_text(encoding="utf-8").splitlines())
    lines = [line for line in board.splitlines() if line.startswith(("#", "|"))]
    assert len(lines) > 20
    assert [line for line in lines if line not in committed] == []
