"""Checks the pixels of a data set's pairs: what is wrong with each, and what they hold together."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from kdbench.data.datasets.adapter import FilePair, Scan
from kdbench.data.datasets.files import DataFile, read_rgb
from kdbench.data.datasets.labels import ByColour, palette_of
from kdbench.errors import KdbenchError
from kdbench.types import IGNORE

THREADS = min(8, os.cpu_count() or 1)
AHEAD = 4
"""Pairs a thread that are checked before the first of them is asked for."""
Wrong = tuple[str, str]
"""A kind of issue and the file that has it."""


@dataclass(frozen=True)
class CheckedPair:
    """What the pixels of one pair show.

    picture: digest of an image that is not blank; content: digest of all pixels.
    stored, classes: pixels of each stored value and each class, (256,); None where no label was read.
    """

    pair: FilePair
    wrong: tuple[Wrong, ...]
    picture: bytes | None = None
    content: bytes = b""
    stored: np.ndarray | None = None
    classes: np.ndarray | None = None


@dataclass(frozen=True)
class PixelSummary:
    """All checked pairs together.

    files: kind of issue -> the files that have it. labels: how many were read; stored, classes: their pixels by value.
    twins: pairs that show the same picture.
    """

    files: dict[str, list[str]]
    labels: int
    stored: np.ndarray
    classes: np.ndarray
    twins: list[list[FilePair]]
    checksum: str


def check_pixels(scan: Scan, pairs: Sequence[FilePair], advance: Callable[[int], None]) -> PixelSummary:
    """Check pairs, several at a time; advance is told how many are done."""
    files, pictures = defaultdict[str, list[str]](list), defaultdict[bytes, list[FilePair]](list)
    labels, stored, classes = 0, np.zeros(256, np.int64), np.zeros(256, np.int64)
    whole = hashlib.sha256()
    for done, checked in enumerate(_checked(scan, pairs), 1):
        for kind, file in checked.wrong:
            files[kind].append(file)
        if checked.stored is not None and checked.classes is not None:
            labels, stored, classes = labels + 1, stored + checked.stored, classes + checked.classes
        if checked.picture is not None:
            pictures[checked.picture].append(checked.pair)
        whole.update(checked.content)
        advance(done)
    twins = [same for same in pictures.values() if len(same) > 1]
    return PixelSummary(dict(files), labels, stored, classes, twins, whole.hexdigest()[:16])


def _checked(scan: Scan, pairs: Sequence[FilePair]) -> Iterator[CheckedPair]:
    """Check pairs in order; few are held in memory."""
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(pairs), AHEAD * THREADS):
            yield from pool.map(lambda pair: _check_pair(scan, pair), pairs[start : start + AHEAD * THREADS])


def _check_pair(scan: Scan, pair: FilePair) -> CheckedPair:
    try:
        image = read_rgb(pair.image)
    except KdbenchError as error:
        return CheckedPair(pair, (("images that cannot be read", str(error)),))
    wrong = [*_check_image(scan, pair, image)]
    picture = hashlib.sha256(image.tobytes())
    known = None if any("blank" in kind for kind, _ in wrong) else picture.digest()
    if pair.label is None:
        return CheckedPair(pair, (*wrong,), known, picture.digest())
    try:
        stored = scan.layout.decode(pair.label)
    except KdbenchError as error:
        wrong.append(("labels that cannot be read", str(error)))
        return CheckedPair(pair, (*wrong,), known, picture.digest())
    content = picture.copy()
    content.update(stored.tobytes())
    classes = scan.table()[stored]
    wrong += _check_label(scan, pair.label, stored, classes, image.shape[:2])
    return CheckedPair(pair, (*wrong,), known, content.digest(), _histogram(stored), _histogram(classes))


def _histogram(values: np.ndarray) -> np.ndarray:
    return np.bincount(values.ravel(), minlength=256)


def _check_image(scan: Scan, pair: FilePair, image: np.ndarray) -> Iterator[Wrong]:
    if (image == image[0, 0]).all():
        yield "blank images of the release" if pair.key in scan.adapter.blank else "blank images", str(pair.image)
    if scan.adapter.size is not None and image.shape[:2] != scan.adapter.size:
        yield "images of another size", f"{pair.image} ({image.shape[0]} x {image.shape[1]})"


def _check_label(
    scan: Scan, file: DataFile, stored: np.ndarray, classes: np.ndarray, size: tuple[int, ...]
) -> Iterable[Wrong]:
    if stored.shape != size:
        yield "labels of another size than their image", f"{file} ({stored.shape[0]} x {stored.shape[1]})"
    off = stored[~scan.layout.known[stored]]
    if off.size:
        values = "colours" if isinstance(scan.layout.decode, ByColour) else f"values {_few(np.unique(off))}"
        yield "labels with unknown values", f"{file} ({values}, {100 * off.size / stored.size:.2f} % of the pixels)"
    repainted = _repainted(scan, file)
    if repainted:
        yield "labels with another palette", f"{file} (colours of the values {_few(repainted)})"
    there = np.unique(classes[classes != IGNORE])
    if len(there) == 0:
        yield "labels in which everything is ignored", str(file)
    elif len(there) == 1:
        yield "labels of one class alone", str(file)


def _few(values: Iterable[int]) -> str:
    return ", ".join(map(str, [*values][:5]))


def _repainted(scan: Scan, file: DataFile) -> list[int]:
    """Return the stored values to which a label's palette gives another colour than the data set's."""
    colours = scan.layout.colours
    palette = palette_of(file) if colours else {}
    return [value for value, colour in colours.items() if palette.get(value, colour) != colour]
