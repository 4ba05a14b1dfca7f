"""Finds what is wrong with a data set on this disk, by its files' names and pixels, and how to mend it."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tabulate import tabulate

from kdbench.data.datasets.adapter import SHOWN, Adapter, FilePair, Issue, Level, Scan, issue, whole_path
from kdbench.data.datasets.files import DataFile, read_rgb
from kdbench.data.datasets.labels import ByColour, palette_of
from kdbench.errors import KdbenchError
from kdbench.progress import Progress
from kdbench.tools.threads import in_threads
from kdbench.types import IGNORE

THREADS = min(8, os.cpu_count() or 1)
Wrong = tuple[str, str]
"""A kind of issue and the file that has it."""
ENOUGH = 4
"""Labels from which on it means something that a usual value is in none of them."""
OTHER_SIZE, ONE_CLASS = "labels of another size than their image", "labels of one class alone"
REPAIRS: dict[str, tuple[Level, str]] = {
    "images that cannot be read": ("fault", "restore them from the archive; `unzip -t` tells whether it is whole"),
    "labels that cannot be read": ("fault", "restore them from the archive"),
    "blank images": ("fault", "restore them from the archive"),
    "blank images of the release": ("note", "known; they are trained on as they are, as the literature does"),
    "images of another size": ("fault", "restore the originals: resized copies change the benchmark"),
    OTHER_SIZE: ("fault", "restore both from the archives"),
    "labels with unknown values": ("fault", "restore the labels as released, or see which conversion wrote them"),
    "labels with another palette": (
        "fault",
        "restore them from the archive: classes are read by index, and a program that saves with a palette of its own "
        "renumbers them",
    ),
    "labels in which everything is ignored": ("fault", "restore them: a whole image without a class trains nothing"),
    ONE_CLASS: ("note", "look at them with `kdbench data preview`"),
}


@dataclass(frozen=True)
class Report:
    """A data set's state. parts: pairs by part. shares: percent of each class's pixels in the labels that were read."""

    title: str
    root: Path | None
    issues: tuple[Issue, ...]
    parts: Mapping[str, int] = field(default_factory=dict)
    checked: int = 0
    checksum: str = ""
    shares: Mapping[str, float] = field(default_factory=dict)

    @property
    def healthy(self) -> bool:
        """Return whether nothing is wrong."""
        return not any(issue.level == "fault" for issue in self.issues)


@dataclass(frozen=True)
class CheckedPair:
    """What the pixels of one pair show.

    picture: digest of an image that is not blank; content: digest of all pixels.
    stored: pixels of each stored value, (256,); None where no label was read.
    """

    pair: FilePair
    wrong: Sequence[Wrong]
    picture: bytes | None = None
    content: bytes = b""
    stored: np.ndarray | None = None


@dataclass(frozen=True)
class PixelSummary:
    """All checked pairs together.

    files: kind of issue -> the files that have it. labels: how many were read; stored: their pixels by stored value.
    twins: pairs that show the same picture.
    """

    files: dict[str, list[str]]
    labels: int
    stored: np.ndarray
    twins: list[list[FilePair]]
    checksum: str


def verify(adapter: Adapter, data_root: Path, most: int | None, progress: Progress) -> Report:
    """Check all names, and the pixels of at most so many pairs a part, spread over it (None: of all)."""
    try:
        scan = adapter.scan(data_root)
        named = [*_name_issues(scan)]
    except KdbenchError as error:
        repair = "as the message says; then run `kdbench data verify` again"
        opened = Issue("fault", "the data set cannot be opened", (str(error),), repair)
        return Report(adapter.title, adapter.folder(data_root), (opened,))
    parts = dict(sorted(Counter(pair.part for pair in scan.pairs).items()))
    chosen = [pair for part in parts for pair in _spread([p for p in scan.pairs if p.part == part], most)]
    pixels = _check_pixels(scan, chosen, progress)
    issues = (*named, *_pixel_issues(scan, pixels))
    return Report(adapter.title, scan.tree.root, issues, parts, len(chosen), pixels.checksum, _shares(scan, pixels))


def _spread(pairs: Sequence[FilePair], most: int | None) -> list[FilePair]:
    count = len(pairs) if most is None else min(most, len(pairs))
    return [pairs[index * len(pairs) // count] for index in range(count)]


def _shares(scan: Scan, pixels: PixelSummary) -> dict[str, float]:
    space = scan.adapter.classes
    if space is None:
        return {}
    percent = 100 * np.bincount(scan.table(), pixels.stored, 256) / max(1, pixels.stored.sum())
    named = zip((*space.classes, "ignored"), (*range(len(space)), IGNORE), strict=True)
    return {name: round(float(percent[index]), 2) for name, index in named}


def _name_issues(scan: Scan) -> Iterator[Issue]:
    adapter, keys = scan.adapter, scan.images.by_key
    again = adapter.restore or f"add the missing files from the data set's archives ({adapter.home})"
    if not scan.pairs:
        yield Issue("fault", "no image of this data set", (str(scan.tree.root),), scan.advice().strip())
    missing = [pair.image for pair in scan.pairs if pair.label is None and scan.layout.label]
    alone = [file for key, (file, _) in sorted(scan.labels.by_key.items()) if key not in keys]
    copies = [*scan.images.copies, *scan.labels.copies]
    strange = [file for name, file in scan.tree.files.items() if _nearly_named(name, scan)]
    for what, files, repair in (
        ("images without a label", missing, scan.hint() or again),
        ("labels without an image", alone, again),
        ("second files for the same image or label", copies, "remove the copies"),
        ("files that are nearly named as the data set's", strange, "restore their names"),
    ):
        if files:
            yield issue("fault", what, files, repair)
    yield from _count_issues(scan, again)
    yield from adapter.check(scan.tree)


def _count_issues(scan: Scan, again: str) -> Iterator[Issue]:
    for part, official in scan.adapter.counts.items():
        pairs = scan.pairs_in(part)
        found, folders = len(pairs), _folders(pairs)
        if found > official:
            what = f"part {part} has {found} images, {found - official} more than the data set"
            yield Issue("fault", what, folders, "remove what does not belong to the data set")
        elif 0 < found < official:
            yield Issue(scan.adapter.incomplete, f"part {part} has {found} of {official} images", folders, again)
        elif not found and scan.pairs:
            yield Issue("note", f"part {part} is not there ({official} images)", (str(scan.tree.root),), again)


def _folders(pairs: Sequence[FilePair]) -> tuple[str, ...]:
    """Return the first few folders or archives of the images."""
    return tuple(sorted({str(pair.image).rpartition("/")[0] for pair in pairs})[:SHOWN])


def _nearly_named(name: str, scan: Scan) -> bool:
    """Return whether only the case of letters, or of the ending, keeps a file from being read."""
    patterns = [pattern for pattern in (scan.layout.image, scan.layout.label) if pattern]
    if any(whole_path(pattern).fullmatch(name) for pattern in patterns):
        return False
    loosely = name.replace(".jpeg", ".jpg").replace(".JPEG", ".jpg")
    return any(whole_path(pattern, re.IGNORECASE).fullmatch(loosely) for pattern in patterns)


def _check_pixels(scan: Scan, pairs: Sequence[FilePair], progress: Progress) -> PixelSummary:
    files, pictures = defaultdict[str, list[str]](list), defaultdict[bytes, list[FilePair]](list)
    labels, stored = 0, np.zeros(256, np.int64)
    whole = hashlib.sha256()
    for checked in in_threads(f"checking {scan.adapter.name}", partial(_check_pair, scan), pairs, THREADS, progress):
        for kind, file in checked.wrong:
            files[kind].append(file)
        if checked.stored is not None:
            labels, stored = labels + 1, stored + checked.stored
        if checked.picture is not None:
            pictures[checked.picture].append(checked.pair)
        whole.update(checked.content)
    twins = [same for same in pictures.values() if len(same) > 1]
    return PixelSummary(files, labels, stored, twins, whole.hexdigest()[:16])


def _check_pair(scan: Scan, pair: FilePair) -> CheckedPair:
    try:
        image = read_rgb(pair.image)
    except KdbenchError as error:
        return CheckedPair(pair, (("images that cannot be read", str(error)),))
    wrong = [*_check_image(scan, pair, image)]
    content = hashlib.sha256(image.tobytes())
    picture = None if any("blank" in kind for kind, _ in wrong) else content.digest()
    counts = None
    if pair.label is not None:
        try:
            stored = scan.layout.decode(pair.label)
            content.update(stored.tobytes())
            counts = np.bincount(stored.ravel(), minlength=256)
            wrong += _check_label(scan, pair.label, stored.shape, counts, image.shape[:2])
        except KdbenchError as error:
            wrong.append(("labels that cannot be read", str(error)))
    return CheckedPair(pair, wrong, picture, content.digest(), counts)


def _check_image(scan: Scan, pair: FilePair, image: np.ndarray) -> Iterator[Wrong]:
    if (image == image[0, 0]).all():
        yield "blank images of the release" if pair.key in scan.adapter.blank else "blank images", str(pair.image)
    if scan.adapter.size is not None and image.shape[:2] != scan.adapter.size:
        yield "images of another size", f"{pair.image} ({image.shape[0]} x {image.shape[1]})"


def _check_label(
    scan: Scan, file: DataFile, size: tuple[int, ...], counts: np.ndarray, image_size: tuple[int, ...]
) -> Iterator[Wrong]:
    if size != image_size:
        yield OTHER_SIZE, f"{file} ({size[0]} x {size[1]})"
    off = counts * ~scan.layout.known
    if off.any():
        values = "colours" if isinstance(scan.layout.decode, ByColour) else f"values {_few(off.nonzero()[0])}"
        yield "labels with unknown values", f"{file} ({values}, {100 * off.sum() / counts.sum():.2f} % of the pixels)"
    # A program that saves with a palette of its own gives the stored values other colours than the data set's.
    colours = scan.layout.colours
    palette = palette_of(file) if colours else {}
    repainted = [value for value, colour in colours.items() if palette.get(value, colour) != colour]
    if repainted:
        yield "labels with another palette", f"{file} (colours of the values {_few(repainted)})"
    classes = {*scan.table()[counts > 0].tolist()} - {IGNORE}
    if not classes:
        yield "labels in which everything is ignored", str(file)
    elif len(classes) == 1:
        yield ONE_CLASS, str(file)


def _few(values: Iterable[int]) -> str:
    return ", ".join(map(str, [*values][:5]))


def _pixel_issues(scan: Scan, pixels: PixelSummary) -> Iterator[Issue]:
    for kind, files in pixels.files.items():
        level, repair = REPAIRS[kind]
        if kind == OTHER_SIZE and scan.adapter.mismatch == "resize":
            level, repair = "note", "known in this data set: each is resized to its image, nearest, while it is read"
        if kind == ONE_CLASS and 2 * len(files) > pixels.labels:
            level, repair = "fault", "most are: restore them, something else lies in their place"
        yield issue(level, kind, files, repair)
    absent = [str(value) for value in scan.layout.usual if pixels.labels >= ENOUGH and not pixels.stored[value]]
    if absent:
        what = f"stored values that every part of the data set has are in no label: {', '.join(absent)}"
        repair = "restore the labels as released: these were converted or shifted"
        yield Issue("fault", what, _folders(scan.pairs), repair)
    across = [f"{same[0].image} = {same[1].image}" for same in pixels.twins if len({pair.part for pair in same}) > 1]
    if across:
        yield issue("fault", "the same picture in two parts", across, "restore the part that was overwritten")


def lines(report: Report) -> Iterator[str]:
    """Yield the report as text: what is there, the classes' shares, and a table of the issues."""
    parts = ", ".join(f"{part} {count}" for part, count in report.parts.items()) or "nothing"
    yield f"{report.title} in {report.root or '?'}: {parts}"
    if report.checked:
        yield f"  checked the pixels of {report.checked} images, checksum {report.checksum}"
    if report.shares:
        shares = sorted(report.shares.items(), key=lambda item: -item[1])
        yield "  pixels in percent: " + ", ".join(f"{name} {share:g}" for name, share in shares)
    if report.issues:
        rows = [(issue.level.upper(), issue.what, "\n".join(issue.files), issue.repair) for issue in report.issues]
        yield tabulate(rows, ("", "what", "files", "repair"), maxcolwidths=[None, 36, None, 44])
    yield f"  {'healthy' if report.healthy else 'NOT healthy: mend the faults above'}"
