"""Writes the decoded pixels of a data set's parts: decoding large pictures starves a fast GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from kdbench.data.datasets.adapter import Adapter, FilePair, Scan
from kdbench.data.datasets.files import DataFile, read_rgb
from kdbench.data.realset import packed_path
from kdbench.errors import KdbenchError
from kdbench.files import DiskFullError, save_atomically
from kdbench.progress import Progress

Item = TypeVar("Item")
Made = TypeVar("Made")


def pack(adapter: Adapter, data_root: Path, parts: tuple[str, ...], workers: int, progress: Progress) -> list[Path]:
    """Write the pixels of parts (all, where none is named), a file each, and return the folders; a stopped run goes on.

    A picture that cannot be read is named and left out: training reads that file itself. Pixels of files that have
    changed since are removed.
    """
    scan = adapter.scan(data_root)
    pairs = scan.complete_pairs(parts) if parts else scan.pairs
    if not pairs:
        raise KdbenchError(f"data set '{adapter.name}': nothing to pack. {scan.advice()}")
    kept: set[Path] = set()
    for packed in in_threads(partial(_pack_pair, scan), pairs, workers, progress, f"packing {adapter.name}"):
        if isinstance(packed, KdbenchError):
            progress.note(f"left out: {packed}")
        else:
            kept.update(packed)
    folders = sorted({path.parent for path in kept})
    for path in [path for folder in folders for path in folder.glob("*.npy") if path not in kept]:
        path.unlink(missing_ok=True)
    return folders


def in_threads(
    work: Callable[[Item], Made], items: Sequence[Item], workers: int, progress: Progress, what: str
) -> Iterator[Made]:
    """Yield what work makes of each item, in order; an error drops what has not begun."""
    progress.begin(what, len(items))
    try:
        with ThreadPoolExecutor(workers) as pool:
            try:
                for done, made in enumerate(pool.map(work, items), 1):
                    yield made
                    progress.advance(done, {})
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        progress.end()


def _pack_pair(scan: Scan, pair: FilePair) -> list[Path] | KdbenchError:
    try:
        image = _pack_file(scan, pair.part, pair.image, read_rgb)
        return [image] if pair.label is None else [image, _pack_file(scan, pair.part, pair.label, scan.layout.decode)]
    except DiskFullError:
        raise
    except KdbenchError as error:
        return error


def _pack_file(scan: Scan, part: str, file: DataFile, decode: Callable[[DataFile], np.ndarray]) -> Path:
    path = packed_path(scan, part, file)
    if not path.is_file():
        pixels = decode(file)
        save_atomically(path, lambda target: np.save(target, pixels))
    return path
