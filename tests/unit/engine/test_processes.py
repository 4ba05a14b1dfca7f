"""Several processes: what a launcher has started, shares of a batch, and two real ones on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kdbench.engine import grid
from kdbench.engine.distributed import check_shares, make_fabric, processes, share
from kdbench.engine.tracking import SUFFIX
from kdbench.errors import KdbenchError
from kdbench.progress import Silent
from kdbench.records import read_record
from kdbench.spec import RunSpec


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (3, 1)),
        ({"LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}, (4, 2)),
        ({"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_STEP_ID": "0"}, (4, 2)),
        ({"SLURM_NTASKS": "8", "SLURM_NNODES": "2"}, (3, 1)),
    ],
)
def test_what_a_launcher_started_goes_before_what_was_asked_for(
    environment: dict[str, str], expected: tuple[int, int]
) -> None:
    assert processes(3, environment) == expected


def test_devices_that_are_not_there_are_refused_with_how_many_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(KdbenchError, match="no usable CUDA device"):
        make_fabric("cuda", 1, "32-true")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("cuda", "auto"):
        with pytest.raises(KdbenchError, match=r"4 processes need a CUDA device each, and there are 2\. Start 2"):
            make_fabric(device, 4, "32-true")


def test_shares_cover_a_batch_once() -> None:
    ranks: list[Any] = [SimpleNamespace(world_size=4, global_rank=rank) for rank in range(4)]
    assert [place for rank in ranks for place in range(12)[share(rank, 12)]] == list(range(12))


def test_a_number_of_processes_that_divides_no_batch_is_refused_with_those_that_do() -> None:
    check_shares({"task": 12, "proxy": 18}, 6)
    with pytest.raises(
        KdbenchError, match=r"4 processes cannot .* proxy has batches of 18\. Start one of 1, 2, 3, 6\."
    ):
        check_shares({"task": 12, "proxy": 18}, 4)


def test_uneven_shares_are_refused_before_any_process_starts(
    make_spec: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "make_fabric", lambda *arguments: pytest.fail("processes were started"))
    with pytest.raises(KdbenchError, match=r"3 processes .* fit_teacher has batches of 4, .*Start one of 1, 2, 4"):
        grid.make_context(make_spec(devices=3), Silent())


GRADIENTS = """
import sys, numpy as np, torch, torch.nn.functional as F
from kdbench.engine.distributed import gather_interleaved, make_fabric, share
from kdbench.engine.trainer import LossModule
from kdbench.models.backbones import build_toy
from kdbench.models.segmentor import seeded
from kdbench.models.registry import MODELS

fabric = make_fabric("cpu", 1, "32-true")
encoder = seeded(lambda: build_toy(MODELS["deit-s"]), "test")
images = torch.rand(4, 3, 64, 128, generator=torch.Generator().manual_seed(0))
module = LossModule({"student.encoder": encoder}, lambda x: {"square": encoder(x).final.square().mean()})
wrapped = fabric.setup(module)
total, _ = wrapped(images[share(fabric, 4)])
fabric.backward(total)
rows = np.arange(5)[fabric.global_rank :: fabric.world_size]
assert gather_interleaved(fabric, rows).tolist() == list(range(5))
if fabric.is_global_zero:
    torch.save({n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}, sys.argv[1])
