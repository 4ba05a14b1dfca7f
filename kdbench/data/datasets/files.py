"""The files below a data set's folder: as unpacked, or inside the zip archives that lie there, read in place."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
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


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file. name: its path below place, which is the data set's folder or an archive."""

    name: str
    place: Path
    archived: bool = False

    def __str__(self) -> str:
        return f"{self.place}!{self.name}" if self.archived else str(self.path)

    @property
    def path(self) -> Path:
        """Where it lies, if it is no archive's."""
        return self.place / self.name

    @property
    def size(self) -> int:
        """Bytes, unpacked."""
        return self.state[0]

    @property
    def state(self) -> tuple[int, int]:
        """Bytes, unpacked, and when it, or its archive, was last changed (nanoseconds)."""
        try:
            found = (self.place if self.archived else self.path).stat()
        except OSError as error:
            raise unreadable(self, str(error)) from error
        size = _opened(self.place, os.getpid()).getinfo(self.name).file_size if self.archived else found.st_size
        return size, found.st_mtime_ns

    def read(self) -> bytes:
        """The content; an unreadable file is an error that names it."""
        try:
            if not self.archived:
                return self.path.read_bytes()
            # A handle a process: workers must not share a file position.
            archive = _opened(self.place, os.getpid())
            if archive.getinfo(self.name).file_size > MOST_BYTES:
                raise unreadable(self, f"more than {MOST_BYTES} bytes unpacked")
            return archive.read(self.name)
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise unreadable(self, str(error)) from error


def unreadable(entry: DataFile, reason: str) -> KdbenchError:
    """The error for a file that cannot be used."""
    return KdbenchError(f"{entry} cannot be read ({reason}). Restore it from the data set's archive.")


def open_image(entry: DataFile, stored: str = "") -> Image.Image:
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


def read_rgb(entry: DataFile) -> np.ndarray:
    """(H, W, 3) uint8, from any mode of 8 bits."""
    picture = open_image(entry)
    if picture.mode.startswith(("I", "F")):
        raise unreadable(entry, f"pictures of 8 bits are read, this one is in mode {picture.mode}")
    return np.asarray(picture.convert("RGB"))


@dataclass(frozen=True)
class FileTree:
    """Every file of a data set. archives: patterns of the names of zip files that belong to it."""

    root: Path
    archives: tuple[str, ...] = ()

    @cached_property
    def entries(self) -> Mapping[str, DataFile]:
        """By name, in a fixed order; what is unpacked comes before the same name in an archive."""
        found = {name: DataFile(name, self.root) for name in sorted(_walk(self.root, self.root.resolve(), ""))}
        for name in [name for name in found if self._belongs(name)]:
            for entry in _members(self.root / name):
                found.setdefault(entry.name, entry)
        return found

    def _belongs(self, name: str) -> bool:
        base = name.rpartition("/")[2].lower()
        return base.endswith(".zip") and any(fnmatch(base, pattern.lower()) for pattern in self.archives)


def _walk(folder: Path, inside: Path, above: str) -> Iterator[str]:
    """Names of the files below a folder, hidden ones passed over; a link that leads out of `inside` is an error."""
    # What a scan of a folder tells of its entries costs nothing; asking for each costs minutes on a million files.
    with os.scandir(folder) as listed:
        for entry in listed:
            if entry.name.startswith((".", "__MACOSX")):
                continue
            if entry.is_symlink():
                _check_link(Path(entry.path), inside)
            if entry.is_dir():
                yield from _walk(Path(entry.path), inside, f"{above}{entry.name}/")
            else:
                yield above + entry.name


def _check_link(link: Path, inside: Path) -> None:
    target = link.resolve()
    if not target.is_relative_to(inside):
        raise KdbenchError(
            f"{link} is a link to {target}, outside the data set's folder {inside}. Only the data set's folder itself "
            "may be a link: move the files there, or let the folder be a link to where all lie."
        )
    if link.parent.resolve().is_relative_to(target):
        raise KdbenchError(f"{link} is a link to a folder that contains it. Remove it.")


def _members(archive: Path) -> Iterator[DataFile]:
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
        yield DataFile(info.filename, archive, archived=True)


@lru_cache(maxsize=64)
def _opened(archive: Path, process: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(archive)
