"""A batch's gradients, in as many pieces as the memory of the devices asks for."""

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

ProtocolOverrides = dict[str, Tensor]
Loss = Callable[[Any], tuple[Tensor, ProtocolOverrides]]
"""A batch or a piece of it to the sum to minimise, and its terms."""
REHEARSED = 2
"""Steps that are rehearsed, but for one process on a CPU: from the second on the optimiser's moments take memory."""


def release() -> None:
    """Gives back what finished networks hold: an encoder and the hook on its stem hold each other until collected."""
    gc.collect()
    torch.cuda.empty_cache()


class Gradients:
    """Forward and backward pass of a stage's batches; where memory runs out, in twice as many pieces from then on.

    A process whose memory runs out leaves the exchange of gradients, in which the others then wait for it. So several
    processes rehearse the first steps, each for itself, and agree on the pieces; later it is fatal to them.
    loss: the module, as Fabric has set it up; module: the same, bare. images: how many have gone through the student.
    smallest: images that the loss needs at once.
    """

    def __init__(
        self, fabric: Fabric, loss: nn.Module, module: nn.Module, what: str, images: Callable[[], int], smallest: int
    ) -> None:
        self.pieces = 1
        self.passes = 0
        """Images through the student, where memory held them to the end."""
        self._fabric, self._loss, self._module = fabric, loss, module
        self._what, self._images, self._smallest = what, images, smallest
        # A pass that fails later leaves its mark in batch statistics and memories; a rehearsed one does not.
        self._rehearsals = REHEARSED if fabric.world_size > 1 or fabric.device.type != "cpu" else 0

    def __call__(self, batch: Any, seed: int) -> ProtocolOverrides:
        """Leaves the gradients of the whole batch with the parameters. Returns the terms.

        seed: of masks and dropout, which are drawn inside the loss.
        """
        if self._rehearsals:
            self._rehearse(batch, seed)
            self._rehearsals -= 1
        while True:
            before = self._images()
            try:
                terms = self._pass(self._loss, batch, seed)
            except torch.OutOfMemoryError as error:
                if self._fabric.world_size > 1:
                    raise KdbenchError(
                        f"{self._what}: the memory of process {self._fabric.global_rank} ran out over a batch of the "
                        f"size that it held at first, {len(batch.index)} images in {self.pieces} pieces. See what else "
                        "takes memory on its device; the same command goes on from the last checkpoint."
                    ) from error
            else:
                self.passes += self._images() - before
                return terms
            # Outside the handler, which keeps the failed pass's tensors alive.
            self._halve(batch)

    def _rehearse(self, batch: Any, seed: int) -> None:
        """Finds the pieces that fit in all processes; nothing else is left of it, in buffers or gradients."""
        while not all(gathered(self._fabric, self._fits(batch, seed))):
            self._halve(batch)

    def _fits(self, batch: Any, seed: int) -> bool:
        buffers = [(buffer, buffer.clone()) for buffer in self._module.buffers()]
        try:
            self._pass(self._alone, batch, seed)
        except torch.OutOfMemoryError:
            return False
        finally:
            self._module.zero_grad()
            for buffer, before in buffers:
                buffer.copy_(before)
        return True

    def _alone(self, batch: Any) -> tuple[Tensor, ProtocolOverrides]:
        """The loss without any exchange between processes."""
        with self._fabric.autocast():
            found: tuple[Tensor, ProtocolOverrides] = self._module(batch)
        return found

    def _halve(self, batch: Any) -> None:
        self._module.zero_grad()
        release()
        # What pretraining learns from is no Batch, and is not cut.
        held = f"{len(batch.index)} images in {self.pieces} pieces" if isinstance(batch, Batch) else "a batch"
        if not isinstance(batch, Batch) or len(batch.index) // (2 * self.pieces) < self._smallest:
            least = f", and the loss needs {self._smallest} images at once" if self._smallest > 1 else ""
            raise KdbenchError(
                f"{self._what}: the device's memory does not hold {held}{least}. Take a device with more memory, or "
                "smaller networks."
            )
        self.pieces *= 2

    def _pass(self, loss: Loss, batch: Any, seed: int) -> ProtocolOverrides:
        torch.manual_seed(seed)
        if self.pieces > 1:
            return self._accumulated(loss, batch)
        total, terms = loss(batch)
        self._fabric.backward(total)
        return terms

    def _accumulated(self, loss: Loss, batch: Any) -> ProtocolOverrides:
        """As one batch for losses that are means over samples; batch statistics are those of the pieces."""
        whole: ProtocolOverrides = {}
        *others, last = batch.pieces(self.pieces)
        for piece in (*others, last):
            part = len(piece.index) / len(batch.index)
            with self._fabric.no_backward_sync(self._loss, enabled=piece is not last):
                total, terms = loss(piece)
                self._fabric.backward(total * part)
            for name, term in terms.items():
                whole[name] = whole.get(name, torch.zeros_like(term)) + part * term
        return whole
