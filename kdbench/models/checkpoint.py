"""Files of weights, read so that nothing in them is run, and taken out of what a training run puts around them."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from kdbench.errors import KdbenchError

State = dict[str, Tensor]
NESTS = ("model", "state_dict", "teacher", "module", "student")
"""Under which of its entries a checkpoint may keep the weights."""
PREFIXES = ("student.backbone.", "teacher.backbone.", "module.backbone.", "backbone.", "module.")
"""What stands before an encoder's names: GKD's first stage, segmentors of mmsegmentation, parallel training."""


class Unread:
    """In place of an object that is no tensor: nothing of it is built."""

    def __new__(cls, *args: Any) -> Unread:
        """Whatever it was made of."""
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        """As __new__."""

    def __setstate__(self, state: Any) -> None:
        """Whatever it held."""


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """A file's content; nothing in it is run. What training scripts keep beside the weights is passed over.

    That is their arguments in GKD's and DeiT's files; buffers of losses, with numpy's arrays, in mmengine's. What torch
    cannot pass over (kinds of dict and list) is an error.
    """
    try:
        if path.suffix == ".safetensors":
            tensors: State = load_file(path)
            return tensors
        with torch.serialization.safe_globals([(Unread, name) for name in _foreign(path)]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken, of another format, or of objects that are not tensors
        # torch's own words would advise to run what is in the file.
        beside = type(error).__name__ == "UnpicklingError" and zipfile.is_zipfile(path)
        reason = "beside tensors it holds objects that cannot be passed over" if beside else first_line(error)
        raise KdbenchError(
            f"{path} cannot be read as weights: {reason}. Download it again; if it holds other objects than tensors, "
            "save its state dict alone with safetensors."
        ) from error
    if not isinstance(found, Mapping):
        kind = "an object" if isinstance(found, Unread) else f"a {type(found).__name__}"
        raise KdbenchError(f"{path} holds {kind}, not a state dict. Save the model's state dict.")
    return found


def first_line(error: Exception) -> str:
    """What an error says, without what a library adds below."""
    return str(error).strip().partition("\n")[0]


def _foreign(path: Path) -> list[str]:
    """The classes and functions that a file names beside those of tensors."""
    if not zipfile.is_zipfile(path):
        # PyTorch's format before 1.6 cannot be asked.
        return ["argparse.Namespace"]
    return torch.serialization.get_unsafe_globals_in_checkpoint(path)


def unwrap(checkpoint: Mapping[str, Any]) -> State:
    """The encoder's tensors, out of the nesting and from behind the prefixes of a training run."""
    for name in NESTS:
        if isinstance(checkpoint.get(name), Mapping):
            return unwrap(checkpoint[name])
    state = {name: tensor for name, tensor in checkpoint.items() if isinstance(tensor, Tensor)}
    for prefix in PREFIXES:
        inside = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
        if inside:
            return unwrap(inside)
    return state


def checksum(path: Path) -> str:
    """A file's or a folder's content, in 16 digits."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return _digest(tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()))


@lru_cache(maxsize=64)
def _digest(files: tuple[tuple[str, int, int], ...]) -> str:
    """Of the content; sizes and times are there so that a changed file is read again."""
    whole = hashlib.sha256()
    for name, _, _ in files:
        with Path(name).open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:16]
