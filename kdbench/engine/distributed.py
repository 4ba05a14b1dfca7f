"""One run on several processes: torchrun's or SLURM's, or those that `--devices` starts."""

from __future__ import annotations

import datetime
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.distributed
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.strategies import DDPStrategy
from torch.utils import deterministic

from kdbench.errors import KdbenchError

WAIT = datetime.timedelta(days=7)
"""How long a process waits for the others."""
PATIENCE = datetime.timedelta(minutes=5)
"""How long a process waits at a cell's end, where the others are no more than some writing behind."""


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
    """Fabric with its processes running, and kernels that add in a fixed order where there are such."""
    each, nodes = processes(devices)
    _check_device(device, each)
    fabric = _launched(device, each, nodes, precision)
    _fix_order(fabric.device)
    return fabric


def _check_device(device: str, each: int) -> None:
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and not there:
        raise KdbenchError("--device cuda: this machine has no usable CUDA device. Use --device cpu or auto.")
    if device != "cpu" and there and each > there:
        raise KdbenchError(
            f"{each} processes need a CUDA device each, and there are {there}. Start {there}, or add --device cpu."
        )


def _fix_order(device: torch.device) -> None:
    """Bit-identical reruns are promised on a CPU, and need kernels that add in a fixed order, where there are such.

    A GPU would pay for them and not keep the promise: every bilinear resizing would go through a slow decomposition.
    """
    torch.use_deterministic_algorithms(device.type == "cpu", warn_only=True)
    # Else that mode writes NaN into every fresh tensor: a fourteenth of a GKD step on a CPU, for the same result.
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _launched(device: str, each: int, nodes: int, precision: str) -> Fabric:
    if each * nodes == 1:
        return Fabric(accelerator=device, devices=1, precision=precision, plugins=[LightningEnvironment()])
    # A stage may train a part of which its loss reads a part: an encoder without its mask token.
    # Waiting is long where another run holds a stage, or one process reads all test images.
    strategy = DDPStrategy(find_unused_parameters=True, timeout=WAIT)
    # Else an allocation's variables alone, without srun, would be taken for processes that nobody started.
    plugins = None if launched() else [LightningEnvironment()]
    fabric = Fabric(
        accelerator=device, devices=each, num_nodes=nodes, strategy=strategy, precision=precision, plugins=plugins
    )
    fabric.launch()
    _aside()
    return fabric


@cache
def _aside() -> Any:
    """All processes as a second group, free while the first waits for somebody; all have to make it at once."""
    return torch.distributed.new_group(backend="gloo", timeout=PATIENCE)


def check_shares(batches: Mapping[str, int], count: int) -> None:
    """Raises where so many processes cannot take equal shares of every phase's batch."""
    uneven = [f"{phase} has batches of {batch}" for phase, batch in batches.items() if batch % count]
    if uneven:
        fitting = ", ".join(map(str, _equal(batches)))
        raise KdbenchError(
            f"{count} processes cannot take equal shares of every batch: {', '.join(uneven)}. Start one of {fitting}."
        )


def check_smallest(what: str, needed: int, phase: str, batches: Mapping[str, int], count: int) -> None:
    """Raises where a process's share of a phase's batch is smaller than a loss needs."""
    each = batches[phase] // count
    if each >= needed:
        return
    fitting = [str(number) for number in _equal(batches) if batches[phase] // number >= needed]
    raise KdbenchError(
        f"{what}: its loss compares {needed} images at least, and a process gets {each} of a batch of "
        f"{batches[phase]}. "
        + (f"Start one of {', '.join(fitting)} processes." if fitting else "Take a protocol with larger batches.")
    )


def _equal(batches: Mapping[str, int]) -> list[int]:
    """Numbers of processes that can take equal shares of every batch."""
    common = math.gcd(*batches.values())
    return [number for number in range(1, common + 1) if common % number == 0]


def share(fabric: Fabric, batch: int) -> slice:
    """Which places of a batch this process trains on (check_shares has found that they divide it)."""
    each = batch // fabric.world_size
    return slice(fabric.global_rank * each, (fabric.global_rank + 1) * each)


def gathered(fabric: Fabric, thing: Any) -> list[Any]:
    """What every process gives, in their order."""
    if fabric.world_size == 1:
        return [thing]
    found: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(found, thing)
    return found


@dataclass(frozen=True)
class Failure:
    """What ended a cell in one process. place: the lines of code that it came through."""

    text: str
    place: tuple[str, ...]


def failures(fabric: Fabric, mine: Failure | None) -> list[Failure | None] | None:
    """How every process ended a cell; None where the others do not come to say so, because they wait for this one."""
    if fabric.world_size == 1:
        return [mine]
    found: list[Failure | None] = [None] * fabric.world_size
    try:
        torch.distributed.all_gather_object(found, mine, group=_aside())
    except RuntimeError:
        return None
    return found


def gather_interleaved(fabric: Fabric, rows: np.ndarray) -> np.ndarray:
    """All processes' rows (n, ...), where each has every so-manieth of a list, in the list's order."""
    if fabric.world_size == 1:
        return rows
    pieces = gathered(fabric, rows)
    whole = np.zeros((sum(map(len, pieces)), *rows.shape[1:]), rows.dtype)
    for rank, piece in enumerate(pieces):
        whole[rank :: fabric.world_size] = piece
    return whole