"""
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def started(*command: str, expected: int = 0) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == expected, done.stderr[-3000:]
    return done.stderr


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS, encoding="utf-8")
    started(sys.executable, str(script), str(tmp_path / "one.pt"))
    started(*TWO, str(script), str(tmp_path / "two.pt"))
    one, two = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert one
    for name, gradient in one.items():
        assert torch.allclose(gradient, two[name], rtol=1e-4, atol=1e-7), name


@pytest.mark.slow
def test_two_processes_train_and_write_one_record(tmp_path: Path) -> None:
    arguments = [
        "-m", "kdbench.cli", "run", "--method", "gkd", "--pair", "dinov2-s:deit-s", "--benchmark", "p2r",
        "--protocol", "smoke", "--device", "cpu", "--results", str(tmp_path / "results"),
        "--store", str(tmp_path / "store"),
    ]  # fmt: skip
    started(*TWO, *arguments)
    found = {path.name: read_record(path) for path in (tmp_path / "results").rglob("*.json")}
    assert set(found) == {"teacher-s0.json", "baseline-s0.json", "gkd-s0.json"}
    record = found["gkd-s0.json"]
    assert record.status == "done"
    assert record.result is not None
    # Both shares are counted: 8 test images a domain, and in the proxy stage 8 batches of 4, half of them once more.
    assert [domain.images for domain in record.result.domains] == [8, 8, 8]
    assert record.result.stages[0].student_forwards == 8 * (4 + 2)
    logs = {
        path.name: path.read_text(encoding="utf-8").splitlines() for path in (tmp_path / "results").rglob(f"*{SUFFIX}")
    }
    assert set(logs) == {name.replace(".json", SUFFIX) for name in found}
    told = [json.loads(line)["event"] for line in logs[f"gkd-s0{SUFFIX}"]]
    assert (told.count("cell"), told.count("end"), told.count("done")) == (1, 3, 1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.json")}
    started(*TWO, *arguments)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    keys = [json.loads(path.read_text())["spec"]["resolved"]["key"] for path in sorted(before)]
    # One process draws other masks and shares no stage with two.
    started(sys.executable, *arguments[:-3], str(tmp_path / "alone"), *arguments[-2:])
    alone = [
        json.loads(path.read_text())["spec"]["resolved"]["key"] for path in sorted((tmp_path / "alone").rglob("*.json"))
    ]
    assert not set(keys) & set(alone)


@pytest.mark.slow
def test_a_batch_that_is_not_shared_is_the_first_processs(tmp_path: Path, plugin: Callable[..., str]) -> None:
    """Two processes leave what one does, its stages serve both, and a stage that fails ends its cell alone."""
    lab = tmp_path / "lab.yaml"
    # Batches that two processes cannot halve.
    phases = "".join(f"  {phase}: {{shared: false, batch: 3}}\n" for phase in ("fit_teacher", "task"))
    lab.write_text(f"base: smoke\nrecipes:\n{phases}", encoding="utf-8")
    late = "        if batch.progress > 0.3:\n            raise ValueError('too late')\n"
    task = "        return task_loss(batch, student, teacher)\n"
    broken = plugin("broken", f"    def loss(self, batch, student, teacher):\n{late}{task}")

    def run(*launcher: str, results: str) -> dict[str, Any]:
        started(
            *launcher, "-m", "kdbench.cli", "run", "--method", f"{broken},cwd", "--pair", "dinov2-s:deit-s",
            "--benchmark", "p2r", "--protocol", str(lab), "--device", "cpu", "--results", str(tmp_path / results),
            "--store", str(tmp_path / "store"), expected=1,
        )  # fmt: skip
        return {path.stem: read_record(path) for path in (tmp_path / results).rglob("*.json")}

    two, one = run(*TWO, results="two"), run(sys.executable, results="one")
    assert set(two) == {"teacher-s0", "baseline-s0", "cwd-s0", "broken-s0"}
    assert "ValueError: too late" in two.pop("broken-s0").error
    del one["broken-s0"]
    assert {name: record.status for name, record in two.items()} == dict.fromkeys(one, "done")
    assert all(record.run.cached == [stage.name for stage in record.result.stages] for record in one.values())
    assert all(record.result.model_dump_json() == two[name].result.model_dump_json() for name, record in one.items())


TRAINING = """
import json, sys
from pathlib import Path
import torch
from torch import nn
from kdbench.engine import memory
from kdbench.engine.distributed import make_fabric
from kdbench.engine.store import StageFolder
from kdbench.engine.trainer import TrainingJob, LossModule, train
from kdbench.progress import Silent
from kdbench.protocol import Recipe
from kdbench.types import Batch

