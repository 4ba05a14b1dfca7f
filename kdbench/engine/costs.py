"""What a stage costs, measured on its real networks with one image: operations, and the memory that a step needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from kdbench.engine.cell import Lab, Plan, Planned
from kdbench.engine.parts import views
from kdbench.types import Batch

ADAM = 16
"""Bytes a trained parameter: itself, its gradient and two moments, in single precision."""
FROZEN = 4
"""Half of it where the engine holds a frozen part in bfloat16."""


@dataclass(frozen=True)
class Cost:
    """flops: floating point operations of a step's forward and backward passes, an image. memory: bytes for a batch.

    trained, parameters: how many learn, and how many there are.
    """

    flops: float
    memory: float
    trained: int
    parameters: int


def cost_of(lab: Lab, plan: Plan, step: Planned) -> Cost:
    """Runs the stage's loss and its gradients once on a blank image, on the processor, with random weights."""
    networks, size = plan.networks, step.recipe.size(lab.protocol.image_size)
    geometry = lab.geometry(step.recipe, size)
    for segmentor in (networks.teacher, networks.student):
        if segmentor is not None and geometry is not None:
            segmentor.encoder.adapt(geometry)
    trained = networks.freeze_all_but(step.stage.trains)
    networks.forget(frozenset(networks.modules()))
    label = torch.zeros(1, *size, dtype=torch.int64) if step.stage.phase.labelled else None
    batch = Batch(torch.zeros(1, 3, *size), label, ("blank",), torch.zeros(1, dtype=torch.int64))
    kept = Kept(tensor for module in networks.modules().values() for tensor in module.state_dict().values())
    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(kept.add, lambda tensor: tensor):
        terms = step.stage.loss(batch, *views(networks, step.stage))
        torch.autograd.backward(torch.stack([term.float() for term in terms.values()]).sum())
    learning = sum(p.numel() for module in trained.values() for p in module.parameters())
    whole = sum(p.numel() for module in networks.modules().values() for p in module.parameters())
    for module in trained.values():
        module.zero_grad(set_to_none=True)
    each = 2 if lab.protocol.precision.startswith("bf16") else 4
    halved = sum(p.numel() for n in lab.halved(step.stage) for p in networks.modules()[n].parameters())
    memory = ADAM * learning + FROZEN * (whole - learning - halved / 2) + kept.numbers * each * step.recipe.batch
    return Cost(float(counter.get_total_flops()), float(memory), learning, whole)


class Kept:
    """Numbers that the forward pass keeps for the backward pass, weights left out, each storage once."""

    def __init__(self, weights: Iterable[Tensor] = ()) -> None:
        self.numbers = 0
        self._seen = {weight.untyped_storage().data_ptr() for weight in weights}

    def add(self, tensor: Tensor) -> Tensor:
        """One more tensor."""
        place = tensor.untyped_storage().data_ptr()
        if place not in self._seen:
            self._seen.add(place)
            self.numbers += tensor.numel()
        return tensor


def amount(number: float, unit: str) -> str:
    """A number with a prefix: 3.2 T, 41 G."""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if number < 1000:
            return f"{number:.3g} {prefix}{unit}"
        number /= 1000
    return f"{number:.3g} Z{unit}"
