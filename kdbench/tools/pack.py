"""Writes decoded pixels of a data set's parts, memory-mapped: decoding large pictures starves a fast GPU."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock

from kdbench.data.datasets.adapter import Adapter, FilePair, Scan
from kdbench.data.datasets.files import read_rgb
from kdbench.data.realset import PACK_INDEX, PackedPart, PackedPixels, file_states, packed_part
from kdbench.errors import KdbenchError
from kdbench.files import naming_a_full_disk
from kdbench.progress import Progress

KEEP_EVERY = 100
"""Pairs between two points from which a stopped run goes on."""
AHEAD = 4
"""Pairs that each thread decodes ahead of the writing."""
Decoded = tuple[np.ndarray, np.ndarray | None] | KdbenchError


def pack(adapter: Adapter, data_root: Path, parts: tuple[str, ...], workers: int, progress: Progress) -> list[Path]:
    """Decode parts (all, where none is named), write their pixels and return the folders; a stopped run goes on.

    A picture that cannot be read is named and left out: training reads that file itself.
    """
    scan = adapter.scan(data_root)
    pairs = scan.complete_pairs(parts) if parts else scan.pairs
    if not pairs:
        raise KdbenchError(f"data set '{adapter.name}': nothing to pack. {scan.advice()}")
    by_part = groupby(sorted(pairs, key=lambda pair: pair.part), lambda pair: pair.part)
    return [_pack_part(scan, part, list(chosen), workers, progress) for part, chosen in by_part]


def _pack_part(scan: Scan, part: str, pairs: list[FilePair], workers: int, progress: Progress) -> Path:
    target = packed_part(scan, part).folder
    target.parent.mkdir(exist_ok=True)
    with FileLock(f"{target}.lock"):
        there = packed_part(scan, part)
        if all(pair in there for pair in pairs):
            return target
        work = target.with_name(f"{target.name}.partial")
        if there.index and not work.is_dir():
            # A copy, because others may be reading; what is in it already is not decoded again.
            shutil.copytree(target, work)
        partial = PackedPart(work, scan.reading)
        _cut_off(partial)
        progress.begin(f"packing {scan.adapter.name} {part}", len(pairs))
        try:
            with naming_a_full_disk(work), ThreadPoolExecutor(workers) as pool:
                _write(scan, partial, pairs, pool, AHEAD * workers, progress)
            left = len(pairs) - len(PackedPart(work, scan.reading).index)
            if left:
                progress.note(f"{scan.adapter.name} {part}: {left} of {len(pairs)} samples are left out")
        finally:
            progress.end()
        shutil.rmtree(target, ignore_errors=True)
        work.rename(target)
    return target


def _cut_off(partial: PackedPart) -> None:
    """Begin a folder, or take from what a stopped run left all that its index does not hold."""
    partial.folder.mkdir(exist_ok=True)
    for kind in ("image", "label"):
        places = [place[kind] for place in partial.index.values() if place[kind] is not None]
        with (partial.folder / f"{kind}.bin").open("ab") as file:
            file.truncate(max((offset + int(np.prod(shape)) for offset, shape in places), default=0))
    lines = "".join(json.dumps(place) + "\n" for place in partial.index.values())
    (partial.folder / PACK_INDEX).write_text(lines, encoding="utf-8")


def _write(
    scan: Scan, partial: PackedPart, pairs: list[FilePair], pool: ThreadPoolExecutor, ahead: int, progress: Progress
) -> None:
    """Append the pairs that are not there yet; the index is written after the pixels that it names."""
    left, lines = [pair for pair in pairs if pair not in partial], list[str]()
    folder = partial.folder
    with (folder / "image.bin").open("ab") as images, (folder / "label.bin").open("ab") as labels:
        for done, (pair, pixels) in enumerate(_decoded(scan, left, pool, ahead), 1 + len(pairs) - len(left)):
            if isinstance(pixels, KdbenchError):
                progress.note(f"left out: {pixels}")
            else:
                place: PackedPixels = {"key": pair.key, "reading": scan.reading, "files": file_states(pair)}
                place |= {"image": _append(images, pixels[0]), "label": _append(labels, pixels[1])}
                lines.append(json.dumps(place) + "\n")
            if len(lines) >= KEEP_EVERY or done == len(pairs):
                images.flush()
                labels.flush()
                with (folder / PACK_INDEX).open("a", encoding="utf-8") as index:
                    index.writelines(lines)
                lines.clear()
            progress.advance(done, {})


def _decoded(
    scan: Scan, pairs: list[FilePair], pool: ThreadPoolExecutor, ahead: int
) -> Iterator[tuple[FilePair, Decoded]]:
    """Yield pairs with their pixels in order; at most `ahead` are decoded before they are asked for."""

    def decode(pair: FilePair) -> Decoded:
        try:
            return read_rgb(pair.image), None if pair.label is None else scan.layout.decode(pair.label)
        except KdbenchError as error:
            return error

    waiting = iter(pairs)
    running = [(pair, pool.submit(decode, pair)) for pair in islice(waiting, ahead)]
    while running:
        pair, future = running.pop(0)
        running += [(following, pool.submit(decode, following)) for following in islice(waiting, 1)]
        yield pair, future.result()


def _append(file: BinaryIO, pixels: np.ndarray | None) -> tuple[int, tuple[int, ...]] | None:
    if pixels is None:
        return None
    offset = file.tell()
    file.write(np.ascontiguousarray(pixels).data)
    return offset, pixels.shape
