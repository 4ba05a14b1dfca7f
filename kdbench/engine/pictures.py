"""Keep what models predict on the same validation images beside their records, and draw it side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from kdbench.benchmark import Benchmark
from kdbench.data.domainset import DomainSet
from kdbench.data.realset import RealSet
from kdbench.engine.evaluation import predict
from kdbench.engine.plan import Cell, RunContext
from kdbench.engine.runner import deployed
from kdbench.errors import KdbenchError
from kdbench.files import save_atomically
from kdbench.names import benchmark_title, domain_name, file_name, model_name
from kdbench.pictures import (
    ORDER,
    Picture,
    SampleImage,
    Samples,
    colourise,
    contact_sheet,
    read_predictions,
    write_predictions,
    write_samples,
)
from kdbench.records import Resolved, read_record
from kdbench.spec import RunSpec

IMAGES = 2
"""Validation images shown of each target."""
WIDTH = 512
"""The most pixels across that a picture keeps."""


def write_pictures(context: RunContext, cells: list[Cell], spec: RunSpec) -> Iterator[Path]:
    """Keep the predictions of finished cells and draw a PNG for each benchmark, pair and seed; yield the PNGs' paths.

    A PNG shows all predictions that lie there, of this run and of earlier ones.
    """
    folders: dict[Path, Samples] = {}
    sheets: dict[Path, Path] = {}
    for cell in cells:
        path = spec.results / cell.id.path
        folder = path.parents[1]
        if folder not in folders:
            labels = cell.benchmark.labels
            scenes = tuple(_scene(samples, index) for samples, index in _places(context, cell.benchmark))
            folders[folder] = Samples(labels.classes, labels.palette, scenes)
            write_samples(folder, folders[folder])
        if spec.fresh or _kept(path, folders[folder]) is None:
            write_predictions(path, read_record(path), folders[folder], _predictions(context, cell))
        if cell.student is not None:
            sheets[path.with_name(f"pictures-s{cell.seed}.png")] = path
    for sheet, path in sheets.items():
        save_atomically(sheet, _sheet(path, folders[path.parents[1]]).savefig)
        yield sheet


def _places(context: RunContext, benchmark: Benchmark) -> Iterator[tuple[DomainSet, int]]:
    """Yield the same images of every target for all models, spread over the set."""
    for samples in map(context.data_sources.val, benchmark.targets):
        shown = min(IMAGES, len(samples))
        yield from ((samples, int((place + 0.5) * len(samples) / shown)) for place in range(shown))


def _scene(samples: DomainSet, index: int) -> SampleImage:
    image, label = samples.read(index)
    size = _size(label)
    return SampleImage(
        samples.domain,
        index,
        samples.data_source,
        f"{samples.scan.adapter.title} ({samples.scan.adapter.licence})" if isinstance(samples, RealSet) else "",
        vision.resize(image, size, antialias=True).permute(1, 2, 0).numpy(),
        _shrunk(label, size),
    )


def _predictions(context: RunContext, cell: Cell) -> Iterator[Picture]:
    model = deployed(context, cell)
    with torch.no_grad(), context.fabric.autocast():
        for samples, index in _places(context, cell.benchmark):
            image, label = samples.read(index)
            scaled = image[None].to(context.fabric.device).float().div_(255)
            shape = (label.shape[-2], label.shape[-1])
            classes = predict(model, scaled, context.protocol.evaluation, shape)[0]
            yield _shrunk(classes.to(torch.uint8).cpu(), _size(label))


def _size(label: Tensor) -> list[int]:
    """Return the label's (H, W), scaled to at most WIDTH across."""
    height, width = label.shape
    return [height, width] if width <= WIDTH else [round(height * WIDTH / width), WIDTH]


def _shrunk(classes: Tensor, size: list[int]) -> Picture:
    """Resize classes (H, W) without mixing them."""
    shrunk: Tensor = vision.resize(classes[None], size, InterpolationMode.NEAREST_EXACT)[0]
    return shrunk.numpy()


def _kept(path: Path, samples: Samples) -> tuple[Resolved, tuple[Picture, ...]] | None:
    """Return a record's cell with its predictions, None where a file is missing or damaged (boards report that)."""
    try:
        record = read_record(path)
        maps = read_predictions(path, record, samples)
    except KdbenchError:
        return None
    return None if maps is None else (record.spec.resolved, maps)


def _sheet(path: Path, samples: Samples) -> Figure:
    """Draw all models of a record's pair and seed, and their teacher."""
    cell, palette = read_record(path).spec.resolved, samples.palette
    ending = f"-s{cell.seed}.json"
    files = [*path.parent.glob(f"*{ending}"), *path.parents[1].glob(f"{file_name(cell.teacher)}--none/*{ending}")]
    kept = [found for file in files if (found := _kept(file, samples)) is not None]
    teacher = f"teacher {model_name(cell.teacher, cell.model_set)}"
    kept.sort(key=lambda found: (ORDER.index(found[0].role), found[0].method, found[0].variant))
    rows = []
    for place, scene in enumerate(samples.scenes):
        maps = [scene.label, *(maps[place] for _, maps in kept)]
        tiles = [scene.image, *(colourise(classes, palette) for classes in maps)]
        rows.append((domain_name(scene.domain, scene.data_source), tiles))
    return contact_sheet(
        rows,
        ["image", "label", *(teacher if each.role == "teacher" else each.id.label for each, _ in kept)],
        legend=list(zip(samples.classes, palette, strict=True)),
        title=_title(cell, samples),
    )


def _title(cell: Resolved, samples: Samples) -> str:
    pair = " -> ".join(model_name(name, cell.model_set) for name in (cell.teacher, cell.student) if name)
    few = "" if cell.label_fraction == "1" else f", {cell.label_fraction} of the source's labels"
    licences = "".join(f"; {licence}" for licence in samples.licences)
    return (
        f"{cell.benchmark}: {benchmark_title(cell.title, cell.data_source)}, {pair}, data source {cell.data_source}, "
        f"protocol {cell.protocol_id}, decoder {cell.decoder}{few}{licences}"
    )
