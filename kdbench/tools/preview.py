"""Contact sheets of a benchmark's domains: images with their labels, and the legend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torchvision.transforms.v2.functional import resize

from kdbench.benchmark import Benchmark
from kdbench.data.datasets import ADAPTERS, RealSet
from kdbench.data.domainset import DomainSet
from kdbench.data.sizing import Cover
from kdbench.data.sources import DataSources
from kdbench.errors import KdbenchError
from kdbench.files import save_atomically
from kdbench.names import benchmark_title, domain_name
from kdbench.pictures import colourise, contact_sheet
from kdbench.plugins import load_benchmark
from kdbench.protocol import find_protocol
from kdbench.synthetic import DOMAINS, NEUTRAL, causes, check_adjustment, describe, draw


def write_previews(
    names: Sequence[str], protocol: str, data_root: Path | None, store: Path, count: int, output: Path
) -> list[Path]:
    """One PNG a benchmark; returns their paths."""
    numbers = find_protocol(protocol)
    if numbers.native and data_root is None:
        raise KdbenchError(f"protocol '{protocol}' runs on real images: add --data-root DIR, or leave --protocol out.")
    data_sources = DataSources(numbers, store / "renders", data_root)
    output.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in names:
        benchmark = load_benchmark(name)
        data_sources.check(benchmark)
        path = output / f"{benchmark.name}.png"
        save_atomically(path, _sheet(benchmark, data_sources, count).savefig)
        paths.append(path)
    return paths


def _sheet(benchmark: Benchmark, data_sources: DataSources, count: int) -> Figure:
    palette = benchmark.labels.palette
    rows = []
    for role, domains in (("source", benchmark.sources), ("target", benchmark.targets)):
        for domain in domains:
            # A source that trains whole has nothing else to show.
            samples = (
                data_sources.val(domain) if domain in data_sources.evaluated(benchmark) else data_sources.train(domain)
            )
            images, labels = _samples(samples, count)
            name = domain_name(domain.name, samples.data_source)
            rows.append((f"{name} ({role})", images))
            rows.append(("labels", [colourise(label, palette) for label in labels]))
    proxy = data_sources.proxy(benchmark.proxy)
    rows.append((f"{domain_name(benchmark.proxy.name, proxy.data_source)} (no labels)", _samples(proxy, count)[0]))
    data_source = data_sources.data_source_of(benchmark)
    return contact_sheet(
        rows,
        [""] * count,
        legend=list(zip(benchmark.labels.classes, palette, strict=True)),
        title=f"{benchmark.name}: {benchmark_title(benchmark.title, data_source)}, world {data_source}",
    )


def write_set_preview(name: str, data_root: Path, count: int, output: Path) -> Path:
    """One PNG of a data set: some images of each part with their labels, and the legend."""
    adapter, rows = ADAPTERS[name], []
    scan = adapter.scan(data_root)
    palette = adapter.classes.palette if adapter.classes else ()
    for part in sorted({sample.part for sample in scan.samples}):
        samples = RealSet(part, scan, (part,), Cover((256, 512)))
        images, labels = _samples(samples, count)
        rows.append((f"{part} ({len(samples)} images)", images))
        if palette:
            rows.append(("labels", [colourise(label, palette) for label in labels]))
    if not rows:
        raise KdbenchError(f"data set '{name}': nothing to show. {scan.advice()}")
    legend = list(zip(adapter.classes.classes, palette, strict=True)) if adapter.classes else []
    title = f"{adapter.title}; {adapter.licence}"
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{name}.png"
    save_atomically(path, contact_sheet(rows, [""] * count, legend=legend, title=title).savefig)
    return path


def write_causes(source: str, target: str, index: int, size: tuple[int, int], output: Path) -> Path:
    """One scene of a domain with each cause of another domain's appearance in turn, then with all of them."""
    for name in (source, target):
        check_adjustment(name, {})
    if DOMAINS[source].kind != DOMAINS[target].kind:
        raise KdbenchError(f"'{source}' and '{target}' are of different kinds; name two of one kind.")
    ours, theirs = describe()[source], describe()[target]
    columns, images = [f"{source}-like"], [draw(source, "val", index, size).image]
    everything: dict[str, tuple[float, float]] = {}
    for cause, fields in causes(source).items():
        if cause == "geometry":
            continue
        named = [field for field in fields if field in ours or field in theirs]
        ranges = {field: theirs.get(field, (NEUTRAL[field],) * 2) for field in named}
        everything |= ranges
        if any(span != ours.get(field) for field, span in ranges.items()):
            columns.append(f"+ {cause}")
            images.append(draw(source, "val", index, size, ranges).image)
    columns += ["all of them", f"{target}-like"]
    images += [draw(source, "val", index, size, everything).image, draw(target, "val", index, size).image]
    sheet = contact_sheet([("", images)], columns, title=f"synthetic {source}-like to {target}-like, cause by cause")
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{source}-to-{target}.png"
    save_atomically(path, sheet.savefig)
    return path


def _samples(samples: DomainSet, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Samples spread over the set, so that neighbouring video frames do not fill the sheet."""
    shown = min(count, len(samples))
    chosen = [round(i * (len(samples) - 1) / max(1, shown - 1)) for i in range(shown)]
    pairs = [samples.read(index) for index in chosen]
    # One size beside the other is easier to compare, though networks see the smaller.
    images = [resize(image, list(label.shape)) for image, label in pairs]
    return [image.permute(1, 2, 0).numpy() for image in images], [label.numpy() for _, label in pairs]
