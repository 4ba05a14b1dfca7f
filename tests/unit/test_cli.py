"""The command line as another program sees it: exit status, where things are written, what is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from kdbench.cli import app
from kdbench.cli.listing import listing, render
from kdbench.cli.shared import parse_seeds
from kdbench.engine import grid
from kdbench.errors import KdbenchError
from kdbench.records import read_record, record_files
from kdbench.samples import predictions_file


def kdbench(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "kdbench.cli", *arguments], capture_output=True, text=True, env=environment, cwd=cwd,
        check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """One smoke run with its references and pictures."""
    folder = tmp_path_factory.mktemp("cli")
    done = kdbench(
        "run", "--method", "gkd", "--pair", "dinov2-s:resnet18", "--benchmark", "g2c", "--protocol", "smoke",
        "--store", str(folder / "store"), "--results", str(folder / "results"), "--pictures",
    )  # fmt: skip
    return folder, done


def test_a_run_prints_a_row_a_cell_and_the_board(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = ran
    assert done.returncode == 0, done.stderr
    records = [read_record(path) for path in record_files(folder / "results")]
    assert {record.spec.resolved.role for record in records} == {"teacher", "undistilled", "distilled"}
    assert all(record.status == "done" for record in records)
    assert done.stdout.count("mini:dinov2-s -> ") >= 3
    assert "mini:resnet18" in done.stdout
    assert "synthetic likeness of GTAV to Cityscapes" in done.stdout
    assert "GKD-CNN: kdbench's extension" in done.stdout


def test_pictures_are_written_beside_the_records(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = ran
    (path,) = (folder / "results").rglob("pictures-s0.png")
    with Image.open(path) as image:
        assert image.width > 300
        assert len(image.convert("RGB").getcolors(2**24)) > 50
    records = list(record_files(folder / "results"))
    assert len(records) == 3
    assert all(predictions_file(record).is_file() for record in records)
    page = folder / "page.html"
    kdbench("leaderboard", "--results", str(folder / "results"), "--format", "html", "--output", str(page))
    # Two images of the one target: image, label, three models.
    assert page.read_text(encoding="utf-8").count('src="data:image/png') == 2 * 5


def test_a_second_run_does_nothing_over(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = ran
    before = {path: path.stat().st_mtime_ns for path in record_files(folder / "results")}
    again = kdbench(
        "run", "--method", "gkd", "--pair", "dinov2-s:resnet18", "--benchmark", "g2c", "--protocol", "smoke",
        "--store", str(folder / "store"), "--results", str(folder / "results"),
    )  # fmt: skip
    assert again.stdout.count("done before") == 3
    assert before == {path: path.stat().st_mtime_ns for path in record_files(folder / "results")}


def test_leaderboard_writes_a_file_in_every_format(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = ran
    for name in ("table", "markdown", "csv", "latex", "html", "json"):
        path = folder / "boards" / f"board.{name}"
        done = kdbench(
            "leaderboard", "--protocol", "smoke", "--results", str(folder / "results"), "--format", name,
            "--output", str(path),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "gkd" in path.read_text(encoding="utf-8")
    json.loads((folder / "boards" / "board.json").read_text(encoding="utf-8"))


def test_a_failed_cell_gives_status_1(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(
        "from kdbench.method import Method\n\n\nclass Bad(Method):\n    def loss(self, batch, student, teacher):\n"
        "        raise ValueError('no')\n",
        encoding="utf-8",
    )
    done = kdbench(
        "run", "--method", f"{bad},baseline", "--pair", "dinov2-s:deit-s", "--benchmark", "g2c", "--protocol", "smoke",
        "--no-references", "--store", str(tmp_path / "store"), "--results", str(tmp_path / "results"), "--pictures",
    )  # fmt: skip
    assert done.returncode == 1
    assert "picture: " in done.stdout
    assert "ValueError: no (at bad.py, line 6, in loss)" in done.stdout
    assert "1 cell failed; the board says why." in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--method", "gdk", "--pair", "dinov2-s:deit-s"), "Did you mean 'gkd'"),
        (("run", "--method", "gkd", "--pair", "dinov2"), "Write teacher:student"),
        (("run", "--method", "gkd", "--pair", "dinov2-s:deit-s", "--seed", "one"), "seeds are whole numbers"),
        (("run", "--method", "gkd", "--pair", "dinov2-s:deit-s", "--device", "tpu"), "tpu"),
        (("run", "--pair", "dinov2-s:deit-s"), "--method"),
        (("leaderboard", "--results", "/nowhere"), "--results /nowhere is no folder"),
        (("leaderboard", "--protocol", "mni"), "Did you mean 'mini'"),
        (
            ("budgets", "--phase", "fit_teacher", "--pair", "dinov2-s:deit-s", "--benchmark", "g2c", "--set", "a=2"),
            "--set a=2: no method runs",
        ),
        (("leaderboard", "--include-images"), "add --format html"),
        (("data", "preview", "g3c"), "unknown benchmark"),
        (("run", "--method", "gkd", "--pair", "dinov2-s:deit-s", "--seed", "4-0"), "seeds are whole numbers"),
        (("run", "--method", "gkd", "--pair", "dinov2-s:deit-s", "--seed", "3-"), "seeds are whole numbers"),
        (("run", "--method", "gkd", "--pair", "dinov2-s:deit-s", "--resampling", "pseudo-inverse"), "'mini' none does"),
        (("check", "--method", "gdk"), "Did you mean 'gkd'"),
        (("leaderboard", "--protocol", "smoke", "--output", "/dev/null/x"), "--output '/dev/null/x' cannot be written"),
        (("leaderboard", "--results", "/dev/null"), "--results /dev/null is no folder"),
    ],
)
def test_a_wrong_request_gives_status_2_and_no_traceback(arguments: tuple[str, ...], said: str) -> None:
    done = kdbench(*arguments)
    assert done.returncode == 2, done.stdout
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_seeds_are_numbers_and_ranges() -> None:
    assert parse_seeds("0,2") == (0, 2)
    assert parse_seeds("0-2, 7,1") == (0, 1, 2, 7)


def test_all_pairs_are_those_that_the_list_names(tmp_path: Path) -> None:
    done = kdbench(
        "run", "--method", "baseline", "--pair", "all", "--benchmark", "g2c", "--protocol", "smoke", "--dry-run",
        "--store", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pairs = json.loads(kdbench("list", "pairs", "--format", "json").stdout)
    for row in pairs:
        teacher, student = row["pair"].split(":")
        assert f"mini:{teacher} -> mini:{student}" in done.stdout


def test_lists_are_tables_markdown_or_json() -> None:
    for what in ("methods", "benchmarks", "pairs", "models", "protocols", "datasets"):
        rows = json.loads(kdbench("list", what, "--format", "json").stdout)
        assert rows, what
        start = "# The methods" if what == "methods" else "|"
        assert kdbench("list", what, "--format", "markdown").stdout.startswith(start)
    methods = {row["name"]: row for row in json.loads(kdbench("list", "methods", "--format", "json").stdout)}
    assert methods["gkd"]["stages"] == "proxy (proxy) -> source (source) -> task (task)"
    assert methods["baseline"]["needs"] == "no teacher"


def test_a_dry_run_says_what_would_run_and_writes_nothing(tmp_path: Path) -> None:
    done = kdbench(
        "run", "--method", "gkd", "--pair", "dinov2-s:deit-s", "--benchmark", "g2c,g2b", "--protocol", "smoke",
        "--dry-run", "--store", str(tmp_path / "store"), "--results", str(tmp_path / "results"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("to do") == 5
    assert done.stdout.count("shared") == 5
    weights = [line.partition(": weights from ")[::2] for line in done.stdout.splitlines() if "weights from" in line]
    assert [name for name, _ in weights] == ["mini:dinov2-s", "mini:deit-s"]
    assert all(Path(file).is_file() for _, file in weights)
    assert not list(tmp_path.rglob("*.json"))


def test_a_dry_run_says_what_it_knows_while_it_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stopped(*_: object) -> Iterator[str]:
        yield "the first line"
        raise KdbenchError("stopped while counting")

    monkeypatch.setattr(grid, "describe", stopped)
    done = CliRunner().invoke(
        app,
        ["run", "--method", "gkd", "--pair", "dinov2-s:deit-s", "--benchmark", "g2c", "--dry-run",
         "--store", str(tmp_path)],
    )  # fmt: skip
    assert str(done.exception) == "stopped while counting"
    assert done.stdout.splitlines()[-1] == "the first line"


def test_the_origin_of_pairs_fits_a_terminal() -> None:
    lines = render(listing("pairs"), "table").splitlines()
    assert max(map(len, lines)) <= 120
    assert any(line.split(maxsplit=2) == ["dinov2-b:deit-s", "F2L", "GKD's paper"] for line in lines)
    extension = ["dinov2-l:resnet50", "F2L", "kdbench's extension (GKD-CNN)"]
    assert any(line.split(maxsplit=2) == extension for line in lines)


def test_previews_are_written(tmp_path: Path) -> None:
    done = kdbench(
        "data", "preview", "p2r", "--protocol", "smoke", "--output", str(tmp_path / "out"),
        "--store", str(tmp_path / "store"), "--count", "2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "out" / "p2r.png") as image:
        assert min(image.size) > 100
