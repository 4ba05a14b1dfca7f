"""What a cell costs, measured on its real networks: operations, memory and time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kdbench.engine.evaluation import predict
from kdbench.engine.parts import Networks, stage_models
from kdbench.engine.plan import Plan, PlannedStage, RunContext, networks_and_stages
from kdbench.errors import describe
from kdbench.types import Batch

ADAM = 16
"""Bytes of a trained parameter: itself, its gradient and two moments, in single precision."""
FROZEN = 4
"""Bytes of a frozen parameter; half of it where the engine holds the part in bfloat16."""


@dataclass(frozen=True)
class StageCost:
    """A stage's arithmetic and memory.

    flops: floating point operations of forward and backward pass per image. memory: bytes for a batch. trained,
    parameters: how many parameters learn, and how many there are.
    """

    flops: float
    memory: float
    trained: int
    parameters: int

    def total_flops(self, step: PlannedStage) -> int:
        """Return the operations of all steps of the stage."""
        return round(self.flops * step.recipe.batch * step.steps)


def stage_flops(context: RunContext, plan: Plan, names: Collection[str]) -> dict[str, int | None]:
    """Count the operations of these stages; None, with a note, where a loss fails on blank images."""
    if not names:
        return {}
    # On networks of their own: a loss may leave its mark in buffers, memories and attributes of its modules, which
    # cannot be put back as they were; and a copy of built networks would share their hooks.
    networks, stages = networks_and_stages(context, plan.cell)
    found: dict[str, int | None] = {}
    for stage, planned in zip(stages, plan.stages, strict=True):
        step, name = replace(planned, stage=stage), stage.name
        if name not in names:
            continue
        try:
            found[name] = cost_of(context, networks, step).total_flops(step)
        except Exception as error:  # a plug-in's own code, which may train where it fails here
            context.progress.note(f"{plan.cell.id.name} · {name}: operations are not counted ({describe(error)})")
            found[name] = None
    return found


def cost_of(context: RunContext, networks: Networks, step: PlannedStage) -> StageCost:
    """Run the stage's loss and its gradients once on blank images, on the processor, with random weights."""
    size = step.recipe.size(context.protocol.image_size)
    geometry = context.geometry(step.recipe, size)
    for segmentor in (networks.teacher, networks.student):
        if segmentor is not None and geometry is not None:
            segmentor.encoder.adapt(geometry)
    trained = networks.freeze_all_but(step.stage.trains)
    networks.forget(frozenset(networks.modules()))
    # Two at least: a loss may send every second one through the student twice, or need statistics of a batch.
    count = max(2, Fraction(step.stage.student_forwards).limit_denominator(8).denominator)
    label = torch.zeros(count, *size, dtype=torch.int64) if step.stage.phase.labelled else None
    batch = Batch(torch.zeros(count, 3, *size), label, ("blank",) * count, torch.arange(count))
    saved = SavedTensors(tensor for module in networks.modules().values() for tensor in module.state_dict().values())
    with counted() as counter, torch.autograd.graph.saved_tensors_hooks(saved.add, lambda tensor: tensor):
        terms = step.stage.loss(batch, *stage_models(networks, step.stage))
        torch.autograd.backward(torch.stack([term.float() for term in terms.values()]).sum())
    learning = sum(p.numel() for module in trained.values() for p in module.parameters())
    whole = sum(p.numel() for module in networks.modules().values() for p in module.parameters())
    for module in trained.values():
        module.zero_grad(set_to_none=True)
    each = 2 if context.protocol.precision.startswith("bf16") else 4
    bf16 = sum(p.numel() for n in context.bf16_parts(step.stage) for p in networks.modules()[n].parameters())
    memory = ADAM * learning + FROZEN * (whole - learning - bf16 / 2)
    memory += saved.numbers / count * each * step.recipe.batch
    return StageCost(counter.get_total_flops() / count, float(memory), learning, whole)


TIMED = 7
"""Forward passes after one that is not timed. The quickest counts: other load only slows them."""


class InferenceCost(NamedTuple):
    """Operations, and milliseconds on the run's device, of one blank image of the protocol's size; None: not known."""

    flops: int | None = None
    latency_ms: float | None = None


@torch.no_grad()
def inference_of(context: RunContext, model: nn.Module) -> InferenceCost:
    """Measure what is deployed; where its code fails on a blank image, note that and return nothing known."""
    device, times = context.fabric.device, []
    image = torch.zeros(1, 3, *context.protocol.image_size, device=device)
    try:
        with context.fabric.autocast():
            with counted() as counter:
                predict(model, image, context.protocol.evaluation, context.protocol.image_size)
            for _ in range(TIMED):
                started = time.perf_counter()
                predict(model, image, context.protocol.evaluation, context.protocol.image_size)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times.append(1000 * (time.perf_counter() - started))
    except Exception as error:  # hours of training are not lost for it
        context.progress.note(f"inference is not measured ({error})")
        return InferenceCost()
    return InferenceCost(counter.get_total_flops(), round(min(times), 3))


@contextlib.contextmanager
def counted() -> Iterator[FlopCounterMode]:
    """Count operations, a multiply-add as two. torch.nn's fused attention, which no counter sees, is off meanwhile."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


class SavedTensors:
    """Counts what a forward pass saves for the backward pass: elements of each storage once, weights left out."""

    def __init__(self, weights: Iterable[Tensor] = ()) -> None:
        self.numbers = 0
        self._seen = {weight.untyped_storage().data_ptr() for weight in weights}

    def add(self, tensor: Tensor) -> Tensor:
        """Count a tensor, as torch.autograd.graph.saved_tensors_hooks packs it."""
        storage = tensor.untyped_storage().data_ptr()
        if storage not in self._seen:
            self._seen.add(storage)
            self.numbers += tensor.numel()
        return tensor
