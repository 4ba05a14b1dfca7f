"""Content keys: what a stage's result depends on, as a digest.

A key hashes what a stage reads, and ENGINE_VERSION for the harness that computes it. Neither the harness's source nor
the versions of libraries are in it, so that neither an edit nor an upgrade makes stored stages worthless; the record
states them instead.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import sysconfig
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import PIL
import timm
import torch
import torchvision
from torch import nn

from kdbench.identity import code_digest, digest
from kdbench.method import Method

ENGINE_VERSION = 1
"""Raise this by hand whenever the engine, the models or the data pipeline give other numbers for the same request.
`kdbench check --smoke` fails where that was forgotten."""

_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))


def is_own_code(module: str, file: str) -> bool:
    """Whether a module is a method author's, not kdbench's, the standard library's or an installed package's."""
    if module.split(".")[0] == "kdbench":
        return module.startswith("kdbench.methods.")
    return module.split(".")[0] not in sys.stdlib_module_names and not file.startswith(_LIBRARIES)


@cache
def _file_digest(module: str, file: str) -> str:
    return code_digest(Path(file))


def source_of(thing: Any) -> str:
    """Digest of the module that defines a function or class, if a method's author wrote it; else its name."""
    module = inspect.getmodule(thing)
    name = f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', repr(thing))}"
    file = getattr(module, "__file__", None)
    if module is None or not file or not is_own_code(module.__name__, file):
        return name
    return _file_digest(module.__name__, file)


def method_source(method: Method) -> list[str]:
    """Sources of a method's class, bases and sub-modules' classes, and the version of the package it requires."""
    classes = {base for module in method.modules() for base in type(module).__mro__}
    required = [f"{method.requires} {version(method.requires)}"] if method.requires else []
    return sorted({source_of(cls) for cls in classes}) + required


def weights_digest(module: nn.Module) -> str:
    """Digest of a module's parameters and buffers."""
    state = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def key_of(device: torch.device, precision: str, **reads: Any) -> str:
    """Key of a result that depends on `reads`, computed by this engine on a kind of device in a precision."""
    return digest({"engine": ENGINE_VERSION, "device": device.type, "precision": precision, **reads})


def environment(device: torch.device, precision: str) -> dict[str, Any]:
    """Versions of the engine and the libraries, and the settings that decide a result's last bit."""
    return {
        "engine": ENGINE_VERSION,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        "transformers": version("transformers"),
        "scipy": version("scipy"),
        "device": device.type,
        "precision": precision,
        "threads": torch.get_num_threads() if device.type == "cpu" else 0,
    }
