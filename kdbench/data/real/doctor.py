"""The data doctor: what is wrong with a data set on this disk, file by file, and how it is mended."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tabulate import tabulate

from kdbench.data.real.adapter import Adapter, Sample, Scan
from kdbench.data.real.files import Entry, read_rgb
from kdbench.data.real.labels import Colours
from kdbench.errors import KdbenchError
from kdbench.progress import Progress
from kdbench.types import IGNORE

Level = Literal["fault", "note"]
ENOUGH = 4
"""Labels from which on it means something that a usual value is in none of them."""
SHOWN = 3
"""Files that a finding names; it counts the others."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong (fault), or that one should know (note)."""

    level: Level
    what: str
    files: tuple[str, ...]
    repair: str


@dataclass
class Report:
    """A data set's state. parts: pairs by part. histogram: share of each class in percent, of the labels looked at."""

    name: str
    title: str
    root: str = ""
    parts: dict[str, int] = field(default_factory=dict)
    looked_at: int = 0
    histogram: dict[str, float] = field(default_factory=dict)
    checksum: str = ""
    findings: list[Finding] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not any(finding.level == "fault" for finding in self.findings)


@dataclass
class Seen:
    """What was found wrong in the pixels: by kind, the files."""

    files: dict[str, list[str]] = field(default_factory=dict)
    labels: int = 0
    stored: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    counts: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    digests: dict[str, list[Sample]] = field(default_factory=dict)
    whole: Any = field(default_factory=hashlib.sha256)

    def add(self, kind: str, entry: Entry | str) -> None:
        """One more file of a kind."""
        self.files.setdefault(kind, []).append(str(entry))


def examine(adapter: Adapter, data_root: Path, most: int | None, progress: Progress) -> Report:
    """Looks at all names, and at the pixels of at most so many pairs a part, spread over it (None: of all)."""
    report = Report(adapter.name, adapter.title)
    try:
        scan = adapter.scan(data_root)
        report.root = str(scan.tree.root)
        report.parts = dict(sorted(Counter(sample.part for sample in scan.samples).items()))
        report.findings += _of_names(scan)
    except KdbenchError as error:
        report.findings.append(Finding("fault", "the data set cannot be opened", (str(error),), "as the message says"))
        return report
    seen, chosen = Seen(), _chosen(scan, most)
    progress.begin(f"looking at {adapter.name}", len(chosen))
    try:
        for done, sample in enumerate(chosen, 1):
            _look(scan, sample, seen)
            progress.advance(done, {})
    finally:
        progress.end()
    report.looked_at = len(chosen)
    report.checksum = seen.whole.hexdigest()[:16]
    names = adapter.classes.classes if adapter.classes else ()
    shares = 100 * seen.counts / max(1, seen.counts.sum())
    report.histogram = {name: round(float(shares[i]), 2) for i, name in enumerate(names)} | (
        {"ignored": round(float(shares[IGNORE]), 2)} if names else {}
    )
    report.findings += _of_pixels(scan, seen)
    return report


def _of_names(scan: Scan) -> Iterator[Finding]:
    adapter, samples = scan.adapter, scan.samples
    again = adapter.restore or f"add the missing files from the data set's archives ({adapter.home})"
    if not samples:
        yield _finding("fault", "no image of this data set", [], scan.advice().strip())
    if scan.layout.label:
        missing = [sample.image for sample in samples if sample.label is None]
        if missing:
            yield _finding("fault", "images without a label", missing, scan.hint() or again)
        alone = [entry for key, (entry, _) in sorted(scan.labels.files.items()) if key not in scan.images.files]
        if alone:
            yield _finding("fault", "labels without an image", alone, again)
    doubles = [*scan.images.doubles, *scan.labels.doubles]
    if doubles:
        yield _finding("fault", "second files for the same image or label", doubles, "remove the copies")
    yield from _counts(scan, again)
    strange = [e for name, e in scan.tree.entries.items() if _nearly(name, scan)]
    if strange:
        yield _finding("fault", "files that are nearly named as the data set's", strange, "restore their names")


def _counts(scan: Scan, again: str) -> Iterator[Finding]:
    for part, official in scan.adapter.counts.items():
        found = sum(s.part == part or s.part.startswith(f"{part}/") for s in scan.samples)
        if found and found < official:
            yield _finding(scan.adapter.incomplete, f"part {part} has {found} of {official} images", [], again)
        elif found > official:
            yield _finding(
                "fault", f"part {part} has {found} images, {found - official} more than the data set", [],
                "remove what does not belong to the data set",
            )  # fmt: skip
        elif not found and scan.samples:
            yield _finding("note", f"part {part} is not there ({official} images)", [], again)


def _nearly(name: str, scan: Scan) -> bool:
    """Whether only the case of letters, or of the ending, keeps a file from being read."""
    if any(re.fullmatch(rf"(?:.*/)?{p}", name) for p in (scan.layout.image, scan.layout.label) if p):
        return False
    loosely = name.replace(".jpeg", ".jpg").replace(".JPEG", ".jpg")
    patterns = [p for p in (scan.layout.image, scan.layout.label) if p]
    return any(re.fullmatch(rf"(?:.*/)?{p}", loosely, re.IGNORECASE) for p in patterns)


