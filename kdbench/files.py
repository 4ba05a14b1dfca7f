"""Writes files whole or not at all, reads those that come with kdbench, and knows the default folders."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from pydantic import BaseModel, ValidationError

from kdbench.errors import KdbenchError, allowed

Read = TypeVar("Read", bound=BaseModel)


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


def read_card(path: Path, model: type[Read], repair: str) -> Read:
    """Read a card; a missing or damaged one is an error that ends in the repair."""
    try:
        return model.model_validate_json(_content(path, repair))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise KdbenchError(f"{path} is damaged: {where}: {allowed(first)}. {repair}") from None


def read_hashed(path: Path, sha256: str | None, repair: str) -> bytes:
    """Read a file that has to have this hash; a missing or damaged one is an error that ends in the repair."""
    content = _content(path, repair)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise KdbenchError(f"{path} is damaged: sha256 {found}, expected {sha256}. {repair}")
    return content


def _content(path: Path, repair: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise KdbenchError(f"{path} is missing. {repair}") from None


def checkout() -> Path | None:
    """Return the root of the checkout that this package runs from, if it runs from one."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "setup.cfg").is_file() and (root / "methods").is_dir() else None


def default_results() -> Path:
    """Return the folder that runs write: results/runs in a checkout, ./kdbench-results outside of one."""
    root = checkout()
    return root / "results" / "runs" if root else Path("kdbench-results")


def default_reference() -> Path | None:
    """Return the folder of the committed records, in a checkout."""
    root = checkout()
    return root / "results" / "reference" if root else None


def default_store() -> Path:
    """Return where finished stages are kept: $KDBENCH_STORE, else the user's cache folder."""
    return Path(os.environ.get("KDBENCH_STORE") or Path.home() / ".cache" / "kdbench")
