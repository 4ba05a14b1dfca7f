"""One run on several processes: torchrun's or SLURM's, or those that `--devices` starts."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping

import numpy as np
import torch.distributed
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.strategies import DDPStrategy

from kdbench.errors import KdbenchError

WAIT = datetime.timedelta(days=7)
"""How long a process waits for the others."""


def processes(devices: int, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Processes on each node, and nodes: what a launcher has started, else as many as were asked for on this one."""
    if not launched(environment):
        return devices, 1
    if "LOCAL_WORLD_SIZE" in environment:
        each = int(environment["LOCAL_WORLD_SIZE"])
        return each, int(environment["WORLD_SIZE"]) // each
    nodes = int(environment.get("SLURM_NNODES", "1"))
    return int(environment["SLURM_NTASKS"]) // nodes, nodes


def launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun or srun started this process as one of several."""
    # A shell inside an allocation has SLURM_NTASKS too, without having been started by srun as one of its tasks.
    srun = int(environment.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_ID" in environment
    return "LOCAL_WORLD_SIZE" in environment or srun


def make_fabric(device: str, devices: int, precision: str) -> Fabric:
    """Fabric with its processes running."""
    each, nodes = processes(devices)
    if each * nodes == 1:
        return Fabric(accelerator=device, devices=1, precision=precision, plugins=[LightningEnvironment()])
    # A stage may train a part of which its loss reads a part: an encoder without its mask token.
    # Waiting is long where another run holds a stage, or one process reads all test images.
    strategy = DDPStrategy(find_unused_parameters=True, timeout=WAIT)
    # Else an allocation's variables alone, without srun, would be taken for processes that nobody started.
    plugins = [LightningEnvironment()] if (each, nodes) == (devices, 1) and not launched() else None
    fabric = Fabric(
        accelerator=device, devices=each, num_nodes=nodes, strategy=strategy, precision=precision, plugins=plugins
    )
    fabric.launch()
    return fabric


def share(fabric: Fabric, batch: int) -> slice:
    """Which places of a batch this process trains on."""
    if batch % fabric.world_size:
        raise KdbenchError(
            f"a batch of {batch} does not divide among {fabric.world_size} processes. Start a number that divides it."
        )
    each = batch // fabric.world_size
    return slice(fabric.global_rank * each, (fabric.global_rank + 1) * each)


def gather_interleaved(fabric: Fabric, rows: np.ndarray) -> np.ndarray:
    """All processes' rows (n, ...), where each has every so-manieth of a list, in the list's order."""
    if fabric.world_size == 1:
        return rows
    pieces: list[np.ndarray] = [rows] * fabric.world_size
    torch.distributed.all_gather_object(pieces, rows)
    whole = np.zeros((sum(map(len, pieces)), *rows.shape[1:]), rows.dtype)
    for rank, piece in enumerate(pieces):
        whole[rank :: fabric.world_size] = piece
    return whole
