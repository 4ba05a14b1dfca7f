"""The images that a loss needs at once: a run that has fewer on a process, or in a piece, is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from kdbench.conformance import make_bench
from kdbench.engine import preflight
from kdbench.engine.distributed import check_smallest
from kdbench.engine.memory import Gradients
from kdbench.engine.parts import stage_models
from kdbench.engine.plan import RunContext
from kdbench.engine.preflight import describe
from kdbench.errors import KdbenchError
from kdbench.method import FIT_TEACHER, Stage
from kdbench.models.registry import parse_pair
from kdbench.plugins import load_method, method_names
from kdbench.types import Batch


def on(context: RunContext, processes: int) -> RunContext:
    fabric: Any = SimpleNamespace(world_size=processes, device=torch.device("cpu"), is_global_zero=True)
    return replace(context, fabric=fabric)


def test_numbers_of_processes_that_fit_are_named() -> None:
    batches = {"proxy": 24, "task": 12}
    check_smallest("here", 3, 12, batches, 4)
    # Equal shares: 1, 2, 3, 4, 6 or 12 processes, of which a task batch of 12 leaves three images to the first four.
    with pytest.raises(
        KdbenchError, match=r"^here: .* 3 images at least, .* 2 of a batch of 12\. Start one of 1, 2, 3, 4 "
    ):
        check_smallest("here", 3, 12, batches, 6)
    with pytest.raises(KdbenchError, match=r" 13 images at least.* Take a protocol with larger batches\."):
        check_smallest("here", 13, 12, batches, 1)


def test_a_share_that_gives_a_loss_nothing_is_refused_before_data_sets_are_opened(
    plan_cells: Callable[..., tuple], plugin: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, cells = plan_cells(methods=(plugin("paired", "    smallest_batch = 2\n"),))
    monkeypatch.setattr(preflight, "check_sets", lambda *arguments: pytest.fail("data sets were opened"))
    words = r"g2c · paired, stage 'joint': .*2 images at least, .* 1 of a batch of 4\. Start one of 1, 2 processes\."
    for refused in (preflight.check, lambda *arguments: list(describe(*arguments))):
        with pytest.raises(KdbenchError, match=words):
            refused(on(context, 4), cells)
    # As many images suffice, and stages of other losses need one.
    for smallest, processes in ((2, 2), (1, 4)):
        context, cells = plan_cells(methods=(plugin(f"paired_{smallest}", f"    smallest_batch = {smallest}\n"),))
        preflight.check_batches(on(context, processes), preflight.all_stages(context, cells))


def random_batch(stage: Stage, images: int, classes: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(images, 3, 64, 128, generator=generator)
    label = torch.randint(0, classes, (images, 64, 128), generator=generator) if stage.phase.labelled else None
    return Batch(image, label, ("here",) * images, torch.arange(images), progress=0.5)


def own_terms(name: str, images: int = 0) -> list[tuple[Stage, dict[str, Tensor]]]:
    """The terms of a method's own losses of so many images, by default as few as it asks for, in the second step."""
    plugin = load_method(name)
    if plugin.missing:
        pytest.skip(f"optional: {plugin.missing}")
    bench = make_bench(plugin, parse_pair("dinov2-s:deit-s"))
    found = []
    for stage in bench.method.stages():
        if getattr(stage.loss, "__self__", None) is bench.method:
            bench.networks.freeze_all_but(stage.trains)
            batch = random_batch(stage, images or stage.smallest_batch, bench.method.pair.classes)
            torch.manual_seed(2)
            # A memory may begin empty, so that the first image has nothing to be compared with.
            stage.loss(replace(batch, image=1 - batch.image), *stage_models(bench.networks, stage))
            found.append((stage, stage.loss(batch, *stage_models(bench.networks, stage))))
    return found


@pytest.mark.parametrize("name", method_names())
def test_as_many_images_as_a_method_asks_for_give_every_term_something(name: str) -> None:
    for stage, terms in own_terms(name):
        silent = [term for term, value in terms.items() if value == 0]
        assert not silent, f"{name}, stage {stage.name}, with {stage.smallest_batch} images"


class Small(nn.Module):
    """A loss on a device that holds so many images."""

    def __init__(self, holds: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.holds = holds

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if len(batch.index) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate.")
        loss = self.weight * batch.image.mean()
        return loss, {"loss": loss}


def test_what_a_pass_that_failed_has_remembered_is_forgotten() -> None:
    class Remembers(Small):
        seen: Tensor

        def __init__(self) -> None:
            super().__init__(2)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            self.seen += len(batch.index)
            return super().forward(batch)

    class OnAGpu(Fabric):
        @property
        def device(self) -> torch.device:
            return torch.device("cuda")

    module, fabric = Remembers(), Fabric(accelerator="cpu", devices=1)
    prepared = fabric.setup(module)
    fabric.__class__ = OnAGpu
    Gradients(fabric, prepared, module, "toy", lambda: 0, 1)(random_batch(FIT_TEACHER, 8, 2), 0)
    assert module.seen == 8


@pytest.mark.parametrize(("smallest", "micro_batches"), [(1, 4), (2, 4), (3, None)])
def test_memory_cuts_no_batch_into_micro_batches_that_say_nothing(smallest: int, micro_batches: int | None) -> None:
    module = Small(2)
    fabric = Fabric(accelerator="cpu", devices=1)
    gradients = Gradients(fabric, fabric.setup(module), module, "toy", lambda: 0, smallest)
    batch = random_batch(FIT_TEACHER, 8, 2)
    if micro_batches is None:
        with pytest.raises(KdbenchError, match=r"8 images in 2 micro-batches, .* needs 3 images at once\. Take"):
            gradients(batch, 0)
    else:
        gradients(batch, 0)
        assert gradients.micro_batches == micro_batches
