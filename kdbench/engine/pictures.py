"""Predictions side by side: image, label, then every model of a benchmark and pair on the same validation images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from torchvision.transforms.v2 import functional as vision

from kdbench.engine.cell import Cell, Lab
from kdbench.engine.evaluator import predict
from kdbench.engine.runner import CellRun
from kdbench.report.names import benchmark_title, domain_name, model_name
from kdbench.report.pictures import colourise, contact_sheet
from kdbench.spec import RunSpec

IMAGES = 2
"""Validation images of each target."""


def write_pictures(lab: Lab, cells: list[Cell], spec: RunSpec) -> Iterator[Path]:
    """One PNG for each benchmark, pair and seed, beside the records."""
    groups: dict[tuple[str, str, str, int], list[Cell]] = {}
    for cell in cells:
        if cell.student is not None:
            groups.setdefault((cell.benchmark.name, cell.teacher.name, cell.student.name, cell.seed), []).append(cell)
    for (benchmark, teacher, student, seed), members in groups.items():
        alone = [
            c
            for c in cells
            if c.student is None and (c.benchmark.name, c.teacher.name, c.seed) == (benchmark, teacher, seed)
        ]
        folder = spec.results / lab.protocol.id / lab.worlds.world_of(members[0].benchmark) / benchmark
        path = folder / f"{teacher}--{student}" / f"pictures-s{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        _sheet(lab, [*members, *alone], spec).save(path)
        yield path


def _sheet(lab: Lab, cells: list[Cell], spec: RunSpec) -> Image:
    benchmark = cells[0].benchmark
    palette = benchmark.labels.palette
    rows, samples = [], {}
    for domain in benchmark.targets:
        chosen = _chosen(len(lab.worlds.val(domain)))
        samples[domain.name] = [lab.worlds.val(domain).read(index) for index in chosen]
    predictions = [_predictions(lab, cell, spec, samples) for cell in cells]
    for domain in benchmark.targets:
        for place, (image, label) in enumerate(samples[domain.name]):
            shown = vision.resize(image, list(label.shape), antialias=True)
            tiles = [shown.permute(1, 2, 0).numpy(), colourise(label.numpy(), palette)]
            tiles += [colourise(found[domain.name][place], palette) for found in predictions]
            rows.append((domain_name(domain.name, lab.worlds.val(domain).world), tiles))
    world = lab.worlds.world_of(benchmark)
    titles = [_title(cell) for cell in cells]
    return contact_sheet(
        rows,
        ["image", "label", *titles],
        legend=list(zip(benchmark.labels.classes, palette, strict=True)),
        title=f"{benchmark.name}: {benchmark_title(benchmark.title, world)}, {_pair(cells[0])}, world {world}, "
        f"protocol {lab.protocol.id}, decoder {lab.protocol.decoder}",
    )


def _predictions(
    lab: Lab, cell: Cell, spec: RunSpec, samples: dict[str, list[tuple[torch.Tensor, torch.Tensor]]]
) -> dict[str, list[np.ndarray]]:
    model, device = CellRun(lab, cell, spec.passed()).deployed(), lab.fabric.device
    found: dict[str, list[np.ndarray]] = {}
    with torch.no_grad(), lab.fabric.autocast():
        for name, pairs in samples.items():
            found[name] = []
            for image, label in pairs:
                scaled = image[None].to(device).float().div_(255)
                size = (label.shape[-2], label.shape[-1])
                classes = predict(model, scaled, lab.protocol.evaluation, size)[0]
                found[name].append(classes.to(torch.uint8).cpu().numpy())
    return found


def _chosen(count: int) -> list[int]:
    return [int((i + 0.5) * count / IMAGES) for i in range(min(IMAGES, count))]


def _title(cell: Cell) -> str:
    if cell.method is None:
        return f"teacher {model_name(cell.teacher.name, cell.protocol.zoo)}"
    return f"{cell.method.name} {cell.variant}".strip()


def _pair(cell: Cell) -> str:
    roles = [cell.teacher] + ([cell.student] if cell.student else [])
    return " -> ".join(model_name(role.name, cell.protocol.zoo) for role in roles)
