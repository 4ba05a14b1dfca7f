"""The command line as another program sees it: exit status, where things are written, what is said."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from kdbench.cli import main
from kdbench.cli.listing import render
from kdbench.pictures import predictions_file
from kdbench.records import read_record, record_files


class Printed(NamedTuple):
    status: int
    out: str
    err: str


Command = Callable[..., Printed]


@pytest.fixture
def kdbench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command line in this process."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Printed:
        monkeypatch.setattr(sys, "argv", ["kdbench", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return Printed(int(ended.value.code or 0), *capsys.readouterr())

    return call


SMOKE = ("--pair", "dinov2-s:deit-s", "--benchmark", "g2c", "--protocol", "smoke", "--device", "cpu")


def test_the_module_is_the_entry_point() -> None:
    command = [sys.executable, "-m", "kdbench.cli", "leaderboard", "--results", "/nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("kdbench: --results /nowhere is no folder")


def test_a_run_prints_rows_and_the_board_and_what_is_done_is_skipped(kdbench: Command, tmp_path: Path) -> None:
    results = tmp_path / "results"
    command = (
        "run", "--method", "gkd", *SMOKE, "--pair", "dinov2-s:resnet18", "--store", tmp_path / "store",
        "--results", results, "--pictures",
    )  # fmt: skip
    done = kdbench(*command)
    assert done.status == 0, done.err
    files = list(record_files(results))
    records = [read_record(path) for path in files]
    assert {record.spec.resolved.role for record in records} == {"teacher", "undistilled", "distilled"}
    assert all(record.status == "done" for record in records)
    assert done.out.count("mini:dinov2-s -> ") >= 3
    assert "mini:resnet18" in done.out
    assert "synthetic likeness of GTAV to Cityscapes" in done.out
    assert "GKD-CNN: kdbench's extension" in done.out

    (picture,) = results.rglob("pictures-s0.png")
    with Image.open(picture) as image:
        assert image.width > 300
        assert len(image.convert("RGB").getcolors(2**24)) > 50
    assert all(predictions_file(path).is_file() for path in files)

    before = {path: path.stat().st_mtime_ns for path in files}
    assert kdbench(*command).out.count("done before") == 3
    assert before == {path: path.stat().st_mtime_ns for path in files}

    for name in ("table", "markdown", "csv", "latex", "html", "json"):
        path = tmp_path / "boards" / f"board.{name}"
        wrote = kdbench("leaderboard", "--protocol", "smoke", "--results", results, "--format", name, "--output", path)
        assert wrote.status == 0, wrote.err
        assert "gkd" in path.read_text(encoding="utf-8")
    json.loads(path.read_text(encoding="utf-8"))
    # Two images of the one target: image, label, three models.
    assert path.with_suffix(".html").read_text(encoding="utf-8").count('src="data:image/png') == 2 * 5


def test_a_failed_cell_gives_status_1(kdbench: Command, plugin: Callable[..., str], tmp_path: Path) -> None:
    bad = plugin("bad", "    def loss(self, batch, student, teacher):\n        raise ValueError('no')\n")
    done = kdbench(
        "run", "--method", f"{bad},baseline", *SMOKE, "--no-references", "--store", tmp_path / "store",
        "--results", tmp_path / "results", "--pictures",
    )  # fmt: skip
    assert done.status == 1
    assert "picture: " in done.out
    assert "ValueError: no (at bad.py, line 7, in loss)" in done.out
    assert "1 cell failed; the board says why." in done.err


RUN = ("run", "--method", "gkd", "--pair", "dinov2-s:deit-s")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--method", "gdk", "--pair", "dinov2-s:deit-s"), "Did you mean 'gkd'"),
        (("run", "--pair", "dinov2-s:deit-s"), "--method"),
        ((*RUN, "--seed", "one"), "seeds are whole numbers"),
        ((*RUN, "--device", "tpu"), "tpu"),
        (("leaderboard", "--protocol", "mni"), "Did you mean 'mini'"),
        (("leaderboard", "--include-images"), "add --format html"),
        (("leaderboard", "--protocol", "smoke", "--output", "/dev/null/x"), "--output '/dev/null/x' cannot be written"),
        (("check", "--against", "/dev/null"), "--against /dev/null is no folder"),
        (("data", "preview", "g3c"), "unknown benchmark"),
        (("check", "--method", "gdk"), "Did you mean 'gkd'"),
    ],
)
def test_a_wrong_request_gives_status_2_and_no_traceback(
    kdbench: Command, arguments: tuple[str, ...], said: str
) -> None:
    done = kdbench(*arguments)
    assert done.status == 2, done.out
    assert said in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("what", ["methods", "benchmarks", "pairs", "models", "protocols", "datasets"])
def test_lists_are_tables_markdown_or_json(kdbench: Command, what: str) -> None:
    rows = json.loads(kdbench("list", what, "--format", "json").out)
    assert rows
    assert render(rows, "markdown").startswith("|")
    assert len(render(rows, "table").splitlines()) >= len(rows) + 2
    if what == "methods":
        methods = {row["name"]: row for row in rows}
        assert methods["gkd"]["stages"] == "proxy (proxy) -> source (source) -> task (task)"
        assert methods["baseline"]["needs"] == "no teacher"


def test_a_dry_run_says_what_would_run_and_writes_nothing(kdbench: Command, tmp_path: Path) -> None:
    done = kdbench(
        "run", "--method", "gkd", *SMOKE, "--benchmark", "g2c,g2b", "--dry-run", "--store", tmp_path / "store",
        "--results", tmp_path / "results",
    )  # fmt: skip
    assert done.status == 0, done.err
    assert done.out.count("to do") == 5
    assert done.out.count("shared") == 5
    weights = [line.partition(": weights from ")[::2] for line in done.out.splitlines() if "weights from" in line]
    assert [name for name, _ in weights] == ["mini:dinov2-s", "mini:deit-s"]
    assert all(Path(file).is_file() for _, file in weights)
    assert not list(tmp_path.rglob("*.json"))


def test_previews_are_written(kdbench: Command, tmp_path: Path) -> None:
    done = kdbench(
        "data", "preview", "p2r", "--protocol", "smoke", "--output", tmp_path / "out", "--store", tmp_path / "store",
        "--count", "2",
    )  # fmt: skip
    assert done.status == 0, done.err
    with Image.open(tmp_path / "out" / "p2r.png") as image:
        assert min(image.size) > 100


def test_common_stages_are_shipped_and_verified(kdbench: Command, tmp_path: Path) -> None:
    folder, places = tmp_path / "stages", ("--store", tmp_path / "store", "--device", "cpu")
    request = ("--method", "gkd", "--pair", "dinov2-s:deit-s", "--protocol", "smoke", "--output", folder)
    done = kdbench("models", "ship", *request, *places)
    assert done.status == 0, done.err
    (stage,) = folder.iterdir()
    assert f"{stage}: proxy of gkd, dinov2-s:deit-s, protocol smoke: student.encoder" in done.out
    done = kdbench("models", "verify", "--stages", folder, *places)
    assert (done.status, done.out.count("differ by 0.0e+00")) == (0, 1)
    (stage / "snapshot-0.safetensors").write_bytes(b"")
    done = kdbench("models", "verify", "--stages", folder, *places)
    assert (done.status, f"FAIL  {stage}/snapshot-0.safetensors is damaged" in done.out) == (1, True)
