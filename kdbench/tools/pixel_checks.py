"""A look at the pixels of a data set's pairs: what is wrong with each, and what they hold together."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kdbench.data.datasets.adapter import FilePair, Scan
from kdbench.data.datasets.files import DataFile, read_rgb
from kdbench.data.datasets.labels import ByColour, palette_of
from kdbench.errors import KdbenchError
from kdbench.types import IGNORE

THREADS = min(8, os.cpu_count() or 1)
AHEAD = 4
"""Pairs a thread that are looked at before the first of them is asked for."""


@dataclass
class PairCheck:
    """One pair. wrong: what is wrong with it, and in which file; stored: pixels of each value; classes: of each class.

    picture: the digest of an image that is not blank; content: the digest of all pixels.
    """

    sample: FilePair
    wrong: list[tuple[str, str]] = field(default_factory=list)
    stored: np.ndarray | None = None
    classes: np.ndarray | None = None
    picture: bytes | None = None
    content: bytes = b""


@dataclass
class PixelSummary:
    """All pairs together. files: what is wrong -> where; digests: a picture -> the pairs that show it."""

    files: dict[str, list[str]] = field(default_factory=dict)
    labels: int = 0
    stored: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    counts: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    digests: dict[bytes, list[FilePair]] = field(default_factory=dict)
    whole: Any = field(default_factory=hashlib.sha256)

    def add(self, look: PairCheck) -> None:
        """One more pair."""
        for kind, file in look.wrong:
            self.files.setdefault(kind, []).append(file)
        if look.stored is not None and look.classes is not None:
            self.labels += 1
            self.stored += look.stored
            self.counts += look.classes
        if look.picture is not None:
            self.digests.setdefault(look.picture, []).append(look.sample)
        self.whole.update(look.content)


def looks(scan: Scan, samples: Sequence[FilePair]) -> Iterator[PairCheck]:
    """A look at each pair, in their order, several at a time; few are held in memory."""
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(samples), AHEAD * THREADS):
            yield from pool.map(lambda sample: look_at(scan, sample), samples[start : start + AHEAD * THREADS])


def look_at(scan: Scan, sample: FilePair) -> PairCheck:
    """Reads a pair."""
    look = PairCheck(sample)
    try:
        image = read_rgb(sample.image)
    except KdbenchError as error:
        look.wrong.append(("images that cannot be read", str(error)))
        return look
    content = hashlib.sha256(image.tobytes())
    if (image == image[0, 0]).all():
        kind = "blank images of the release" if sample.key in scan.adapter.blank else "blank images"
        look.wrong.append((kind, str(sample.image)))
    else:
        look.picture = content.digest()
    size = scan.adapter.size
    if size is not None and image.shape[:2] != size:
        look.wrong.append(("images of another size", f"{sample.image} ({image.shape[0]} x {image.shape[1]})"))
    if sample.label is not None:
        _look_at_label(scan, sample.label, image.shape[:2], look, content)
    look.content = content.digest()
    return look


def _look_at_label(scan: Scan, entry: DataFile, size: tuple[int, int], look: PairCheck, content: Any) -> None:
    try:
        stored = scan.layout.decode(entry)
    except KdbenchError as error:
        look.wrong.append(("labels that cannot be read", str(error)))
        return
    content.update(stored.tobytes())
    if stored.shape != size:
        named = f"{entry} ({stored.shape[0]} x {stored.shape[1]})"
        look.wrong.append(("labels of another size than their image", named))
    look.stored = np.bincount(stored.ravel(), minlength=256)
    strange = np.flatnonzero(look.stored * ~scan.layout.known)
    if len(strange):
        off = look.stored[strange].sum() / stored.size
        named = "colours" if isinstance(scan.layout.decode, ByColour) else f"values {', '.join(map(str, strange[:5]))}"
        look.wrong.append(("labels with unknown values", f"{entry} ({named}, {100 * off:.2f} % of the pixels)"))
    wrong = _repainted(scan, entry) if scan.layout.colours else []
    if wrong:
        values = ", ".join(map(str, wrong[:5]))
        look.wrong.append(("labels with another palette", f"{entry} (colours of the values {values})"))
    classes = scan.table()[stored]
    look.classes = np.bincount(classes.ravel(), minlength=256)
    if (classes == IGNORE).all():
        look.wrong.append(("labels in which everything is ignored", str(entry)))
    elif len(np.unique(classes[classes != IGNORE])) == 1:
        look.wrong.append(("labels of one class alone", str(entry)))


def _repainted(scan: Scan, entry: DataFile) -> list[int]:
    """The stored values to which a label's palette gives another colour than the data set's."""
    palette = palette_of(entry)
    if palette is None:
        return []
    return [value for value, colour in scan.layout.colours.items() if palette.get(value, colour) != colour]