fabric = make_fabric("cpu", 1, "32-true")
rank = fabric.global_rank
"""
BOOKS = """
skipped = []
weight = torch.nn.Linear(1, 1)

def batches(start):
    for step in range(start, 20):
        # The second file is met by both.
        skipped[:] = [["a", "b"], ["b", "c"]][rank][: step + 1]
        yield Batch(torch.full((1, 1), 10.0 * rank + step), None, ("x",), torch.zeros(1))

def loss(batch):
    terms = {"seen": batch.image.mean() + 0 * weight(batch.image).sum()}
    return terms if rank == 0 else {**terms, "late": torch.tensor(4.0)}

recipe = Recipe(steps=20, batch=2, lr=0.1)
job = TrainingJob("books", LossModule({"p": weight}, loss), recipe, 20, batches, (0,), (20,), 7,
          skipped=skipped, most_skipped=int(sys.argv[2]))
folder = StageFolder(Path(f"{sys.argv[1]}-stage"))
try:
    said = train(fabric, job, folder, Silent()).model_dump()
except Exception as error:
    said = str(error)
Path(f"{sys.argv[1]}-{rank}").write_text(json.dumps(said))
"""


@pytest.mark.slow
def test_losses_are_means_over_processes_and_skipped_files_are_their_sum(tmp_path: Path) -> None:
    script = tmp_path / "books.py"
    script.write_text(TRAINING + BOOKS, encoding="utf-8")
    started(*TWO, str(script), str(tmp_path / "found"), "3")
    one, two = (json.loads((tmp_path / f"found-{rank}").read_text()) for rank in (0, 1))
    # Tenths of twenty steps: the mean of steps 2 i and 2 i + 1, five more than in the first process alone.
    assert one["losses"] == two["losses"] == {"seen": [2 * i + 5.5 for i in range(10)], "late": [2.0] * 10}
    assert one["skipped_files"] == two["skipped_files"] == 3
    started(*TWO, str(script), str(tmp_path / "stopped"), "2")
    for rank in (0, 1):
        said = (tmp_path / f"stopped-{rank}").read_text()
        assert "3 training files cannot be read, and the protocol allows 2" in said


MEMORY = """
STEPS, SHARE = 4, 4

def stage(name, holds, norm):
    # holds: step -> images that the second process has memory for; norm: whether there are batch statistics.
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5) if norm else nn.Identity(), nn.Linear(5, 1))
    now, seen = [0], []

    def batches(start):
        for step in range(start, STEPS):
            now[0] = step
            image = torch.randn(2, SHARE, 3, generator=torch.Generator().manual_seed(step))[rank]
            yield Batch(image, None, ("x",) * SHARE, torch.arange(SHARE))

    def loss(batch):
        seen.append(len(batch.index))
        found = network(batch.image)
        if rank == 1 and len(batch.index) > holds(now[0]):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate.")
        return {"error": (found - 1).square().mean()}

    recipe = Recipe(steps=STEPS, batch=2 * SHARE, lr=0.1)
    job = TrainingJob(name, LossModule({"p": network}, loss), recipe, STEPS, batches, (0,), (STEPS,), 99,
              student_forwards=lambda: sum(seen))
    said = train(fabric, job, StageFolder(Path(sys.argv[1]) / f"{name}-stage"), Silent()).model_dump()
    return {"micro_batches": said["micro_batches"], "passes": said["student_forwards"], "losses": said["losses"],
            "state": {name: tensor.tolist() for name, tensor in network.state_dict().items()}}

def attempt(*arguments):
    try:
        return stage(*arguments)
    except Exception as error:
        return str(error)

