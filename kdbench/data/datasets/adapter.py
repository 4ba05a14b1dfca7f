"""What every real data set shares: its folder, the layouts of its files, the pairs of images and labels in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from kdbench.benchmark import Colour, LabelSpace
from kdbench.data.datasets.files import DataFile, FileTree
from kdbench.data.datasets.labels import Table, indices
from kdbench.errors import KdbenchError, unknown

Groups = Mapping[str, str]
PACKED_FILE = r"\.(tar|tar\.gz|tgz|rar|7z)$"
SHOWN = 3
"""Files that an issue names; it counts the others."""
Level = Literal["fault", "note"]


@dataclass(frozen=True)
class Issue:
    """Something about a data set on this disk that is wrong (fault), or that one should know (note)."""

    level: Level
    what: str
    files: tuple[str, ...]
    repair: str


def issue(level: Level, what: str, files: Iterable[DataFile | str], repair: str) -> Issue:
    """Return the issue that some files have: it begins with their number and names the first of them."""
    named = tuple(map(str, files))
    return Issue(level, f"{len(named)} {what}", named[:SHOWN], repair)


@dataclass(frozen=True)
class FileLayout:
    """One form in which a data set lies on disks.

    image, label: regular expressions for the path of a file below the data set's folder (folders before it do not
        matter); an image and a label whose groups are equal are a pair. label None: the data set is images alone.
    decode: reads a label's stored values (H, W) uint8.
    values: all stored values that a label may hold. usual: some that are in nearly every label.
    tables: stored value -> class, by the table's name, the default first.
    colours: the colours of stored values in a label's palette, where it has one.
    part: the part that a pair is in: a format of its groups, or what makes a function of them for a tree.
    """

    image: str
    label: str | None = None
    decode: Callable[[DataFile], np.ndarray] = indices
    values: Collection[int] = ()
    usual: Collection[int] = ()
    tables: Mapping[str, Table] = field(default_factory=dict)
    colours: Mapping[int, Colour] = field(default_factory=dict)
    part: str | Callable[[FileTree], Callable[[Groups], str]] = "{split}"

    @cached_property
    def known(self) -> np.ndarray:
        """Return 256 truth values: which stored values are labels of the data set."""
        return np.isin(np.arange(256), list(self.values))


def no_issues(tree: FileTree) -> Iterable[Issue]:
    """Find nothing else. A function by name: workers get their data set pickled."""
    return ()


@dataclass(frozen=True)
class Adapter:
    """One data set as its authors ship it.

    folders: the names that its root usually has. home, licence: where it comes from and on what terms.
    classes: what its tables map to; None where it has no labels.
    counts: pairs that the official parts have. size: (height, width) of every image, where they share one.
    archives: patterns of the zip files that are read in place.
    hints: pattern of a path that is often there in place of what is needed -> what to do about it.
    mismatch: what is done where a label has another size than its image.
    incomplete: what missing images are. blank: keys of images that are blank in the release itself.
    restore: how missing files are made, where they are not from an archive.
    check: finds what else `kdbench data verify` can tell from the files.
    """

    name: str
    title: str
    folders: tuple[str, ...]
    layouts: tuple[FileLayout, ...]
    home: str
    licence: str
    classes: LabelSpace | None = None
    version: int = 1
    """Part of the data's identity: raise it when the same files give other images, labels or pairs than before."""
    counts: Mapping[str, int] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    archives: tuple[str, ...] = ()
    hints: Mapping[str, str] = field(default_factory=dict)
    mismatch: Literal["refuse", "resize"] = "refuse"
    incomplete: Level = "fault"
    blank: tuple[str, ...] = ()
    restore: str = ""
    check: Callable[[FileTree], Iterable[Issue]] = no_issues

    def folder(self, data_root: Path) -> Path | None:
        """Return the data set's folder under --data-root, or the root if it is that folder; None if it is not there."""
        named = (data_root / name for name in self.folders)
        found = next((folder for folder in named if folder.is_dir()), None)
        return found or (data_root if data_root.resolve().name in self.folders else None)

    def scan(self, data_root: Path) -> Scan:
        """List the data set's files under --data-root."""
        if not data_root.is_dir():
            raise KdbenchError(f"--data-root {data_root} is not a folder.")
        folder = self.folder(data_root)
        if folder is None:
            looked = ", ".join(str(data_root / name) for name in self.folders)
            raise KdbenchError(
                f"data set '{self.name}' is not under {data_root}. Looked for: {looked}. It comes from {self.home}."
            )
        return Scan(self, FileTree(folder, self.archives))


@dataclass(frozen=True, slots=True)
class FilePair:
    """An image with its label. key: what the two paths share, by name, e.g. `aachen/train/aachen_000000_000019`."""

    key: str
    part: str
    image: DataFile
    label: DataFile | None


