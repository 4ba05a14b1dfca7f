"""The data doctor: what is wrong with a data set on this disk, file by file, and how it is mended."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate

from kdbench.data.datasets.adapter import Adapter, FilePair, Scan, whole_path
from kdbench.data.datasets.issues import SHOWN, Issue, Level, issue
from kdbench.errors import KdbenchError
from kdbench.progress import Progress
from kdbench.tools.pixel_checks import PixelSummary, looks
from kdbench.types import IGNORE

ENOUGH = 4
"""Labels from which on it means something that a usual value is in none of them."""


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
    issues: list[Issue] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not any(issue.level == "fault" for issue in self.issues)


def examine(adapter: Adapter, data_root: Path, most: int | None, progress: Progress) -> Report:
    """Looks at all names, and at the pixels of at most so many pairs a part, spread over it (None: of all)."""
    report = Report(adapter.name, adapter.title)
    try:
        scan = adapter.scan(data_root)
        report.root = str(scan.tree.root)
        report.parts = dict(sorted(Counter(sample.part for sample in scan.samples).items()))
        report.issues += _of_names(scan)
    except KdbenchError as error:
        repair = "as the message says; then run `kdbench data verify` again"
        report.issues.append(Issue("fault", "the data set cannot be opened", (str(error),), repair))
        return report
    seen, chosen = PixelSummary(), _chosen(scan, most)
    progress.begin(f"looking at {adapter.name}", len(chosen))
    try:
        for done, look in enumerate(looks(scan, chosen), 1):
            seen.add(look)
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
    report.issues += _of_pixels(scan, seen)
    if most is None:
        report.issues += _of_archives(scan)
    return report


def _of_names(scan: Scan) -> Iterator[Issue]:
    adapter, samples = scan.adapter, scan.samples
    again = adapter.restore or f"add the missing files from the data set's archives ({adapter.home})"
    if not samples:
        yield Issue("fault", "no image of this data set", (str(scan.tree.root),), scan.advice().strip())
    if scan.layout.label:
        missing = [sample.image for sample in samples if sample.label is None]
        if missing:
            yield issue("fault", "images without a label", missing, scan.hint() or again)
        alone = [entry for key, (entry, _) in sorted(scan.labels.files.items()) if key not in scan.images.files]
        if alone:
            yield issue("fault", "labels without an image", alone, again)
    doubles = [*scan.images.doubles, *scan.labels.doubles]
    if doubles:
        yield issue("fault", "second files for the same image or label", doubles, "remove the copies")
    yield from _counts(scan, again)
    yield from adapter.check(scan.tree)
    strange = [e for name, e in scan.tree.entries.items() if _nearly(name, scan)]
    if strange:
        yield issue("fault", "files that are nearly named as the data set's", strange, "restore their names")


def _counts(scan: Scan, again: str) -> Iterator[Issue]:
    for part, official in scan.adapter.counts.items():
        there = [s for s in scan.samples if s.part == part or s.part.startswith(f"{part}/")]
        found, folders = len(there), _folders(there)
        if found and found < official:
            yield Issue(scan.adapter.incomplete, f"part {part} has {found} of {official} images", folders, again)
        elif found > official:
            yield Issue(
                "fault", f"part {part} has {found} images, {found - official} more than the data set", folders,
                "remove what does not belong to the data set",
            )  # fmt: skip
        elif not found and scan.samples:
            root = (str(scan.tree.root),)
            yield Issue("note", f"part {part} is not there ({official} images)", root, again)


def _folders(samples: Sequence[FilePair]) -> tuple[str, ...]:
    """Where the images lie: the first few folders or archives."""
    return tuple(sorted({str(sample.image).rpartition("/")[0] for sample in samples})[:SHOWN])


def _nearly(name: str, scan: Scan) -> bool:
    """Whether only the case of letters, or of the ending, keeps a file from being read."""
    patterns = [pattern for pattern in (scan.layout.image, scan.layout.label) if pattern]
    if any(whole_path(pattern).fullmatch(name) for pattern in patterns):
        return False
    loosely = name.replace(".jpeg", ".jpg").replace(".JPEG", ".jpg")
    return any(whole_path(pattern, re.IGNORECASE).fullmatch(loosely) for pattern in patterns)


def _chosen(scan: Scan, most: int | None) -> list[FilePair]:
    chosen = []
    for part in sorted({sample.part for sample in scan.samples}):
        samples = [sample for sample in scan.samples if sample.part == part]
        count = len(samples) if most is None else min(most, len(samples))
        chosen += [samples[index * len(samples) // count] for index in range(count)]
    return chosen


REPAIRS: dict[str, tuple[Level, str]] = {
    "images that cannot be read": ("fault", "restore them from the archive; `unzip -t` tells whether it is whole"),
    "labels that cannot be read": ("fault", "restore them from the archive"),
    "blank images": ("fault", "restore them from the archive"),
    "blank images of the release": ("note", "known; they are trained on as they are, as the literature does"),
    "images of another size": ("fault", "restore the originals: resized copies change the benchmark"),
    "labels of another size than their image": ("fault", "restore both from the archives"),
    "labels with unknown values": ("fault", "restore the labels as released, or see which conversion wrote them"),
    "labels with another palette": (
        "fault",
        "restore them from the archive: classes are read by index, and a program that saves with a palette of its own "
        "renumbers them",
    ),
    "labels in which everything is ignored": ("fault", "restore them: a whole image without a class trains nothing"),
    "labels of one class alone": ("note", "look at them with `kdbench data preview`"),
}


def _of_pixels(scan: Scan, seen: PixelSummary) -> Iterator[Issue]:
    for kind, files in seen.files.items():
        level, repair = REPAIRS[kind]
        if kind == "labels of another size than their image" and scan.adapter.mismatch == "resize":
            level, repair = "note", "known in this data set: each is resized to its image, nearest, while it is read"
        if kind == "labels of one class alone" and 2 * len(files) > seen.labels:
            level, repair = "fault", "most are: restore them, something else lies in their place"
        yield issue(level, kind, files, repair)
    folders = _folders(scan.samples)
    absent = [str(value) for value in scan.layout.usual if seen.labels >= ENOUGH and not seen.stored[value]]
    if absent:
        what = f"stored values that every part of the data set has are in no label: {', '.join(absent)}"
        yield Issue("fault", what, folders, "restore the labels as released: these were converted or shifted")
    yield from _twins(seen)


def _of_archives(scan: Scan) -> Iterator[Issue]:
    wrong = []
    for name, official in scan.adapter.md5.items():
        for path in scan.tree.root.rglob(name):
            with path.open("rb") as archive:
                found = hashlib.file_digest(archive, "md5").hexdigest()
            if found != official:
                wrong.append(f"{path} (md5 {found}, published {official})")
    if wrong:
        yield issue("fault", "archives that are not the published ones", wrong, "download them again")


def _twins(seen: PixelSummary) -> Iterator[Issue]:
    across = [
        f"{samples[0].image} = {samples[1].image}"
        for samples in seen.digests.values()
        if len({sample.part for sample in samples}) > 1
    ]
    if across:
        yield issue("fault", "the same picture in two parts", across, "restore the part that was overwritten")


def lines(report: Report) -> Iterator[str]:
    """The report as text: what is there, the classes' shares, and a table of what is wrong."""
    parts = ", ".join(f"{part} {count}" for part, count in report.parts.items()) or "nothing"
    yield f"{report.title} in {report.root or '?'}: {parts}"
    if report.looked_at:
        yield f"  looked at the pixels of {report.looked_at} images, checksum {report.checksum}"
    if report.histogram:
        shares = sorted(report.histogram.items(), key=lambda item: -item[1])
        yield "  pixels in percent: " + ", ".join(f"{name} {share:g}" for name, share in shares)
    if report.issues:
        rows = [(f.level.upper(), f.what, "\n".join(f.files), f.repair) for f in report.issues]
        yield tabulate(rows, ("", "what", "files", "repair"), maxcolwidths=[None, 36, None, 44])
    yield f"  {'healthy' if report.healthy else 'NOT healthy: mend the faults above'}"
