"""A board's predictions side by side, from the files that `kdbench run --pictures` keeps."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from kdbench.errors import KdbenchError
from kdbench.names import REAL, domain_name, model_name
from kdbench.pictures import (
    ORDER,
    Picture,
    Samples,
    colourise,
    predictions_file,
    read_predictions,
    read_samples,
    to_css,
)
from kdbench.records import read_record


@dataclass(frozen=True)
class GalleryRow:
    """One image of a domain (its displayed name), its label and predictions: a PNG as a data: URI for each column."""

    domain: str
    tiles: tuple[str, ...]


@dataclass(frozen=True)
class Gallery:
    """Images, labels and the predictions of all models of one seed.

    legend: classes with CSS colours. note: licences, and which files cannot be used.
    """

    seed: int
    rows: tuple[GalleryRow, ...]
    columns: tuple[str, ...]
    legend: tuple[tuple[str, str], ...]
    note: str


@dataclass(frozen=True)
class _GalleryModel:
    """A cell's predictions, one for each scene of the samples in its benchmark's folder."""

    cell: Any
    samples: Samples
    maps: tuple[Picture, ...]


def make_gallery(frame: pd.DataFrame, order: Sequence[str], include_images: bool) -> Gallery | None:
    """Return the predictions of a board's models; None where no student has any that belong to its present record.

    Shown is the seed that most students have predictions of, of equals the lowest.

    Args:
        frame: the board's rows of `kdbench.report.frame`.
        order: the board's labels, best first; undistilled students are shown before and teachers after all others.
        include_images: also show images of real data sets.
    """
    faults: list[str] = []
    samples_of = cache(read_samples)
    cells = frame.dropna(subset="path").drop_duplicates("cell")
    models = [model for cell in cells.itertuples() if (model := _read(cell, samples_of, faults))]
    seeds = Counter(model.cell.seed for model in models if model.cell.role != "teacher")
    if not seeds:
        return Gallery(0, (), (), (), " ".join(_damage(faults))) if faults else None
    seed = min(seeds, key=lambda seed: (-seeds[seed], seed))
    models = [model for model in models if model.cell.seed == seed]
    models.sort(key=lambda model: (ORDER.index(model.cell.role), list(order).index(model.cell.label)))
    alike = [model for model in models if model.samples.identity == models[0].samples.identity]
    return _gallery(alike, include_images, faults)


def _read(cell: Any, samples_of: Callable[[Path], Samples | None], faults: list[str]) -> _GalleryModel | None:
    if not predictions_file(cell.path).is_file():
        return None
    try:
        samples = samples_of(cell.path.parents[1])
        maps = read_predictions(cell.path, read_record(cell.path), samples) if samples else None
    except KdbenchError as error:
        faults.append(str(error))
        return None
    return _GalleryModel(cell, samples, maps) if samples and maps else None


def _gallery(models: list[_GalleryModel], include_images: bool, faults: list[str]) -> Gallery:
    samples = models[0].samples
    rows = []
    for place, scene in enumerate(samples.scenes):
        if include_images or scene.data_source != REAL:
            maps = [scene.label, *(model.maps[place] for model in models)]
            tiles = [scene.image, *(colourise(classes, samples.palette) for classes in maps)]
            rows.append(GalleryRow(domain_name(scene.domain, scene.data_source), tuple(map(_uri, tiles))))
    return Gallery(
        seed=models[0].cell.seed,
        rows=tuple(rows),
        columns=("image", "label", *(_title(model.cell) for model in models)),
        legend=tuple(zip(samples.classes, map(to_css, samples.palette), strict=True)),
        note=" ".join([*_licences(samples, include_images), *_damage(faults)]),
    )


def _uri(picture: Picture) -> str:
    """An image (H, W, 3) as a PNG, with a palette where it has few colours."""
    image, buffer = Image.fromarray(picture), io.BytesIO()
    if image.getcolors():
        image = image.quantize(dither=Image.Dither.NONE)
    image.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _title(cell: Any) -> str:
    return f"teacher {model_name(cell.teacher, cell.model_set)}" if cell.role == "teacher" else str(cell.label)


def _licences(samples: Samples, include_images: bool) -> Iterator[str]:
    if not samples.licences:
        return
    data_sets = "; ".join(samples.licences)
    if include_images:
        yield f"Images and labels are those of {data_sets}."
    else:
        yield f"Images of real data sets, and predictions on them, are shown with --include-images only: {data_sets}."


def _damage(faults: list[str]) -> Iterator[str]:
    found = list(dict.fromkeys(faults))
    if found:
        yield f"{len(found)} of the files of pictures cannot be used; the first: {found[0]}"
