"""What every real data set shares: issue its folder, pairing images with labels, decoding both."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from kdbench.benchmark import Colour, LabelSpace
from kdbench.data.datasets.files import DataFile, FileTree
from kdbench.data.datasets.issues import Issue
from kdbench.data.datasets.labels import Table, indices
from kdbench.errors import KdbenchError, unknown

Groups = Mapping[str, str]
PACKED = r"\.(tar|tar\.gz|tgz|rar|7z)$"


@dataclass(frozen=True)
class FileLayout:
    """One form in which a data set lies on disks.

    image, label: regular expressions for the whole path of a file below the data set's folder (what comes before is
    ignored); an image and a label whose groups are equal are a pair. label None: images only. decode: a label's stored
    values. values: those that it may hold. usual: some that are in nearly every label. tables: stored value -> class,
    by name, the default first. colours: stored values' colours in a label's palette, where it has one. part: which
    part of the data set a pair is in, by its groups: a format, or what makes a function of the groups for a tree.
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
        """256 truth values: which stored values are labels of the data set."""
        return np.isin(np.arange(256), list(self.values))


@dataclass(frozen=True)
class Adapter:
    """One data set as its authors ship it.

    folders: the names that its root usually has. archives: patterns of the zip files that are read in place. unpack:
    pattern of another archive -> the command that unpacks it. counts: pairs that the official parts have. size of every
    image (height, width), where they share one. mismatch: what is done where a label has another size than its image.
    incomplete: what it is if images are missing. blank: keys of images that are blank in the release itself.
    restore: how missing files are made, where they are not from an archive. md5: of archives, as published.
    check: what else the doctor can tell from the files.
    home, licence: where it comes from and on what terms. classes: what its tables map to.
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
    archives: tuple[str, ...] = ()
    unpack: Mapping[str, str] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    mismatch: Literal["refuse", "resize"] = "refuse"
    incomplete: Literal["fault", "note"] = "fault"
    blank: tuple[str, ...] = ()
    restore: str = ""
    md5: Mapping[str, str] = field(default_factory=dict)
    check: Callable[[FileTree], Iterable[Issue]] = lambda tree: ()
    hints: Mapping[str, str] = field(default_factory=dict)
    """Pattern of a path that is often there in place of what is needed -> what to do."""

    def root(self, data_root: Path) -> Path:
        """The data set's folder under --data-root; the root itself may be that folder."""
        if not data_root.is_dir():
            raise KdbenchError(f"--data-root {data_root} is not a folder.")
        for name in self.folders:
            if (data_root / name).is_dir():
                return data_root / name
        if data_root.resolve().name in self.folders:
            return data_root
        looked = ", ".join(str(data_root / name) for name in self.folders)
        raise KdbenchError(
            f"data set '{self.name}' is not under {data_root}. Looked for: {looked}. It comes from {self.home}."
        )

    def is_under(self, data_root: Path) -> bool:
        """Whether its folder is there."""
        return data_root.resolve().name in self.folders or any((data_root / name).is_dir() for name in self.folders)

    def scan(self, data_root: Path) -> Scan:
        """Everything that is found of it under --data-root."""
        return Scan(self, FileTree(self.root(data_root), self.archives))


@dataclass(frozen=True, slots=True)
class FilePair:
    """An image with its label. key: what the two paths share, by name, e.g. `aachen/train/aachen_000000_000019`."""

    key: str
    part: str
    image: DataFile
    label: DataFile | None


class Matches(NamedTuple):
    """Files by what their paths share (FilePair.key), with their part, and files whose place was taken."""

    files: dict[str, tuple[DataFile, str]]
    doubles: list[DataFile]