plenty = lambda step: SHARE
found = {
    "plenty": attempt("plenty", plenty, False),
    "tight": attempt("tight", lambda step: 2, False),
    "moments": attempt("moments", lambda step: SHARE if step == 0 else 1, False),
    "none": attempt("none", lambda step: 0, False),
    "norms": attempt("norms", plenty, True),
}
memory.PROBED_STEPS = 0
found["unprobed"] = attempt("unprobed", plenty, True)
memory.PROBED_STEPS = 2
Path(sys.argv[1], f"found-{rank}").write_text(json.dumps(found))
late = attempt("late", lambda step: SHARE if step < 2 else 2, False)
Path(sys.argv[1], f"late-{rank}").write_text(late)
raise SystemExit(9)
"""


@pytest.mark.slow
def test_where_the_memory_of_one_process_runs_out_all_agree_on_the_micro_batches(tmp_path: Path) -> None:
    script = tmp_path / "memory.py"
    script.write_text(TRAINING + MEMORY, encoding="utf-8")
    started(*TWO, str(script), str(tmp_path), expected=1)
    one, two = (json.loads((tmp_path / f"found-{rank}").read_text()) for rank in (0, 1))
    for found in (one, two):
        # Probing leaves nothing behind: neither gradients nor batch statistics, which are each process's own.
        assert found.pop("norms") == found.pop("unprobed")
    assert one == two
    assert {name: one[name]["micro_batches"] for name in ("plenty", "tight", "moments")} == {
        "plenty": 1,
        "tight": 2,
        "moments": 4,
    }
    for name in ("tight", "moments"):
        assert one[name]["passes"] == one["plenty"]["passes"] == 4 * 4
        for key, values in one["plenty"]["state"].items():
            assert np.allclose(one[name]["state"][key], values, atol=1e-6), (name, key)
    assert "none: the device's memory does not hold 4 images in 4 micro-batches" in one["none"]
    late = (tmp_path / "late-1").read_text()
    assert "late: the memory of process 1 ran out over a batch of the size that it held at first" in late
    assert "the same command goes on from the last checkpoint" in late


BAD = """
import os
from kdbench.method import Method


class Bad(Method):
    def loss(self, batch, student, teacher):
        loss = student(batch.image).logits.square().mean()
        WHERE
        return {"x": loss}
"""
# A cell's end is waited for as short as a test can wait.
IMPATIENT = """
import datetime
from kdbench.engine import distributed
distributed.END_TIMEOUT = datetime.timedelta(seconds=20)
from kdbench.cli import main
main()
"""


def errors_of(folder: Path, where: str) -> tuple[dict[str, str | None], str]:
    """What two processes leave of a method that fails somewhere and of one that does not: errors by record, output."""
    (folder / "bad.py").write_text(BAD.replace("WHERE", where), encoding="utf-8")
    (folder / "main.py").write_text(IMPATIENT, encoding="utf-8")
    said = started(
        *TWO, str(folder / "main.py"), "run", "--method", f"{folder / 'bad.py'},baseline", "--pair", "dinov2-s:deit-s",
        "--benchmark", "p2r", "--protocol", "smoke", "--device", "cpu", "--no-references",
        "--results", str(folder / "results"), "--store", str(folder / "store"), expected=1,
    )  # fmt: skip
    return {path.name: read_record(path).error for path in (folder / "results").rglob("*-s0.json")}, said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("raise ValueError('everywhere')", "ValueError: everywhere"),
        (
            "loss = loss * (float('nan') if os.environ['RANK'] == '1' else 1)",
            "the loss is not finite at step 0 (x = nan)",
        ),
    ],
)
def test_a_cell_that_fails_in_all_processes_leaves_its_record_and_the_others_go_on(
    tmp_path: Path, where: str, expected: str
) -> None:
    errors, _ = errors_of(tmp_path, where)
    assert expected in (errors["bad-s0.json"] or "")
    assert errors["baseline-s0.json"] is None


@pytest.mark.slow
def test_a_process_that_fails_alone_leaves_the_record_and_says_why_the_run_ends(tmp_path: Path) -> None:
    errors, said = errors_of(tmp_path, "if os.environ['RANK'] == '1': raise ValueError('only here')")
    (error,) = errors.values()
    assert "ValueError: only here" in (error or "")
    assert "The other processes wait in the middle of a step" in (error or "")
    assert "only here" in said
