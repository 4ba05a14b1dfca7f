"""Several processes: what a launcher has started, shares of a batch, and two real ones on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kdbench.engine.processes import gather_interleaved, processes, share
from kdbench.errors import KdbenchError
from kdbench.report.records import read_record


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


def test_shares_cover_a_batch_once() -> None:
    ranks: list[Any] = [SimpleNamespace(world_size=4, global_rank=rank) for rank in range(4)]
    assert [place for rank in ranks for place in range(12)[share(rank, 12)]] == list(range(12))
    with pytest.raises(KdbenchError, match="a batch of 6 does not divide among 4 processes"):
        share(ranks[0], 6)


def test_one_process_gathers_what_it_has() -> None:
    alone: Any = SimpleNamespace(world_size=1)
    rows = np.arange(6).reshape(3, 2)
    assert gather_interleaved(alone, rows) is rows


GRADIENTS = """
import sys, numpy as np, torch, torch.nn.functional as F
from kdbench.engine.processes import gather_interleaved, make_fabric, share
from kdbench.engine.trainer import LossModule
from kdbench.models.backbones import build_stand_in
from kdbench.models.segmentor import seeded
from kdbench.models.zoo import ROLES

fabric = make_fabric("cpu", 1, "32-true")
encoder = seeded(lambda: build_stand_in(ROLES["deit-s"]), "test")
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


def started(*command: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]


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
    # Both shares are counted: 8 test images a domain, and in the proxy stage two passes over 8 batches of 4.
    assert [domain.images for domain in record.result.domains] == [8, 8, 8]
    assert record.result.stages[0].student_passes == 2 * 8 * 4
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
