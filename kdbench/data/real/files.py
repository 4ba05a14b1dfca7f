"""The files below a data set's folder: as unpacked, or inside the zip archives that lie there, read in place."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from kdbench.errors import KdbenchError

MOST_BYTES = 512 * 2**20
"""The largest file that is read from an archive: far above any data set's, far below what fills a memory."""
MOST_PIXELS = 120_000_000
"""The largest picture that is decoded; the largest of the data sets, a tile of Potsdam, has 36 million."""


@dataclass(frozen=True)
class Entry:
    """One file. name: its path below the data set's folder, or inside the archive at path."""

    name: str
    path: Path
    archived: bool = False

    def __str__(self) -> str:
        return f"{self.path}!{self.name}" if self.archived else str(self.path)

    @property
    def size(self) -> int:
        """Bytes, unpacked."""
        return (
            _opened(self.path, os.getpid()).getinfo(self.name).file_size if self.archived else self.path.stat().st_size
        )

    def read(self) -> bytes:
        """The content; an unreadable file is an error that names it."""
        try:
            if not self.archived:
                return self.path.read_bytes()
            # A handle a process: workers must not share a file position.
            return _opened(self.path, os.getpid()).read(self.name)
        except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise unreadable(self, str(error)) from error


def unreadable(entry: Entry, reason: str) -> KdbenchError:
    """The error for a file that cannot be used."""
    return KdbenchError(f"{entry} cannot be read ({reason}). Restore it from the data set's archive.")


def open_image(entry: Entry, stored: str = "") -> Image.Image:
    """The picture, decoded; one of too many pixels is refused before it is.

    stored: the layout that its pixels must be stored in, as Pillow names it, where that is not left to Pillow.
    """
    try:
        picture = Image.open(io.BytesIO(entry.read()))
        if picture.width * picture.height > MOST_PIXELS:
            raise unreadable(entry, f"{picture.width} x {picture.height} pixels, more than {MOST_PIXELS}")
        if stored:
            _reinterpret(picture, stored)
        picture.load()
        return picture
    except UnidentifiedImageError as error:
        raise unreadable(entry, "it is no picture") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise unreadable(entry, str(error)) from error


def _reinterpret(picture: Image.Image, stored: str) -> None:
    if not isinstance(picture, ImageFile.ImageFile) or picture.tile[0].args != "RGB;16B":
        raise ValueError("a PNG of three channels of 16 bits was expected")
    picture.tile = [picture.tile[0]._replace(args=stored)]


def read_rgb(entry: Entry) -> np.ndarray:
    """(H, W, 3) uint8, whatever the file's mode."""
    return np.asarray(open_image(entry).convert("RGB"))


@dataclass(frozen=True)
class FileTree:
    """Every file of a data set. archives: patterns of the names of zip files that belong to it."""

    root: Path
    archives: tuple[str, ...] = ()

    @cached_property
    def entries(self) -> Mapping[str, Entry]:
        """By name, in a fixed order; what is unpacked comes before the same name in an archive."""
        found: dict[str, Entry] = {}
        for path in sorted(_walk(self.root)):
            name = path.relative_to(self.root).as_posix()
            found[name] = Entry(name, path)
        for path in [entry.path for entry in found.values() if self._belongs(entry.path.name)]:
            for entry in _members(path):
                found.setdefault(entry.name, entry)
        return found

    def _belongs(self, name: str) -> bool:
        return any(fnmatch(name.lower(), pattern.lower()) for pattern in self.archives)

    def __getitem__(self, name: str) -> Entry:
        return self.entries[name]


def _walk(root: Path) -> Iterator[Path]:
    """Files below a folder; a link that leads out of it is an error, hidden files and folders are passed over."""
    inside = root.resolve()
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        for name in [*folders, *files]:
            path = Path(folder, name)
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise KdbenchError(
                    f"{path} is a link to {path.resolve()}, outside the data set's folder {root}. Only the data set's "
                    "folder itself may be a link: move the files there, or let the folder be a link to where all lie."
                )
            if path.is_symlink() and path.is_dir() and path.resolve() in (Path(folder).resolve(), *path.parents):
                raise KdbenchError(f"{path} is a link to a folder that contains it. Remove it.")
        yield from (Path(folder, name) for name in files if not name.startswith("."))


def _members(archive: Path) -> Iterator[Entry]:
    try:
        infos = _opened(archive, os.getpid()).infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise KdbenchError(f"{archive} cannot be read as a zip archive ({error}). Download it again.") from error
    for info in sorted(infos, key=lambda info: info.filename):
        parts = info.filename.split("/")
        if info.is_dir() or any(part.startswith((".", "__MACOSX")) and part != ".." for part in parts):
            continue
        if info.filename.startswith("/") or ".." in parts or "\\" in info.filename:
            raise KdbenchError(f"{archive} holds a file named '{info.filename}', outside of it. It is not read.")
        if info.file_size > MOST_BYTES:
            raise KdbenchError(
                f"{archive} holds '{info.filename}' of {info.file_size} bytes unpacked; more than {MOST_BYTES} bytes "
                "are not read from an archive."
            )
        yield Entry(info.filename, archive, archived=True)


@lru_cache(maxsize=64)
def _opened(archive: Path, process: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(archive)
