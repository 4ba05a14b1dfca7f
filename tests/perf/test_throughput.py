"""GKD's first two stages on a GPU: images a second, the share of the card's own rate of products, peak memory.

    make test-gpu        # or: python -m pytest tests/perf/test_throughput.py -m slow -s

Prints a markdown table; no test asserts a time. The engine's loop as a run has it (bfloat16, the teacher held in it),
real architectures with random weights, the recipes of protocol paper on one of the four processes that GKD trains with.
Images lie in the device's memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch
from lightning.fabric import Fabric

from kdbench.engine.costs import counted
from kdbench.engine.environment import gpu_memory
from kdbench.engine.parts import Networks, cast_products, stage_models
from kdbench.engine.store import StageFolder
from kdbench.engine.trainer import LossModule, TrainingJob, train
from kdbench.models.backbones import build_pretrained, build_toy
from kdbench.models.geometry import Geometry
from kdbench.progress import Silent
from kdbench.protocol import MINI, PAPER, Recipe
from kdbench.records import StageSummary
from kdbench.types import Batch, Phase

PAIRS, PROCESSES = ("dinov2-b:deit-s", "dinov2-l:deit-b"), 4
WARM, STEPS = 5, 20


@dataclass(frozen=True)
class Row:
    """One measurement. rate: of a step's operations, as a part of what the device does in large bfloat16 products."""

    pair: str
    pixels: str
    batch: int
    micro_batches: int
    images_a_second: float
    rate: float
    peak_memory_gb: float | None


def product_rate(device: torch.device, side: int) -> float:
    """Floating point operations a second of the best of several products of square bfloat16 matrices."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))

    def seconds() -> float:
        wait(device)
        started = time.perf_counter()
        for _ in range(10):
            a @ b
        wait(device)
        return (time.perf_counter() - started) / 10

    return 2 * side**3 / min(seconds() for _ in range(5))


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measured(
    pair: str,
    nets: Networks,
    recipe: Recipe,
    size: tuple[int, int],
    fabric: Fabric,
    rate: float,
    steps: int,
    folder: Path,
) -> Row:
    """The first stage's steps, after some that are not timed."""
    assert nets.method is not None
    device, stage = fabric.device, nets.method.stages()[0]
    trained = nets.freeze_all_but(stage.trains)
    cast_products(nets.teacher.encoder, torch.bfloat16)
    nets.place(device)
    images = torch.rand(recipe.batch, 3, *size, device=device)
    batch = Batch(images, None, ("somewhere",) * recipe.batch, torch.arange(recipe.batch))

    def run(count: int) -> StageSummary:
        module = LossModule(trained, lambda piece: stage.loss(piece, *stage_models(nets, stage)))
        job = TrainingJob("throughput", module, recipe, count, lambda start: iter([batch] * count), (0,), (), count)
        return train(fabric, job, StageFolder(folder), Silent())

    run(WARM)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    done = run(steps)
    memory = gpu_memory(device)
    few = fabric.to_device(batch.micro_batches(recipe.batch // 2)[0])
    with counted() as counter, fabric.autocast():
        torch.stack(list(stage.loss(few, *stage_models(nets, stage)).values())).sum().backward()
    a_second = steps * recipe.batch / done.seconds
    return Row(
        pair, "x".join(map(str, size)), recipe.batch, done.micro_batches, a_second,
        a_second * counter.get_total_flops() / len(few.index) / rate, None if memory is None else memory / 1024,
    )  # fmt: skip


def table(rows: list[Row]) -> str:
    """As markdown."""
    return pd.DataFrame([asdict(row) for row in rows]).to_markdown(index=False, floatfmt=".3g")


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="optional: a GPU")
def test_throughput_of_the_first_stages(
    build_networks: Callable[..., Networks], tmp_path: Path, report: Callable[..., None]
) -> None:
    fabric = Fabric(accelerator="cuda", devices=1, precision="bf16-mixed")
    rate, rows = product_rate(fabric.device, 8192), []
    for pair in PAIRS:
        for phase in (Phase.PROXY, Phase.SOURCE):
            recipe = PAPER.recipes[phase]
            recipe = recipe.model_copy(update={"batch": recipe.batch // PROCESSES})
            size = recipe.size(PAPER.image_size)
            assert recipe.patch is not None
            nets = build_networks("gkd", pair, build_pretrained, Geometry(recipe.patch, size, PAPER.resampling))
            row = measured(pair, nets, recipe, size, fabric, rate, STEPS, tmp_path)
            rows.append(row)
            figures = {name: getattr(row, name) for name in ("images_a_second", "rate", "peak_memory_gb")}
            report("first stage", f"{pair}, {row.pixels}, {row.batch} images", **figures)
            del nets
            torch.cuda.empty_cache()
    print(f"\n{torch.cuda.get_device_name()}: {rate / 1e12:.0f} TFLOP/s in products, torch {torch.__version__}\n")
    print(table(rows))


def test_the_measurement_runs_at_a_small_size_without_a_gpu(
    build_networks: Callable[..., Networks], tmp_path: Path
) -> None:
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    recipe = MINI.recipes[Phase.PROXY].model_copy(update={"batch": 4})
    nets = build_networks("gkd", PAIRS[0], build_toy)
    row = measured(PAIRS[0], nets, recipe, (32, 64), fabric, product_rate(fabric.device, 64), 2, tmp_path)
    assert (row.batch, row.micro_batches, row.peak_memory_gb) == (4, 1, None)
    assert row.images_a_second > 0
    assert row.rate > 0
    assert "32x64" in table([row])
