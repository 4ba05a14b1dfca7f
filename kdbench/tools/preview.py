"""Contact sheets of a benchmark's domains or a data set's parts: images with their labels, and the legend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torchvision.transforms.v2.functional import resize

from kdbench.benchmark import Benchmark, Colour, LabelSpace
from kdbench.data.datasets import ADAPTERS
from kdbench.data.domainset import DomainSet
from kdbench.data.realset import RealSet
from kdbench.data.sizing import Cover
from kdbench.data.sources import DataSources
from kdbench.errors import KdbenchError
from kdbench.files import save_atomically
from kdbench.names import benchmark_title, domain_name
from kdbench.pictures import colourise, contact_sheet
from kdbench.plugins import load_benchmark
from kdbench.protocol import find_protocol

Rows = list[tuple[str, list[np.ndarray]]]


def preview_benchmarks(
    names: Sequence[str], protocol: str, data_root: Path | None, store: Path, count: int, output: Path
) -> list[Path]:
    """Write one PNG a benchmark and return their paths."""
    numbers = find_protocol(protocol)
    if numbers.native and data_root is None:
        raise KdbenchError(f"protocol '{protocol}' runs on real images: add --data-root DIR, or leave --protocol out.")
    data_sources = DataSources(numbers, store / "renders", data_root)
    paths = []
    for benchmark in map(load_benchmark, names):
        data_sources.check(benchmark)
        paths.append(_preview_benchmark(benchmark, data_sources, count, output / f"{benchmark.name}.png"))
    return paths


def _preview_benchmark(benchmark: Benchmark, data_sources: DataSources, count: int, path: Path) -> Path:
    palette, rows = benchmark.labels.palette, Rows()
    tested = data_sources.evaluated(benchmark)
    for role, domains in (("source", benchmark.sources), ("target", benchmark.targets)):
        for domain in domains:
            # A source that trains whole has nothing else to show.
            samples = data_sources.val(domain) if domain in tested else data_sources.train(domain)
            rows += _rows(f"{domain_name(domain.name, samples.data_source)} ({role})", samples, count, palette)
    proxy = data_sources.proxy(benchmark.proxy)
    rows += _rows(f"{domain_name(benchmark.proxy.name, proxy.data_source)} (no labels)", proxy, count)
    data_source = data_sources.data_source_of(benchmark)
    title = f"{benchmark.name}: {benchmark_title(benchmark.title, data_source)}, data source {data_source}"
    return _save(rows, count, benchmark.labels, title, path)


def preview_data_set(name: str, data_root: Path, count: int, output: Path) -> Path:
    """Write one PNG with some images of each part of a data set and their labels; return its path."""
    adapter, rows = ADAPTERS[name], Rows()
    scan = adapter.scan(data_root)
    space = adapter.classes or LabelSpace("none", (), ())
    for part in sorted({pair.part for pair in scan.pairs}):
        samples = RealSet(part, scan, (part,), Cover((256, 512)))
        rows += _rows(f"{part} ({len(samples)} images)", samples, count, space.palette)
    if not rows:
        raise KdbenchError(f"data set '{name}': nothing to show. {scan.advice()}")
    return _save(rows, count, space, f"{adapter.title}; {adapter.licence}", output / f"{name}.png")


def _save(rows: Rows, count: int, space: LabelSpace, title: str, path: Path) -> Path:
    legend = list(zip(space.classes, space.palette, strict=True))
    save_atomically(path, contact_sheet(rows, [""] * count, legend=legend, title=title).savefig)
    return path


def _rows(title: str, samples: DomainSet, count: int, palette: Sequence[Colour] = ()) -> Rows:
    """Return a row of images, and one of their labels where there is a palette."""
    images, labels = spread_samples(samples, count)
    coloured = [("labels", [colourise(label, palette) for label in labels])] if palette else []
    return [(title, images), *coloured]


def spread_samples(samples: DomainSet, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return images and labels spread over the set, so that neighbouring video frames do not fill the sheet."""
    shown = min(count, len(samples))
    chosen = [round(i * (len(samples) - 1) / max(1, shown - 1)) for i in range(shown)]
    pairs = [samples.read(index) for index in chosen]
    # One size beside the other is easier to compare, though networks see the smaller.
    images = [resize(image, list(label.shape)) for image, label in pairs]
    return [image.permute(1, 2, 0).numpy() for image in images], [label.numpy() for _, label in pairs]
