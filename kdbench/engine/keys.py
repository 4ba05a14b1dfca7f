"""What a stage's result depends on, as digests: code, environment and everything that it reads."""

from __future__ import annotations

import ast
import importlib
import inspect
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import PIL
import timm
import torch
from torch import nn

from kdbench.identity import digest
from kdbench.method import Stage

NETWORKS = ("kdbench.models.backbones", "kdbench.models.decoders", "kdbench.models.segmentor", "kdbench.types")
LOOP = (*NETWORKS, "kdbench.data", "kdbench.identity", "kdbench.engine.trainer")
TRAINING = (*LOOP, "kdbench.losses", "kdbench.engine.parts")
PRETRAINING = (*LOOP, "kdbench.engine.pretrain")
TESTING = (*NETWORKS, "kdbench.data", "kdbench.engine.evaluator")
"""The harness modules whose code decides the numbers of a stage, of a stand-in's pretraining, and of a test."""


def code_digest(path: Path) -> str:
    """A Python file without comments, layout and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:]
    return digest(ast.dump(tree))


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


def _code_of(thing: Any) -> str:
    module = inspect.getmodule(thing)
    if module is None or not module.__file__:
        return digest(repr(thing))
    return _module_code(module.__name__, module.__file__)


def loss_code(stage: Stage) -> list[str]:
    """The code of the module that defines the stage's loss and, for a bound loss, of the method's own classes."""
    owner = getattr(stage.loss, "__self__", None)
    classes = (
        [] if owner is None else [c for c in type(owner).__mro__ if not c.__module__.startswith(("torch", "builtins"))]
    )
    return [_code_of(thing) for thing in (stage.loss, *classes)]


def weights_digest(module: nn.Module) -> str:
    """The content of a module's parameters and buffers."""
    state = module.state_dict()
    return digest([(name, str(t.dtype), list(t.shape), _bytes_digest(t)) for name, t in sorted(state.items())])


def _bytes_digest(tensor: torch.Tensor) -> str:
    return digest(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes().hex())


def environment(device: torch.device, precision: str) -> dict[str, Any]:
    """The libraries and settings that decide the last bit."""
    return {
        "torch": torch.__version__,
        "timm": timm.__version__,
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        "device": device.type,
        "precision": precision,
        "threads": torch.get_num_threads(),
    }
