"""Runs on several processes, torchrun's, SLURM's or those that `--devices` starts: shares, exchange, failures."""

from __future__ import annotations

import datetime
import math
import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
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

from kdbench.errors import KdbenchError, describe

TIMEOUT = datetime.timedelta(days=7)
"""For everything but a cell's end: processes wait while another run trains a stage, or one reads all test images."""
END_TIMEOUT = datetime.timedelta(minutes=5)
"""At a cell's end, where no process is more than some writing behind."""
STRANDED = (
    "(The other processes wait in the middle of a step, so that this cell ends the run. The same command goes on from "
    "the last checkpoint.)"
)


def processes(devices: int, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return processes per node, and nodes: what a launcher has started, else as many as were asked for here."""
    if not launched(environment):
        return devices, 1
    if "LOCAL_WORLD_SIZE" in environment:
        each = int(environment["LOCAL_WORLD_SIZE"])
        return each, int(environment["WORLD_SIZE"]) // each
    nodes = int(environment.get("SLURM_NNODES", "1"))
    return int(environment["SLURM_NTASKS"]) // nodes, nodes


def launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Say whether torchrun or srun started this process as one of several."""
    # A shell inside an allocation has SLURM_NTASKS too, without having been started by srun as one of its tasks.
    srun = int(environment.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_ID" in environment
    return "LOCAL_WORLD_SIZE" in environment or srun


def make_fabric(device: str, devices: int, precision: str) -> Fabric:
    """Start the processes and return their Fabric; on a CPU, choose kernels that add in a fixed order."""
    each, nodes = processes(devices)
    _check_device(device, each)
    fabric = _launch(device, each, nodes, precision)
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
    """Choose kernels that add in a fixed order on a CPU, where reruns are promised to be bit-identical.

    A GPU would pay for them and not keep the promise: every bilinear resizing would go through a slow decomposition.
    """
    torch.use_deterministic_algorithms(device.type == "cpu", warn_only=True)
    # Else that mode writes NaN into every fresh tensor: a fourteenth of a GKD step on a CPU, for the same result.
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _launch(device: str, each: int, nodes: int, precision: str) -> Fabric:
    if each * nodes == 1:
        return Fabric(accelerator=device, devices=1, precision=precision, plugins=[LightningEnvironment()])
    # A stage may train a part of which its loss reads a part: an encoder without its mask token.
    strategy = DDPStrategy(find_unused_parameters=True, timeout=TIMEOUT)
    # Else an allocation's variables alone, without srun, would be taken for processes that nobody started.
    plugins = None if launched() else [LightningEnvironment()]
    fabric = Fabric(
        accelerator=device, devices=each, num_nodes=nodes, strategy=strategy, precision=precision, plugins=plugins
    )
    fabric.launch()
    _end_group()
    return fabric


@cache
def alone(device: torch.device, precision: str) -> Fabric:
    """Return a Fabric of this process alone, beside that of all, on its device."""
    devices = 1 if device.index is None else [device.index]
    return Fabric(accelerator=device.type, devices=devices, precision=precision, plugins=[LightningEnvironment()])


@cache
def _end_group() -> Any:
    """Return all processes as a second group, free while the first waits; all have to make it at once."""
    return torch.distributed.new_group(backend="gloo", timeout=END_TIMEOUT)


def check_shares(batches: Mapping[str, int], count: int) -> None:
    """Raise where so many processes cannot take equal shares of every batch. batches: of the phases that share them."""
    uneven = [f"{phase} has batches of {batch}" for phase, batch in batches.items() if batch % count]
    if uneven:
        fitting = ", ".join(map(str, _equal(batches)))
        raise KdbenchError(
            f"{count} processes cannot take equal shares of every batch: {', '.join(uneven)}. Start one of {fitting}."
        )


def check_smallest(what: str, needed: int, batch: int, batches: Mapping[str, int], count: int) -> None:
    """Raise where a process's share of a batch is smaller than a loss needs. batches: of the phases that share them."""
    each = batch // count
    if each >= needed:
        return
    fitting = [str(number) for number in _equal(batches) if batch // number >= needed]
    raise KdbenchError(
        f"{what}: its loss compares {needed} images at least, and a process gets {each} of a batch of {batch}. "
        + (f"Start one of {', '.join(fitting)} processes." if fitting else "Take a protocol with larger batches.")
    )


def _equal(batches: Mapping[str, int]) -> list[int]:
    """Return the numbers of processes that can take equal shares of every batch."""
    common = math.gcd(*batches.values()) or 1
    return [number for number in range(1, common + 1) if common % number == 0]


def share(fabric: Fabric, batch: int) -> slice:
    """Return the places of a batch that this process trains on (check_shares has found that they divide it)."""
    each = batch // fabric.world_size
    return slice(fabric.global_rank * each, (fabric.global_rank + 1) * each)


def gathered(fabric: Fabric, value: Any) -> list[Any]:
    """Return the values of all processes, in their order."""
    if fabric.world_size == 1:
        return [value]
    found: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(found, value)
    return found


def gather_interleaved(fabric: Fabric, rows: np.ndarray) -> np.ndarray:
    """Gather rank-strided rows (n, ...) of all processes back into list order."""
    if fabric.world_size == 1:
        return rows
    shares = gathered(fabric, rows)
    whole = np.zeros((sum(map(len, shares)), *rows.shape[1:]), rows.dtype)
    for rank, share_of_rank in enumerate(shares):
        whole[rank :: fabric.world_size] = share_of_rank
    return whole


@dataclass(frozen=True)
class Failure:
    """What ended a cell in one process. trace: the lines of code that the error came through."""

    text: str
    trace: tuple[str, ...]


def failure_of(error: Exception, rank: int) -> Failure:
    """Describe what ended a cell in the process of that rank."""
    frames = [frame for cause in _causes(error) for frame in traceback.extract_tb(cause.__traceback__)]
    trace = tuple(f"{frame.filename}:{frame.lineno}" for frame in frames)
    # An exchange of gradients may be under way in a backward pass: no two processes are then surely at one line.
    backward = any(frame.name == "backward" for frame in frames)
    return Failure(describe(error), (*trace, f"process {rank}") if backward else trace)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def all_failures(fabric: Fabric, mine: Failure | None) -> list[Failure | None] | None:
    """Return how every process ended a cell; None where the others do not say so, because they wait for this one."""
    if fabric.world_size == 1:
        return [mine]
    found: list[Failure | None] = [None] * fabric.world_size
    try:
        torch.distributed.all_gather_object(found, mine, group=_end_group())
    except RuntimeError:
        return None
    return found


def explain_failures(mine: Failure | None, everywhere: Sequence[Failure | None] | None, in_step: bool) -> str:
    """Return a record's error. in_step: all processes came to the same end, so that another cell can begin."""
    if everywhere is None:
        return f"{mine.text if mine else 'Another process does not come to its end.'} {STRANDED}"
    if in_step:
        return next(found.text for found in everywhere if found)
    ends = (f"process {rank}: {found.text if found else 'done'}" for rank, found in enumerate(everywhere))
    return f"The processes ended apart, which ends the run. {'; '.join(ends)}"
