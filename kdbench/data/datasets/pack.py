"""Decoded pixels of a data set's parts in one file each, memory-mapped: decoding large pictures starves a fast GPU."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock

from kdbench.data.datasets.adapter import Adapter, FilePair, Scan
from kdbench.data.datasets.files import read_rgb
from kdbench.errors import KdbenchError
from kdbench.files import naming_a_full_disk
from kdbench.progress import Progress

FOLDER = "kdbench-packed"
INDEX = "index.jsonl"
KEEP_EVERY = 100
"""Pictures between two points from which a stopped run goes on."""
AHEAD = 4
"""Pictures that each thread decodes ahead of the writing."""
Place = dict[str, Any]


@dataclass(frozen=True)
class Packed:
    """A part's decoded pixels.

    Images and stored label values lie one after the other. The index has a line a sample: its key, offset and shape of
    image and label, and the state (size, time) of the files that they came from. reading: the code that decodes.
    """

    folder: Path
    reading: str

    @cached_property
    def index(self) -> dict[str, Place]:
        """By key; empty where other code has decoded."""
        path = self.folder / INDEX
        if not path.is_file():
            return {}
        # What follows the last whole line was being written when a run was stopped.
        lines = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
        places = [json.loads(line) for line in lines]
        return {place["key"]: place for place in places if place["reading"] == self.reading}

    @cached_property
    def _images(self) -> np.ndarray:
        return np.memmap(self.folder / "image.bin", np.uint8, "r")

    @cached_property
    def _labels(self) -> np.ndarray:
        return np.memmap(self.folder / "label.bin", np.uint8, "r")

    def __contains__(self, sample: FilePair) -> bool:
        """Whether the sample is there, made from the files as they are now."""
        place = self.index.get(sample.key)
        return place is not None and place["files"] == _state(sample)

    def read(self, sample: FilePair) -> tuple[np.ndarray, np.ndarray | None]:
        """Image (H, W, 3) and stored label values (h, w)."""
        place = self.index[sample.key]
        return _piece(self._images, *place["image"]), place["label"] and _piece(self._labels, *place["label"])


def _piece(pixels: np.ndarray, offset: int, shape: list[int]) -> np.ndarray:
    return np.asarray(pixels[offset : offset + int(np.prod(shape))]).reshape(shape)


def packed(scan: Scan, part: str) -> Packed:
    """Where a part's pixels are, or would be."""
    return Packed(scan.tree.root / FOLDER / part.replace("/", "-"), scan.reading)


def pack(adapter: Adapter, data_root: Path, parts: tuple[str, ...], workers: int, progress: Progress) -> list[Path]:
    """Decodes the parts (all, where none is named) and writes them; a stopped run goes on where it was.

    A picture that cannot be read is named and left out: whoever trains reads that file itself.
    """
    scan = adapter.scan(data_root)
    samples = scan.parts(parts) if parts else scan.samples
    if not samples:
        raise KdbenchError(f"data set '{adapter.name}': nothing to pack. {scan.advice()}")
    by_part: dict[str, list[FilePair]] = {}
    for sample in samples:
        by_part.setdefault(sample.part, []).append(sample)
    return [_pack_part(scan, part, chosen, workers, progress) for part, chosen in sorted(by_part.items())]


def _pack_part(scan: Scan, part: str, samples: list[FilePair], workers: int, progress: Progress) -> Path:
    target = packed(scan, part).folder
    target.parent.mkdir(exist_ok=True)
    with FileLock(f"{target}.lock"):
        there = packed(scan, part)
        if not all(sample in there for sample in samples):
            work = target.with_name(f"{target.name}.partial")
            if there.index and not work.is_dir():
                # A copy, because others may be reading; what is in it already is not decoded again.
                shutil.copytree(target, work)
            partial = Packed(work, scan.reading)
            _cut_off(partial)
            progress.begin(f"packing {scan.adapter.name} {part}", len(samples))
            try:
                with naming_a_full_disk(partial.folder), ThreadPoolExecutor(max(1, workers)) as pool:
                    _write(scan, partial, samples, pool, AHEAD * max(1, workers), progress)
                left = len(samples) - len(Packed(partial.folder, scan.reading).index)
                if left:
                    progress.note(f"{scan.adapter.name} {part}: {left} of {len(samples)} samples are left out")
            finally:
                progress.end()
            shutil.rmtree(target, ignore_errors=True)
            partial.folder.rename(target)
    return target


def _cut_off(partial: Packed) -> None:
    """Begins a folder, or takes from what a stopped run left all that its index does not hold."""
    partial.folder.mkdir(exist_ok=True)
    for kind in ("image", "label"):
        places = [place[kind] for place in partial.index.values() if place[kind] is not None]
        with (partial.folder / f"{kind}.bin").open("ab") as file:
            file.truncate(max((offset + int(np.prod(shape)) for offset, shape in places), default=0))
    lines = "".join(json.dumps(place) + "\n" for place in partial.index.values())
    (partial.folder / INDEX).write_text(lines, encoding="utf-8")


def _write(
    scan: Scan, partial: Packed, samples: list[FilePair], pool: ThreadPoolExecutor, ahead: int, progress: Progress
) -> None:
    left = [sample for sample in samples if sample not in partial]
    done, lines = len(samples) - len(left), []
    folder = partial.folder
    with (folder / "image.bin").open("ab") as images, (folder / "label.bin").open("ab") as labels:
        for sample, pixels in _decoded(scan, left, pool, ahead):
            done += 1
            if isinstance(pixels, KdbenchError):
                progress.note(f"left out: {pixels}")
            else:
                place: Place = {"key": sample.key, "reading": scan.reading, "files": _state(sample)}
                place |= {"image": _append(images, pixels[0]), "label": _append(labels, pixels[1])}
                lines.append(json.dumps(place) + "\n")
            if len(lines) >= KEEP_EVERY or done == len(samples):
                images.flush()
                labels.flush()
                with (folder / INDEX).open("a", encoding="utf-8") as index:
                    index.writelines(lines)
                lines.clear()
            progress.advance(done, {})


def _decoded(
    scan: Scan, samples: list[FilePair], pool: ThreadPoolExecutor, ahead: int
) -> Iterator[tuple[FilePair, tuple[np.ndarray, np.ndarray | None] | KdbenchError]]:
    """In order, so many at a time."""

    def decode(sample: FilePair) -> tuple[np.ndarray, np.ndarray | None] | KdbenchError:
        try:
            return read_rgb(sample.image), None if sample.label is None else scan.layout.decode(sample.label)
        except KdbenchError as error:
            return error

    waiting = iter(samples)
    running = [(sample, pool.submit(decode, sample)) for sample in islice(waiting, ahead)]
    while running:
        sample, future = running.pop(0)
        running += [(following, pool.submit(decode, following)) for following in islice(waiting, 1)]
        yield sample, future.result()


def _append(file: BinaryIO, pixels: np.ndarray | None) -> list[Any] | None:
    if pixels is None:
        return None
    offset = file.tell()
    file.write(np.ascontiguousarray(pixels).data)
    return [offset, list(pixels.shape)]


def _state(sample: FilePair) -> list[Any]:
    return [list(sample.image.state), None if sample.label is None else list(sample.label.state)]
