"""Hash what a stage's result depends on.

A key hashes what a stage reads, and ENGINE_VERSION for the harness that computes it. Neither the harness's source nor
the versions of libraries are in it, so that neither an edit nor an upgrade makes stored stages worthless; the record
states them instead.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdbench.identity import code_digest, digest
from kdbench.method import Method

ENGINE_VERSION = 2
"""Raise this by hand whenever the engine, the models or the data pipeline give other numbers for the same request.
`kdbench check --smoke` fails where that was forgotten."""

INSTALLED = {"site-packages", "dist-packages"}


def is_own_code(module: str, file: str) -> bool:
    """Whether a method's author wrote a module: not kdbench, the standard library or an installed package."""
    if module.split(".")[0] == "kdbench":
        return module.startswith("kdbench.methods.")
    return module.split(".")[0] not in sys.stdlib_module_names and INSTALLED.isdisjoint(Path(file).parts)


@cache
def _file_digest(module: str, file: str) -> str:
    return code_digest(Path(file))


def source_of(thing: Any) -> str:
    """Return the digest of the module that defines a function or class if a method's author wrote it, else its name."""
    module = inspect.getmodule(thing)
    name = f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', repr(thing))}"
    file = getattr(module, "__file__", None)
    if module is None or not file or not is_own_code(module.__name__, file):
        return name
    return _file_digest(module.__name__, file)


def method_source(method: Method[Any]) -> list[str]:
    """Return digests of a method's class, bases and sub-modules, and the version of the package it requires."""
    classes = {base for module in method.modules() for base in type(module).__mro__}
    required = [f"{method.requires} {version(method.requires)}"] if method.requires else []
    return sorted({source_of(cls) for cls in classes}) + required


def weights_digest(module: nn.Module) -> str:
    """Return a digest of a module's parameters and buffers."""
    state = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def key_parts(device: torch.device | None, precision: str, **reads: Any) -> dict[str, Any]:
    """Return what a key hashes: `reads`, a precision, this engine, and a kind of device unless that is None."""
    where = {} if device is None else {"device": device.type}
    return {"engine": ENGINE_VERSION, "precision": precision, **where, **reads}


def key_of(device: torch.device, precision: str, **reads: Any) -> str:
    """Return the key of a result that depends on `reads`, on a kind of device, in a precision, by this engine."""
    return digest(key_parts(device, precision, **reads))
