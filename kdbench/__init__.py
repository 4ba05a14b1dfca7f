"""kdbench: knowledge distillation for domain-generalised semantic segmentation, under one protocol."""

import os
import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_results", "load_student", "register_model", "run"]

if TYPE_CHECKING:
    from kdbench.api import run
    from kdbench.models.registry import register_model
    from kdbench.report.frame import load_results
    from kdbench.student import load_student


def _wait_passively() -> None:
    """Set OMP_WAIT_POLICY=PASSIVE for this process and those that it starts, unless the user has set it.

    Waiting threads spin by default, which costs other programs on the machine their time, and training even more where
    these take a core. OpenMP reads the setting when torch is loaded: where that is done already, a warning says so.
    """
    if "OMP_WAIT_POLICY" in os.environ:
        return
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    if "torch" in sys.modules:
        warnings.warn(
            "torch was imported before kdbench, so its threads spin while they wait, which is slow beside other "
            "programs. To let them sleep, import kdbench first, or set OMP_WAIT_POLICY=PASSIVE before torch is "
            "imported (in a notebook: restart, then `%env OMP_WAIT_POLICY=PASSIVE` in the first cell).",
            stacklevel=3,
        )


_wait_passively()
_HOMES = {
    "load_results": "kdbench.report.frame",
    "load_student": "kdbench.student",
    "register_model": "kdbench.models.registry",
    "run": "kdbench.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import kdbench` itself is quick and loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'kdbench' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
