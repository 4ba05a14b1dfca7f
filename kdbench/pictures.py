"""Keep pictures in files and draw them: a benchmark's validation images, and predictions on them beside each record.

Files are compressed arrays with a JSON header. Arrays are named `domain/index`, after their sample.
"""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from kdbench.benchmark import Colour
from kdbench.errors import KdbenchError
from kdbench.files import write_atomically
from kdbench.identity import digest
from kdbench.records import Record

SAMPLES: Final = "samples.npz"
PREDICTIONS: Final = ".predictions.npz"
ORDER: Final = ("undistilled", "distilled", "teacher")
"""The order of models beside an image, by role."""
_HEADER: Final = "header"

TILE, DPI = 240, 100
"""Pixels of a picture's width in a contact sheet, and of an inch."""

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class SampleImage:
    """A validation image (H, W, 3) with its label (H, W), 255 = ignore. licence: of a real data set, with its title."""

    domain: str
    index: int
    data_source: str
    licence: str
    image: Picture
    label: Picture

    @property
    def name(self) -> str:
        """The name of its arrays."""
        return f"{self.domain}/{self.index}"


@dataclass(frozen=True)
class Samples:
    """The scenes that all models of a benchmark predict, with its classes and their colours."""

    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    scenes: tuple[SampleImage, ...]

    @cached_property
    def identity(self) -> str:
        """A digest of images and labels, which predictions on them carry."""
        return digest([[s.name, s.label.shape, s.image.tobytes().hex(), s.label.tobytes().hex()] for s in self.scenes])

    @property
    def licences(self) -> tuple[str, ...]:
        """Licences of the real data sets, each once."""
        return tuple(dict.fromkeys(scene.licence for scene in self.scenes if scene.licence))


def write_samples(folder: Path, samples: Samples) -> None:
    """Write samples into a benchmark's folder; leave a file that holds the same untouched."""
    about = [[s.domain, s.index, s.data_source, s.licence] for s in samples.scenes]
    arrays = {f"image/{s.name}": s.image for s in samples.scenes} | {f"label/{s.name}": s.label for s in samples.scenes}
    content = _packed({"classes": samples.classes, "palette": samples.palette, "scenes": about}, arrays)
    path = folder / SAMPLES
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)


def read_samples(folder: Path) -> Samples | None:
    """Return the samples of a benchmark's folder, None where there are none.

    Raises:
        KdbenchError: the file is damaged.
    """
    path = folder / SAMPLES
    if not path.is_file():
        return None
    with _opened(path) as (header, held):
        scenes = []
        for domain, index, data_source, licence in header["scenes"]:
            image, label = held[f"image/{domain}/{index}"], held[f"label/{domain}/{index}"]
            height, width = label.shape
            pair = _checked(image, (height, width, 3)), _checked(label, (height, width))
            scenes.append(SampleImage(domain, index, data_source, licence, *pair))
        palette = tuple((red, green, blue) for red, green, blue in header["palette"])
        return Samples(tuple(header["classes"]), palette, tuple(scenes))


def predictions_file(record_file: Path) -> Path:
    """Return where the predictions of a record's model lie."""
    return record_file.with_name(record_file.stem + PREDICTIONS)


def write_predictions(record_file: Path, record: Record, samples: Samples, maps: Iterator[Picture]) -> None:
    """Write predicted classes (H, W) of every scene, in the scenes' order and their labels' shapes."""
    named = {scene.name: predicted for scene, predicted in zip(samples.scenes, maps, strict=True)}
    header = {"key": record.spec.resolved.key, "samples": samples.identity}
    write_atomically(predictions_file(record_file), _packed(header, named))


def read_predictions(record_file: Path, record: Record, samples: Samples) -> tuple[Picture, ...] | None:
    """Return predicted classes (H, W) of every scene, None where there are none.

    Raises:
        KdbenchError: the file is damaged, or belongs to another record or other samples.
    """
    path = predictions_file(record_file)
    if record.status != "done" or not path.is_file():
        return None
    with _opened(path) as (header, held):
        if header["key"] != record.spec.resolved.key or header["samples"] != samples.identity:
            raise ValueError("they are of another record, or of other images")
        return tuple(_checked(held[scene.name], scene.label.shape) for scene in samples.scenes)


def _packed(header: Mapping[str, Any], arrays: Mapping[str, Picture]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{_HEADER: np.array(json.dumps(header)), **arrays})  # type: ignore[arg-type]
    return buffer.getvalue()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[dict[str, Any], Mapping[str, NDArray[Any]]]]:
    """Open a file's header and arrays; turn any fault into an error that names the file and the repair."""
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("no archive of arrays")
        with np.load(path, allow_pickle=False) as held:
            yield json.loads(str(held[_HEADER])), held
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise KdbenchError(
            f"{path} cannot be shown ({error}). Remove it, or run the same cells again with --pictures."
        ) from error


def _checked(array: NDArray[Any], shape: tuple[int, ...]) -> Picture:
    if array.dtype != np.uint8 or array.shape != shape:
        raise ValueError(f"an array {array.shape} of {array.dtype} where bytes {shape} belong")
    return array


def colourise(label: Picture, palette: Sequence[Colour]) -> Picture:
    """Turn class indices (H, W) into colours (H, W, 3); indices without a colour, 255 among them, become black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = np.asarray(palette, np.uint8).reshape(-1, 3)
    table[255] = 0
    return table[label]


def to_css(colour: Colour) -> str:
    """Return a colour as #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Picture]]],
    columns: Sequence[str],
    *,
    legend: Sequence[tuple[str, Colour]] = (),
    title: str = "",
) -> Figure:
    """Draw rows of pictures (H, W, 3) or (H, W), each with a name, under the columns' names.

    A row may hold fewer pictures than there are columns.
    """
    height, width = np.max([picture.shape[:2] for _, pictures in rows for picture in pictures], axis=0)
    # A size at which hardly anything is left over; the layout finds the places.
    inches = 0.4 + 0.085 * max(len(name) for name, _ in rows) + len(columns) * (TILE / DPI + 0.06)
    across = max(1, int(inches / 1.5))
    lines = 2.5 * bool(title) + 1.5 * any(columns) + -(-len(legend) // across)
    tall = 0.2 + 0.2 * lines + len(rows) * (TILE / DPI * height / width + 0.06)
    figure = Figure(figsize=(inches, tall), dpi=DPI, layout="compressed")
    grid = figure.subplots(len(rows), len(columns), squeeze=False, gridspec_kw={"wspace": 0.02, "hspace": 0.02})
    for axes, name in zip(grid[0], columns, strict=True):
        axes.set_title(name, fontsize=10, color="0.35")
    for line, (name, pictures) in zip(grid, rows, strict=True):
        line[0].text(-0.03, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=10)
        for axes in line:
            axes.set_axis_off()
        for axes, picture in zip(line, pictures, strict=False):
            smooth = None if picture.shape[1] > TILE else "nearest"
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation=smooth)
    if legend:
        patches = [Patch(facecolor=to_css(colour), label=name) for name, colour in legend]
        figure.legend(handles=patches, loc="outside lower left", ncols=across, frameon=False, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, wrap=True)
    return figure