@dataclass(frozen=True)
class Scan:
    """A data set's files, sorted into pairs and what is left over."""

    adapter: Adapter
    tree: FileTree

    @cached_property
    def layout(self) -> FileLayout:
        """The first of the set's layouts of which there is an image."""
        for layout in self.adapter.layouts:
            expression = whole_path(layout.image)
            if any(expression.fullmatch(name) for name in self.tree.entries):
                return layout
        return self.adapter.layouts[0]

    @cached_property
    def images(self) -> Matches:
        """Every image."""
        return self._match(self.layout.image)

    @cached_property
    def labels(self) -> Matches:
        """Every label."""
        return self._match(self.layout.label) if self.layout.label else Matches({}, [])

    @cached_property
    def samples(self) -> list[FilePair]:
        """Every image with its label, in the order of their keys; label None where it is missing."""
        return [
            FilePair(key, part, entry, self.labels.files.get(key, (None,))[0])
            for key, (entry, part) in sorted(self.images.files.items())
        ]

    def parts(self, names: Sequence[str]) -> list[FilePair]:
        """The samples of some parts; `night` stands for `night/train`, `night/val` and what else there is."""
        wanted = [s for name in names for s in self.samples if s.part == name or s.part.startswith(f"{name}/")]
        what = f"data set '{self.adapter.name}'"
        if not wanted:
            raise KdbenchError(f"{what}: no images of {', '.join(names)} under {self.tree.root}. {self.advice()}")
        missing = [sample for sample in wanted if sample.label is None] if self.layout.label else []
        if missing:
            raise KdbenchError(
                f"{what}: {len(missing)} of {len(wanted)} images of {', '.join(names)} have no label file, the first "
                f"is {missing[0].image}. {self.hint()}`kdbench data verify {self.adapter.name} --data-root DIR` lists "
                "them."
            )
        return wanted

    @cached_property
    def reading(self) -> str:
        """Which version of the adapter reads which layout of the files."""
        return f"v{self.adapter.version} layout {self.adapter.layouts.index(self.layout)}"

    def table(self, name: str = "") -> Table:
        """Stored value -> class: the named table, or the default."""
        tables = self.layout.tables
        if name and name not in tables:
            raise unknown(f"label map of data set '{self.adapter.name}'", name, tables)
        return tables[name or next(iter(tables))]

    def advice(self) -> str:
        """What to do where a part is not there."""
        if self.samples:
            return f"There are: {', '.join(sorted({sample.part for sample in self.samples}))}."
        return self.hint() or f"No file there has a name of this data set. It comes from {self.adapter.home}."

    def hint(self) -> str:
        """What to do about something that is there in place of what is needed, or nothing.

        A set that has images and labels lacks single files alone: what else lies there is not the cause.
        """
        if self.images.files and (self.labels.files or not self.layout.label):
            return ""
        for pattern, repair in {**self.adapter.hints, **self.adapter.unpack}.items():
            for name, entry in self.tree.entries.items():
                if re.search(pattern, name):
                    return f"{entry} is there: {repair} "
        for name, entry in self.tree.entries.items():
            if re.search(PACKED, name):
                return f"{entry} is there: zip archives alone are read in place; unpack it (`tar -xf`, `unrar x`). "
        return ""

    def _match(self, pattern: str) -> Matches:
        found, expression, part_of = Matches({}, []), whole_path(pattern), self._part_of()
        for name, entry in self.tree.entries.items():
            match = expression.fullmatch(name)
            if match is None:
                continue
            groups = match.groupdict()
            # In the order of the groups' names, which two paths share, whatever their order in each.
            key = "/".join(groups[group] for group in sorted(groups)) if self.layout.label else name
            if key not in found.files:
                found.files[key] = entry, part_of(groups)
            elif not entry.archived:
                found.doubles.append(entry)
        return found

    def _part_of(self) -> Callable[[Groups], str]:
        part = self.layout.part
        return part(self.tree) if callable(part) else lambda groups: part.format(**groups)


def whole_path(pattern: str, flags: re.RegexFlag = re.NOFLAG) -> re.Pattern[str]:
    """A layout's pattern as an expression for a file's whole path: what comes before it does not matter."""
    return re.compile(rf"(?:.*/)?{pattern}", flags)
