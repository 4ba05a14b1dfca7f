"""Writes files whole or not at all; a full disk is an error that says what to do."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from kdbench.errors import KdbenchError


class DiskFullError(KdbenchError):
    """No space is left. The request was right, so the status is that of a failed run."""

    status = 1


@contextlib.contextmanager
def naming_a_full_disk(path: Path) -> Iterator[None]:
    """Turn the system's error on a full disk into one that names the file and the repair."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            f"no space left to write {path}. Free some, or name another disk with --store or --results; the same "
            "command then continues where it stopped."
        ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file's whole content, or nothing: readers and other writers never see a part."""
    with naming_a_full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                file.write(content)
                file.flush()
                os.chmod(file.name, 0o644)
                os.replace(file.name, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(file.name)
                raise


def save_atomically(path: Path, save: Callable[[BinaryIO], object]) -> None:
    """Write atomically what `save` writes into an open binary file."""
    buffer = io.BytesIO()
    save(buffer)
    write_atomically(path, buffer.getvalue())
