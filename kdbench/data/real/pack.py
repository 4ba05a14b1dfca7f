"""Decoded pixels of a data set's parts in one file each, memory-mapped: decoding large pictures starves a fast GPU."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.data.real.adapter import Adapter, Sample, Scan
from kdbench.data.real.files import read_rgb
from kdbench.errors import KdbenchError
from kdbench.files import naming_a_full_disk, write_atomically
from kdbench.progress import Progress

FOLDER = "kdbench-packed"
KEEP_EVERY = 200
"""Pictures between two points from which a stopped run goes on."""
AHEAD = 4
"""Pictures that each thread decodes ahead of the writing."""


@dataclass(frozen=True)
class Packed:
    """A part's decoded pixels. Images and stored label values lie one after the other; an index tells where."""

    folder: Path

    @cached_property
    def index(self) -> dict[str, dict[str, Any]]:
        """key -> image and label: offset and shape; and the sizes of the files that they came from."""
        path = self.folder / "index.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @cached_property
    def _images(self) -> np.ndarray:
        return np.memmap(self.folder / "image.bin", np.uint8, "r")

    @cached_property
    def _labels(self) -> np.ndarray:
        return np.memmap(self.folder / "label.bin", np.uint8, "r")

    def __contains__(self, sample: Sample) -> bool:
        """Whether the sample is there, made from files of the sizes that they have now."""
        entry = self.index.get(sample.key)
        return entry is not None and entry["files"] == _sizes(sample)

    def read(self, sample: Sample) -> tuple[np.ndarray, np.ndarray | None]:
        """Image (H, W, 3) and stored label values (h, w)."""
        entry = self.index[sample.key]
        return _part(self._images, *entry["image"]), entry["label"] and _part(self._labels, *entry["label"])


def _part(pixels: np.ndarray, offset: int, shape: list[int]) -> np.ndarray:
    return np.asarray(pixels[offset : offset + int(np.prod(shape))]).reshape(shape)


def packed(scan: Scan, part: str) -> Packed:
    """Where a part's pixels are, or would be."""
    return Packed(scan.tree.root / FOLDER / part.replace("/", "-"))


def pack(adapter: Adapter, data_root: Path, parts: tuple[str, ...], workers: int, progress: Progress) -> list[Path]:
    """Decodes the parts (all, where none is named) and writes them; a stopped run goes on where it was."""
    scan = adapter.scan(data_root)
    samples = scan.parts(parts) if parts else scan.samples
    if not samples:
        raise KdbenchError(f"data set '{adapter.name}': nothing to pack. {scan.advice()}")
    by_part: dict[str, list[Sample]] = {}
    for sample in samples:
        by_part.setdefault(sample.part, []).append(sample)
    return [_pack_part(scan, part, chosen, workers, progress) for part, chosen in sorted(by_part.items())]


def _pack_part(scan: Scan, part: str, samples: list[Sample], workers: int, progress: Progress) -> Path:
    target = packed(scan, part)
    if all(sample in target for sample in samples):
        return target.folder
    folder = target.folder.with_name(f"{target.folder.name}.partial")
    index = _begun(folder)
    left = [sample for sample in samples if index.get(sample.key, {}).get("files") != _sizes(sample)]
    progress.begin(f"packing {scan.adapter.name} {part}", len(samples))
    try:
        with naming_a_full_disk(folder), ThreadPoolExecutor(max(1, workers)) as pool:
            _write(scan, folder, left, index, pool, workers, progress, len(samples) - len(left))
    finally:
        progress.end()
    shutil.rmtree(target.folder, ignore_errors=True)
    folder.rename(target.folder)
    return target.folder


def _begun(folder: Path) -> dict[str, dict[str, Any]]:
    """The index of what a stopped run left; what it had written beyond that is cut off."""
    folder.mkdir(parents=True, exist_ok=True)
    index = Packed(folder).index
    for kind in ("image", "label"):
        path = folder / f"{kind}.bin"
        path.touch()
        places = [entry[kind] for entry in index.values() if entry[kind] is not None]
        with path.open("r+b") as file:
            file.truncate(max((offset + int(np.prod(shape)) for offset, shape in places), default=0))
    return index


def _write(
    scan: Scan, folder: Path, left: list[Sample], index: dict[str, dict[str, Any]], pool: ThreadPoolExecutor,
    workers: int, progress: Progress, done: int,
) -> None:  # fmt: skip
    def decoded(sample: Sample) -> tuple[Sample, dict[str, np.ndarray | None]]:
        label = None if sample.label is None else scan.layout.decode(sample.label)
        return sample, {"image": read_rgb(sample.image), "label": label}

    with (folder / "image.bin").open("ab") as images, (folder / "label.bin").open("ab") as labels:
        files = {"image": images, "label": labels}
        waiting = iter(left)
        running = [pool.submit(decoded, sample) for sample in islice(waiting, AHEAD * max(1, workers))]
        while running:
            sample, pixels = running.pop(0).result()
            running += [pool.submit(decoded, following) for following in islice(waiting, 1)]
            entry: dict[str, Any] = {"files": _sizes(sample)}
            for kind, values in pixels.items():
                entry[kind] = None if values is None else [files[kind].tell(), list(values.shape)]
                if values is not None:
                    files[kind].write(np.ascontiguousarray(values).data)
            index[sample.key] = entry
            done += 1
            if done % KEEP_EVERY == 0 or not running:
                for file in files.values():
                    file.flush()
                write_atomically(folder / "index.json", json.dumps(index).encode())
            progress.advance(done, {})


def _sizes(sample: Sample) -> list[int | None]:
    return [sample.image.size, None if sample.label is None else sample.label.size]