def _chosen(scan: Scan, most: int | None) -> list[Sample]:
    chosen = []
    for part in sorted({sample.part for sample in scan.samples}):
        samples = [sample for sample in scan.samples if sample.part == part]
        count = len(samples) if most is None else min(most, len(samples))
        chosen += [samples[index * len(samples) // count] for index in range(count)]
    return chosen


def _look(scan: Scan, sample: Sample, seen: Seen) -> None:
    try:
        image = read_rgb(sample.image)
    except KdbenchError as error:
        seen.add("images that cannot be read", str(error))
        return
    seen.whole.update(image.tobytes())
    if (image == image[0, 0]).all():
        seen.add("blank images of the release" if sample.key in scan.adapter.blank else "blank images", sample.image)
    else:
        seen.digests.setdefault(hashlib.sha256(image.tobytes()).hexdigest(), []).append(sample)
    size = scan.adapter.size
    if size is not None and image.shape[:2] != size:
        seen.add("images of another size", f"{sample.image} ({image.shape[0]} x {image.shape[1]})")
    if sample.label is not None:
        _look_at_label(scan, sample.label, image.shape[:2], seen)


def _look_at_label(scan: Scan, entry: Entry, size: tuple[int, int], seen: Seen) -> None:
    try:
        stored = scan.layout.decode(entry)
    except KdbenchError as error:
        seen.add("labels that cannot be read", str(error))
        return
    seen.whole.update(stored.tobytes())
    if stored.shape != size:
        seen.add("labels of another size than their image", f"{entry} ({stored.shape[0]} x {stored.shape[1]})")
    values = np.bincount(stored.ravel(), minlength=256)
    seen.labels += 1
    seen.stored += values
    strange = np.flatnonzero(values * ~scan.layout.known)
    if len(strange):
        off = values[strange].sum() / stored.size
        named = "colours" if isinstance(scan.layout.decode, Colours) else f"values {', '.join(map(str, strange[:5]))}"
        seen.add("labels with unknown values", f"{entry} ({named}, {100 * off:.2f} % of the pixels)")
    classes = scan.table()[stored]
    seen.counts += np.bincount(classes.ravel(), minlength=256)
    if (classes == IGNORE).all():
        seen.add("labels in which everything is ignored", entry)
    elif len(np.unique(classes[classes != IGNORE])) == 1:
        seen.add("labels of one class alone", entry)


REPAIRS: dict[str, tuple[Level, str]] = {
    "images that cannot be read": ("fault", "restore them from the archive; `unzip -t` tells whether it is whole"),
    "labels that cannot be read": ("fault", "restore them from the archive"),
    "blank images": ("fault", "restore them from the archive"),
    "blank images of the release": ("note", "known; they are trained on as they are, as the literature does"),
    "images of another size": ("fault", "restore the originals: resized copies change the benchmark"),
    "labels of another size than their image": ("fault", "restore both from the archives"),
    "labels with unknown values": ("fault", "restore the labels as released, or see which conversion wrote them"),
    "labels in which everything is ignored": ("fault", "restore them: a whole image without a class trains nothing"),
    "labels of one class alone": ("note", "look at them with `kdbench data preview`"),
}


def _of_pixels(scan: Scan, seen: Seen) -> Iterator[Finding]:
    for kind, files in seen.files.items():
        level, repair = REPAIRS[kind]
        if kind == "labels of another size than their image" and scan.adapter.mismatch == "resize":
            level, repair = "note", "known in this data set: each is resized to its image, nearest, while it is read"
        if kind == "labels of one class alone" and 2 * len(files) > seen.labels:
            level, repair = "fault", "most are: restore them, something else lies in their place"
        yield _finding(level, kind, files, repair)
    absent = [str(value) for value in scan.layout.usual if seen.labels >= ENOUGH and not seen.stored[value]]
    if absent:
        what = f"stored values that every part of the data set has are in no label: {', '.join(absent)}"
        yield _finding("fault", what, [], "restore the labels as released: these were converted or shifted")
    yield from _twins(seen)


def _twins(seen: Seen) -> Iterator[Finding]:
    across = [
        f"{samples[0].image} = {samples[1].image}"
        for samples in seen.digests.values()
        if len({sample.part for sample in samples}) > 1
    ]
    if across:
        yield _finding("fault", "the same picture in two parts", across, "restore the part that was overwritten")


def _finding(level: Level, what: str, files: Iterable[Entry | str], repair: str) -> Finding:
    named = tuple(map(str, files))
    shown: Sequence[str] = named[:SHOWN]
    count = f"{len(named)} " if named else ""
    return Finding(level, f"{count}{what}", tuple(shown), repair)


def lines(report: Report) -> Iterator[str]:
    """The report as text: what is there, the classes' shares, and a table of what is wrong."""
    parts = ", ".join(f"{part} {count}" for part, count in report.parts.items()) or "nothing"
    yield f"{report.title} in {report.root or '?'}: {parts}"
    if report.looked_at:
        yield f"  looked at the pixels of {report.looked_at} images, checksum {report.checksum}"
    if report.histogram:
        shares = sorted(report.histogram.items(), key=lambda item: -item[1])
        yield "  pixels in percent: " + ", ".join(f"{name} {share:g}" for name, share in shares)
    if report.findings:
        rows = [(f.level.upper(), f.what, "\n".join(f.files), f.repair) for f in report.findings]
        yield tabulate(rows, ("", "what", "files", "repair"), maxcolwidths=[None, 36, None, 44])
    yield f"  {'healthy' if report.healthy else 'NOT healthy: mend the faults above'}"
