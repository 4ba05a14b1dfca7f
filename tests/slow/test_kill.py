"""kill -9 at any moment, then the same command: it goes on inside the stage and ends with the bit-identical result."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdbench.records import Record, read_record, record_files

pytestmark = pytest.mark.slow

COMMAND = [
    sys.executable, "-m", "kdbench.cli", "run", "--method", "gkd", "--pair", "dinov2-s:resnet18", "--benchmark", "g2c",
    "--protocol", "smoke", "--device", "cpu",
]  # fmt: skip


def start(store: Path, results: Path) -> subprocess.Popen[bytes]:
    """A real process with one thread, so that two of them do not change each other's sums."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*COMMAND, "--store", str(store), "--results", str(results)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[bytes]) -> None:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output.decode()


def results_of(folder: Path) -> dict[str, str]:
    """Every record's result as text, by its place."""
    records = {path: read_record(path) for path in record_files(folder)}
    assert all(record.status == "done" for record in records.values())
    return {str(path.relative_to(folder)): _text(record) for path, record in records.items()}


def _text(record: Record) -> str:
    assert record.result is not None
    return record.result.model_dump_json()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("unbroken")
    finish(start(folder / "store", folder / "results"))
    found = results_of(folder / "results")
    assert len(found) == 3
    return found


def kill_when(process: subprocess.Popen[bytes], store: Path, pattern: str, count: int) -> bool:
    """Kills the process once so many files match; False where it ended first."""
    while process.poll() is None:
        if len(list(store.glob(pattern))) >= count:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.002)
    return False


@pytest.mark.parametrize(
    ("pattern", "counts"),
    [
        ("stages/*/checkpoint.pt", (1,)),
        ("stages/*/stage.json", (1, 2, 3, 4, 5)),
        ("stages/*/snapshot-1.safetensors", (1, 2)),
        ("renders/*", (2,)),
        ("evaluations/*.npz", (1, 5, 12)),
    ],
)
def test_a_killed_run_ends_with_the_same_result(
    tmp_path: Path, unbroken: dict[str, str], pattern: str, counts: tuple[int, ...]
) -> None:
    """One store is killed again and again, at later and later moments, then runs to its end."""
    store, results = tmp_path / "store", tmp_path / "results"
    kills = sum(kill_when(start(store, results), store, pattern, count) for count in counts)
    assert kills == len(counts)
    finish(start(store, results))
    assert results_of(results) == unbroken
    assert not list(store.rglob("checkpoint.pt"))


def test_a_stage_continues_from_its_checkpoint(tmp_path: Path) -> None:
    """The proof that work is not merely done again: the checkpoint of a killed stage is where it goes on."""
    from kdbench.engine.store import StageFolder

    store, results = tmp_path / "store", tmp_path / "results"
    process = start(store, results)
    assert kill_when(process, store, "stages/*/checkpoint.pt", 1)
    (checkpoint,) = store.glob("stages/*/checkpoint.pt")
    state = StageFolder(checkpoint.parent).load_checkpoint()
    assert state is not None
    assert state["step"] >= 2
    # A marked curve survives into the finished stage's summary only if the stage went on from here.
    name = next(iter(state["curves"]))
    state["curves"][name][0] = 12345.0
    StageFolder(checkpoint.parent).save_checkpoint(state)
    finish(start(store, results))
    assert StageFolder(checkpoint.parent).summary.losses[name][0] == 12345.0


def test_two_runs_on_one_store_both_end_right(tmp_path: Path, unbroken: dict[str, str]) -> None:
    store = tmp_path / "store"
    first, second = (start(store, tmp_path / name) for name in ("a", "b"))
    finish(first)
    finish(second)
    assert results_of(tmp_path / "a") == unbroken
    assert results_of(tmp_path / "b") == unbroken
