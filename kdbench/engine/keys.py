"""What a stage's result depends on, as digests: code, environment and everything that it reads."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Iterable
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

NETWORKS = (
    "kdbench.models.backbones", "kdbench.models.geometry", "kdbench.models.decoders", "kdbench.models.segmentor",
    "kdbench.types",
)  # fmt: skip
LOADING = ("kdbench.data.loading", "kdbench.data.transforms", "kdbench.identity")
LOOP = (*NETWORKS, *LOADING, "kdbench.engine.trainer", "kdbench.engine.memory")
TRAINING = (*LOOP, "kdbench.losses", "kdbench.engine.parts")
TESTING = (*NETWORKS, "kdbench.engine.sliding_window", "kdbench.engine.evaluation")
"""The harness modules whose code decides the numbers of a stage and of a test. What draws
or reads images stands in the identity of the data instead: a new data set changes no other's key."""


@cache
def harness_code(modules: tuple[str, ...]) -> str:
    """The code of harness modules; a package stands for all that is in it."""
    files: list[Path] = []
    for name in modules:
        module = importlib.import_module(name)
        folders = getattr(module, "__path__", None)
        files += sorted(Path(next(iter(folders))).rglob("*.py")) if folders else [Path(str(module.__file__))]
    return digest([code_digest(path) for path in files])


@cache
def _module_code(module_name: str, path: str) -> str:
    return code_digest(Path(path))


def code_of(thing: Any) -> str:
    """The code of the module that defines a function or a class."""
    module = inspect.getmodule(thing)
    if module is None or not module.__file__:
        return digest(repr(thing))
    return _module_code(module.__name__, module.__file__)


def method_code(method: Method) -> list[str]:
    """The code of a method's class, its bases and its sub-modules' classes, and the version of what it is built on."""
    classes = {base for module in method.modules() for base in type(module).__mro__}
    own = [cls for cls in classes if cls.__module__.split(".")[0] not in ("torch", "builtins", "timm")]
    built_on = [f"{method.requires} {version(method.requires)}"] if method.requires else []
    return sorted({code_of(cls) for cls in own}) + built_on


def networks_code(modules: Iterable[nn.Module]) -> list[str]:
    """The code of the classes of encoders, decoders and adapters: some stand in files that no other key covers."""
    return sorted({code_of(type(module)) for module in modules})


def weights_digest(module: nn.Module) -> str:
    """The content of a module's parameters and buffers."""
    state = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def environment(device: torch.device, precision: str) -> dict[str, Any]:
    """The libraries and settings that decide the last bit."""
    return {
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
