"""A batch's gradients, in as many micro-batches as the devices' memory asks for."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from kdbench.engine.distributed import gathered
from kdbench.errors import KdbenchError
from kdbench.types import Batch

Terms = dict[str, Tensor]
Loss = Callable[[Any], tuple[Tensor, Terms]]
"""From a batch to the sum to minimise, and its terms."""
PROBED_STEPS = 2
"""Steps whose memory is probed first, but for one process on a CPU: the optimiser's moments come with the second."""


def release_memory() -> None:
    """Free what finished networks hold: an encoder and the hook on its stem hold each other until collected."""
    gc.collect()
    torch.cuda.empty_cache()


class Gradients:
    """Computes gradients batch by batch; where memory runs out, in twice as many micro-batches from then on.

    A process whose memory runs out leaves the exchange of gradients, in which the others then wait for it. So several
    processes probe the memory of the first steps, each for itself, and agree on the micro-batches; running out later
    is fatal to them.
    """

    def __init__(
        self,
        fabric: Fabric,
        loss: nn.Module,
        module: nn.Module,
        what: str,
        student_forwards: Callable[[], int],
        smallest_batch: int,
    ) -> None:
        """loss: the module as Fabric has set it up; module: the same, bare. student_forwards: failed passes included.

        smallest_batch: images that the loss needs at once.
        """
        self.micro_batches = 1
        self.student_forwards = 0
        """Images through the student, failed passes left out."""
        self._fabric, self._loss, self._module = fabric, loss, module
        self._what, self._all_forwards, self._smallest_batch = what, student_forwards, smallest_batch
        # A pass that fails later leaves its mark in batch statistics and memories; a probe does not.
        self._probes = PROBED_STEPS if fabric.world_size > 1 or fabric.device.type != "cpu" else 0

    def __call__(self, batch: Any, seed: int) -> Terms:
        """Leave the whole batch's gradients with the parameters. Returns the terms.

        seed: of the masks and the dropout that are drawn inside the loss.
        """
        if self._probes:
            self._probe_memory(batch, seed)
            self._probes -= 1
        while True:
            before = self._all_forwards()
            try:
                terms = self._pass(self._loss, batch, seed)
            except torch.OutOfMemoryError as error:
                if self._fabric.world_size > 1:
                    raise KdbenchError(
                        f"{self._what}: the memory of process {self._fabric.global_rank} ran out over a batch of the "
                        f"size that it held at first, {len(batch.index)} images in {self.micro_batches} micro-batches. "
                        "See what else takes memory on its device; the same command goes on from the last checkpoint."
                    ) from error
            else:
                self.student_forwards += self._all_forwards() - before
                return terms
            # Outside the handler, which keeps the failed pass's tensors alive.
            self._halve(batch)

    def _probe_memory(self, batch: Any, seed: int) -> None:
        """Find the micro-batches that fit in all processes, and leave buffers and gradients as they were."""
        while not all(gathered(self._fabric, self._fits(batch, seed))):
            self._halve(batch)

    def _fits(self, batch: Any, seed: int) -> bool:
        buffers = [(buffer, buffer.clone()) for buffer in self._module.buffers()]
        try:
            self._pass(self._loss_of_this_process, batch, seed)
        except torch.OutOfMemoryError:
            return False
        finally:
            self._module.zero_grad()
            for buffer, before in buffers:
                buffer.copy_(before)
        return True

    def _loss_of_this_process(self, batch: Any) -> tuple[Tensor, Terms]:
        with self._fabric.autocast():
            found: tuple[Tensor, Terms] = self._module(batch)
        return found

    def _halve(self, batch: Any) -> None:
        self._module.zero_grad()
        release_memory()
        # What pretraining learns from is no Batch, and is not split.
        held = f"{len(batch.index)} images in {self.micro_batches} micro-batches" if isinstance(batch, Batch) else ""
        if not held or len(batch.index) // (2 * self.micro_batches) < self._smallest_batch:
            least = f", and the loss needs {self._smallest_batch} images at once" if self._smallest_batch > 1 else ""
            raise KdbenchError(
                f"{self._what}: the device's memory does not hold {held or 'a batch'}{least}. Take a device with more "
                "memory, or smaller networks."
            )
        self.micro_batches *= 2

    def _pass(self, loss: Loss, batch: Any, seed: int) -> Terms:
        torch.manual_seed(seed)
        if self.micro_batches > 1:
            return self._accumulate(loss, batch)
        total, terms = loss(batch)
        self._fabric.backward(total)
        return terms

    def _accumulate(self, loss: Loss, batch: Any) -> Terms:
        """As one batch for losses that are means over samples; batch statistics are those of the micro-batches."""
        whole: Terms = {}
        *others, last = batch.micro_batches(self.micro_batches)
        for micro_batch in (*others, last):
            part = len(micro_batch.index) / len(batch.index)
            with self._fabric.no_backward_sync(self._loss, enabled=micro_batch is not last):
                total, terms = loss(micro_batch)
                self._fabric.backward(total * part)
            for name, term in terms.items():
                whole[name] = whole.get(name, torch.zeros_like(term)) + part * term
        return whole
