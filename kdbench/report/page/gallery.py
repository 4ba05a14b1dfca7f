"""A board's predictions side by side, for a page: from the files that `kdbench run --pictures` keeps."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from kdbench.benchmark import Colour
from kdbench.errors import KdbenchError
from kdbench.names import REAL, domain_name
from kdbench.records import read_record
from kdbench.report.board import Board
from kdbench.samples import ORDER, Picture, Samples, predictions_file, read_predictions, read_samples

T = TypeVar("T")


@dataclass(frozen=True)
class GalleryRow:
    """One image of a domain, which is named as displayed. tiles: for each column a PNG as a data: URI."""

    domain: str
    tiles: tuple[str, ...]


@dataclass(frozen=True)
class Gallery:
    """Image, label and what each model of one seed sees. legend: classes with CSS colours. note: what is missing, or
    whose the images are."""

    seed: int
    rows: tuple[GalleryRow, ...]
    columns: tuple[str, ...]
    legend: tuple[tuple[str, str], ...]
    note: str


@dataclass(frozen=True)
class _Model:
    """What a row's model predicts on each scene of the samples that lie with its record."""

    title: str
    role: str
    samples: Samples
    maps: tuple[Picture, ...]


def gallery_of(board: Board, include_images: bool) -> Gallery | None:
    """Of the lowest of the seeds that most students have pictures of; None where none has any of its present record.

    include_images: also of real data sets.
    """
    students = [row for row in board.rows if row.role != "teacher"]
    kept = Counter(seed for row in students for seed, path in row.paths.items() if predictions_file(path).is_file())
    faults: list[str] = []
    for seed in sorted(kept, key=lambda seed: (-kept[seed], seed)):
        models = _models(board, seed, faults)
        # The teacher comes last: where it comes first, it is alone.
        if models and models[0].role != "teacher":
            return _gallery(seed, models, include_images, faults)
    return Gallery(min(kept), (), (), (), " ".join(_damage(faults))) if faults else None


def _models(board: Board, seed: int, faults: list[str]) -> list[_Model]:
    """The undistilled first, then as the board ranks them, the teacher last; all on the samples of the first."""
    rows = sorted((row for row in board.rows if seed in row.paths), key=lambda row: ORDER.index(row.role))
    folders = dict.fromkeys(row.paths[seed].parents[1] for row in rows)
    samples = {folder: _tried(partial(read_samples, folder), faults) for folder in folders}
    models = []
    for row in rows:
        path = row.paths[seed]
        shown = samples[path.parents[1]]
        maps = _tried(partial(_maps, path, shown), faults) if shown else None
        if shown and maps:
            title = f"teacher {board.models[0]}" if row.role == "teacher" else row.method
            models.append(_Model(title, row.role, shown, maps))
    return [model for model in models if model.samples.identity == models[0].samples.identity]


def _maps(path: Path, samples: Samples) -> tuple[Picture, ...] | None:
    return read_predictions(path, read_record(path), samples) if predictions_file(path).is_file() else None


def _tried(read: Callable[[], T], faults: list[str]) -> T | None:
    try:
        return read()
    except KdbenchError as error:
        faults.append(str(error))
        return None


def _gallery(seed: int, models: list[_Model], include_images: bool, faults: list[str]) -> Gallery:
    samples = models[0].samples
    shown = [place for place, scene in enumerate(samples.scenes) if include_images or scene.data_source != REAL]
    return Gallery(
        seed=seed,
        rows=tuple(_row(samples, place, models) for place in shown),
        columns=("image", "label", *(model.title for model in models)),
        legend=tuple(
            (name, "#{:02x}{:02x}{:02x}".format(*colour))
            for name, colour in zip(samples.classes, samples.palette, strict=True)
        ),
        note=" ".join([*_licences(samples, include_images), *_damage(faults)]),
    )


def _row(samples: Samples, place: int, models: list[_Model]) -> GalleryRow:
    scene = samples.scenes[place]
    maps = [scene.label, *(model.maps[place] for model in models)]
    tiles = (_uri(Image.fromarray(scene.image)), *(_uri(_painted(classes, samples.palette)) for classes in maps))
    return GalleryRow(domain_name(scene.domain, scene.data_source), tiles)


def _painted(classes: Picture, palette: Sequence[Colour]) -> Image.Image:
    """Classes (H, W) as a palette picture; whatever the palette lacks, 255 among it, is black."""
    picture = Image.fromarray(np.minimum(classes, len(palette)))
    picture.putpalette([value for colour in (*palette, (0, 0, 0)) for value in colour])
    return picture


def _uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


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