@dataclass(frozen=True)
class MatchedFiles:
    """The files that fit a layout's pattern by their pairs' key, each with its part. copies: later files of a key."""

    by_key: Mapping[str, tuple[DataFile, str]]
    copies: Sequence[DataFile] = ()


@dataclass(frozen=True)
class Scan:
    """A data set's files on this disk, sorted into pairs."""

    adapter: Adapter
    tree: FileTree

    @cached_property
    def layout(self) -> FileLayout:
        """Return the first layout of which there is an image, or the first one."""
        for layout in self.adapter.layouts:
            expression = whole_path(layout.image)
            if any(expression.fullmatch(name) for name in self.tree.files):
                return layout
        return self.adapter.layouts[0]

    @cached_property
    def images(self) -> MatchedFiles:
        """Return every image."""
        return self._match(self.layout.image)

    @cached_property
    def labels(self) -> MatchedFiles:
        """Return every label."""
        return self._match(self.layout.label) if self.layout.label else MatchedFiles({})

    @cached_property
    def pairs(self) -> list[FilePair]:
        """Return every image with its label, in the order of their keys; label None where it is missing."""
        labels = {key: label for key, (label, _) in self.labels.by_key.items()}
        found = sorted(self.images.by_key.items())
        return [FilePair(key, part, image, labels.get(key)) for key, (image, part) in found]

    def pairs_in(self, part: str) -> list[FilePair]:
        """Return the pairs of a part; `night` stands for `night/train`, `night/val` and what else there is."""
        return [pair for pair in self.pairs if pair.part == part or pair.part.startswith(f"{part}/")]

    def complete_pairs(self, parts: Sequence[str]) -> list[FilePair]:
        """Return the pairs of some parts; no pair, or a missing label, is an error that says what to do."""
        wanted = [pair for part in parts for pair in self.pairs_in(part)]
        what = f"data set '{self.adapter.name}'"
        if not wanted:
            raise KdbenchError(f"{what}: no images of {', '.join(parts)} under {self.tree.root}. {self.advice()}")
        missing = [pair for pair in wanted if pair.label is None] if self.layout.label else []
        if missing:
            raise KdbenchError(
                f"{what}: {len(missing)} of {len(wanted)} images of {', '.join(parts)} have no label file, the first "
                f"is {missing[0].image}. {self.hint()}`kdbench data verify {self.adapter.name} --data-root DIR` lists "
                "them."
            )
        return wanted

    @cached_property
    def reading(self) -> str:
        """Return which version of the adapter reads which layout of the files."""
        return f"v{self.adapter.version} layout {self.adapter.layouts.index(self.layout)}"

    def table(self, name: str = "") -> Table:
        """Return the named table of stored value -> class, or the default."""
        tables = self.layout.tables
        if name and name not in tables:
            raise unknown("label map", name, tables, where=f"of data set '{self.adapter.name}'")
        return tables[name or next(iter(tables))]

    def advice(self) -> str:
        """Say what to do where a part is not there."""
        if self.pairs:
            return f"There are: {', '.join(sorted({pair.part for pair in self.pairs}))}."
        return self.hint() or f"No file there has a name of this data set. It comes from {self.adapter.home}."

    def hint(self) -> str:
        """Say what to do about a file that is there in place of what is needed, or nothing.

        A data set that has images and labels lacks single files: what else lies there is not the cause.
        """
        if self.images.by_key and (self.labels.by_key or not self.layout.label):
            return ""
        packed = {PACKED_FILE: "zip archives alone are read in place; unpack it (`tar -xf`, `unrar x`)."}
        for pattern, repair in {**self.adapter.hints, **packed}.items():
            for name, file in self.tree.files.items():
                if re.search(pattern, name):
                    return f"{file} is there: {repair} "
        return ""

    def _match(self, pattern: str) -> MatchedFiles:
        found: dict[str, tuple[DataFile, str]] = {}
        copies, expression, part = [], whole_path(pattern), self.layout.part
        part_of = part.format_map if isinstance(part, str) else part(self.tree)
        for name, file in self.tree.files.items():
            match = expression.fullmatch(name)
            if match is None:
                continue
            groups = match.groupdict()
            # By the groups' names, which two paths share, whatever the order of the groups in each.
            key = "/".join(groups[group] for group in sorted(groups)) if self.layout.label else name
            if key not in found:
                found[key] = file, part_of(groups)
            elif not file.archived:
                copies.append(file)
        return MatchedFiles(found, copies)


def whole_path(pattern: str, flags: re.RegexFlag = re.NOFLAG) -> re.Pattern[str]:
    """Return a layout's pattern as an expression for a file's whole path: what comes before it does not matter."""
    return re.compile(rf"(?:.*/)?{pattern}", flags)
