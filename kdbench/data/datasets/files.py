"""The files below a data set's folder: unpacked, or inside the zip archives that lie there, which are read in place."""

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
from PIL import Image, UnidentifiedImageError

from kdbench.errors import KdbenchError

MOST_BYTES = 512 * 2**20
"""The largest archive member that is read: far above any data set's files, far below what fills a memory."""
MOST_PIXELS = 120_000_000
"""The largest picture that is decoded; the largest of the data sets, a tile of Potsdam, has 36 million pixels."""


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
        """Return the path of a file that is in no archive."""
        return self.place / self.name

    @property
    def size(self) -> int:
        """Return the number of unpacked bytes."""
        return self.state[0]

    @property
    def state(self) -> tuple[int, int]:
        """Return the unpacked bytes, and when the file, or its archive, was last changed (nanoseconds)."""
        try:
            found = (self.place if self.archived else self.path).stat()
        except OSError as error:
            raise unreadable(self, str(error)) from error
        size = _opened(self.place, os.getpid()).getinfo(self.name).file_size if self.archived else found.st_size
        return size, found.st_mtime_ns

    def read(self) -> bytes:
        """Return the content; an unreadable file is an error that names it."""
        try:
            if not self.archived:
                return self.path.read_bytes()
            # Each process has its own handle: workers must not share a file position.
            archive = _opened(self.place, os.getpid())
            if archive.getinfo(self.name).file_size > MOST_BYTES:
                raise unreadable(self, f"more than {MOST_BYTES} bytes unpacked")
            return archive.read(self.name)
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise unreadable(self, str(error)) from error


def unreadable(file: DataFile, reason: str) -> KdbenchError:
    """Return the error for a file that cannot be used."""
    return KdbenchError(f"{file} cannot be read ({reason}). Restore it from the data set's archive.")


def open_image(file: DataFile, rawmode: str = "") -> Image.Image:
    """Decode a picture; one of too many pixels is refused before it is decoded.

    rawmode: how Pillow shall read the pixels of a PNG of three 16-bit channels, where it shall not choose itself.
    """
    try:
        picture = Image.open(io.BytesIO(file.read()))
        if picture.width * picture.height > MOST_PIXELS:
            raise unreadable(file, f"{picture.width} x {picture.height} pixels, more than {MOST_PIXELS}")
        if rawmode:
            if picture.format != "PNG" or picture.tile[0].args != "RGB;16B":
                raise ValueError("a PNG of three channels of 16 bits was expected")
            picture.tile = [picture.tile[0]._replace(args=rawmode)]
        picture.load()
        return picture
    except UnidentifiedImageError as error:
        raise unreadable(file, "it is no picture") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise unreadable(file, str(error)) from error


def read_rgb(file: DataFile) -> np.ndarray:
    """Return (H, W, 3) uint8 of a picture in any mode of 8 bits."""
    picture = open_image(file)
    if picture.mode.startswith(("I", "F")):
        raise unreadable(file, f"pictures of 8 bits are read, this one is in mode {picture.mode}")
    return np.asarray(picture.convert("RGB"))


@dataclass(frozen=True)
class FileTree:
    """Every file of a data set. archives: patterns of the names of zip files that belong to it."""

    root: Path
    archives: tuple[str, ...] = ()

    @cached_property
    def files(self) -> Mapping[str, DataFile]:
        """Return the files by name, in a fixed order; an unpacked file comes before its namesake in an archive."""
        names = sorted(_walk(self.root, "", frozenset({self.root.resolve()})))
        found = {name: DataFile(name, self.root) for name in names}
        for name in [name for name in found if name.lower().endswith(".zip")]:
            if any(fnmatch(name.rpartition("/")[2].lower(), pattern.lower()) for pattern in self.archives):
                for file in _members(self.root / name):
                    found.setdefault(file.name, file)
        return found


def _walk(folder: Path, above: str, opened: frozenset[Path]) -> Iterator[str]:
    """Yield the names of files below a folder, not hidden ones; links are followed. opened: being listed."""
    # os.scandir tells kinds of entries for free; asking for each file costs minutes where there are a million.
    with os.scandir(folder) as listed:
        for entry in listed:
            if entry.name.startswith((".", "__MACOSX")):
                continue
            path = Path(entry.path)
            linked = {_target(path, opened)} if entry.is_symlink() else set()
            if entry.is_dir():
                yield from _walk(path, f"{above}{entry.name}/", opened | linked)
            else:
                yield above + entry.name


def _target(link: Path, opened: frozenset[Path]) -> Path:
    """Return where a link leads; to nothing, or around, is an error."""
    target = link.resolve()
    if not target.exists():
        raise KdbenchError(f"{link} is a link to {target}, which is not there. Mend the link, or remove it.")
    if target in opened or link.parent.resolve().is_relative_to(target):
        raise KdbenchError(f"{link} is a link to a folder that contains it. Remove it.")
    return target


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
