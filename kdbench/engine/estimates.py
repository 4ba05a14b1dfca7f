"""Estimates how long a stage takes on this machine and its files: what it reads, and what it computes."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from lightning.fabric import Fabric
from torch.utils.benchmark import Timer

from kdbench.data.loading import Sampler, StepBatches
from kdbench.data.realset import RealSet
from kdbench.engine.plan import PlannedStage, RunContext

ATTAINED = 0.4
"""The part of the device's rate for large matrix products that training is taken to reach."""
SIDE, MEASURED = 4096, 0.3
"""Of those products: the matrices' side on a GPU, and seconds of measuring."""
VIEWS = 6
"""Views that are read to know what one takes, or two images' views where views are repeated."""


@dataclass(frozen=True)
class StageTime:
    """Seconds of a stage: for reading and for computing, which go on side by side; and for reading one view."""

    reading: float
    computing: float
    view: float

    @property
    def whole(self) -> float:
        """The longer of the two."""
        return max(self.reading, self.computing)


def time_of(context: RunContext, step: PlannedStage, flops: float, rate: float) -> StageTime:
    """Estimate a stage on real images. flops: of the whole stage. rate: of the device, operations a second."""
    sharers = context.sharers(step.recipe)
    view = seconds_a_view(context, step)
    views = step.recipe.batch * step.steps / sharers
    return StageTime(views * view / max(1, context.workers), flops / sharers / (rate * ATTAINED), view)


def seconds_a_view(context: RunContext, step: PlannedStage) -> float:
    """Read and transform some views, as a process that reads ahead does; drawn pictures lie in memory: 0."""
    recipe, phase = step.recipe, step.stage.phase
    if not all(isinstance(samples, RealSet) for samples in step.sets):
        return 0.0
    batches = StepBatches(step.sets, recipe, recipe.size(context.protocol.image_size), 0, phase)
    sampler = Sampler(batches.samples, recipe, 0, phase)
    # The first one opens what they share.
    batches[sampler.step(0)[:1]]
    drawn = sampler.step(1)[: max(VIEWS, 2 * recipe.repeats)]
    started = time.perf_counter()
    batches[drawn]
    return (time.perf_counter() - started) / len(drawn)


def matrix_rate(fabric: Fabric, precision: str) -> float:
    """Measure the device's rate for large matrix products in a protocol's precision, operations a second."""
    side = SIDE if fabric.device.type == "cuda" else SIDE // 8
    kind = torch.bfloat16 if precision.startswith("bf16") else torch.float32
    left = torch.zeros(side, side, dtype=kind, device=fabric.device)
    timer = Timer("left @ left", globals={"left": left}, num_threads=torch.get_num_threads())
    return float(2 * side**3 / timer.blocked_autorange(min_run_time=MEASURED).median)
