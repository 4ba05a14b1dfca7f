"""What measurements share: networks, batches, and what a file keeps of them: ratios, no machine's name or clocks."""

from __future__ import annotations

import itertools
import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF
from typing import Any

import pandas as pd
import pytest
import torch

from kdbench.conformance import CLASSES
from kdbench.engine.parts import Networks
from kdbench.files import write_atomically
from kdbench.models.backbones import Encoder
from kdbench.models.geometry import Geometry
from kdbench.models.registry import ModelSpec, parse_pair
from kdbench.models.segmentor import SegmentationModel, build_decoder
from kdbench.plugins import load_method
from kdbench.protocol import MINI
from kdbench.types import Batch, PairSpec


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Keep the ratios: times in seconds are another machine's business."""
    cpu = output_json["machine_info"].get("cpu", {})
    output_json["machine_info"] = {"cpu": cpu.get("brand_raw", "")}
    output_json.pop("commit_info", None)
    output_json["benchmarks"] = [
        {"name": entry["name"], "extra_info": entry["extra_info"]} for entry in output_json["benchmarks"]
    ]


@pytest.fixture(scope="session")
def report() -> Iterator[Callable[..., None]]:
    """Take figures of what was checked; at the end they are printed, and written where KDBENCH_GPU_REPORT says."""
    rows: list[dict[str, Any]] = []

    def add(check: str, what: str, **figures: float | None) -> None:
        rows.extend({"check": check, "what": what, "figure": name, "value": value} for name, value in figures.items())

    yield add
    if not rows:
        return
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else "no GPU: a rehearsal with small networks"
    print(f"\n{device}, torch {torch.__version__}\n\n{pd.DataFrame(rows).to_markdown(index=False, floatfmt='.3g')}")
    if path := os.environ.get("KDBENCH_GPU_REPORT"):
        write_atomically(
            Path(path), json.dumps({"device": device, "torch": torch.__version__, "rows": rows}, indent=1).encode()
        )


@pytest.fixture
def all_cores() -> Iterator[None]:
    """Take times as users have them, not with the tests' one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    yield
    torch.set_num_threads(before)


@pytest.fixture
def random_batches() -> Callable[..., list[Batch]]:
    """Build labelled or unlabelled batches of random images."""

    def build(count: int, images: int, labelled: bool = True, size: tuple[int, int] = MINI.image_size) -> list[Batch]:
        generator = torch.Generator().manual_seed(0)
        return [
            Batch(
                image=torch.rand(images, 3, *size, generator=generator),
                label=torch.randint(0, CLASSES, (images, *size), generator=generator) if labelled else None,
                domain=("somewhere",) * images,
                index=torch.arange(images),
                progress=0.5,
            )
            for _ in range(count)
        ]

    return build


@pytest.fixture
def build_networks() -> Callable[..., Networks]:
    """Build a pair's networks with random weights and a method, for a geometry where one is given.

    Of the decoders, which no stage without labels reads, the smallest.
    """

    def build(
        method: str, pair: str, encoder: Callable[[ModelSpec], Encoder], geometry: Geometry | None = None
    ) -> Networks:
        def segmentor(role: ModelSpec) -> SegmentationModel:
            made = encoder(role)
            if geometry is not None:
                made.adapt(geometry)
            return SegmentationModel(made, build_decoder("light", made.spec, CLASSES))

        plugin, roles = load_method(method).method, parse_pair(pair)
        models = segmentor(roles.teacher), segmentor(roles.student)
        return Networks(*models, plugin(plugin.Config(), PairSpec(models[0].spec, models[1].spec, CLASSES)))

    return build


def work() -> float:
    """Return processor seconds of this process and of those that it has waited for."""
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, (RUSAGE_SELF, RUSAGE_CHILDREN)))


@pytest.fixture
def compare(benchmark: Any) -> Callable[..., str]:
    """Return the median of ours / bare, measured in turn, by the clock and in processor time.

    The machine's drift hits both alike; what else runs on it hits the clock alone.
    """

    def measure(ours: Callable[[], object], bare: Callable[[], object], rounds: int) -> str:
        ratios: list[tuple[float, float]] = []

        def once() -> None:
            marks = [(time.perf_counter(), work())]
            for run in (bare, ours):
                run()
                marks.append((time.perf_counter(), work()))
            theirs, mine = ([b - a for a, b in zip(*pair, strict=True)] for pair in itertools.pairwise(marks))
            ratios.append((mine[0] / theirs[0], mine[1] / theirs[1]))

        once()
        ratios.clear()
        benchmark.pedantic(once, rounds=rounds, iterations=1)
        ratio, processor = map(statistics.median, zip(*ratios, strict=True))
        benchmark.extra_info |= {"ratio": ratio, "processor": processor}
        return f"{ratio:.3f} x bare by the clock, {processor:.3f} x in processor time"

    return measure
