"""kdbench: knowledge distillation for domain-generalised semantic segmentation, under one protocol."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kdbench.threads import wait_passively

__version__ = "0.1.0"
__all__ = ["__version__", "load_results", "load_student", "register_model", "run"]

if TYPE_CHECKING:
    from kdbench.api import run
    from kdbench.models.registry import register_model
    from kdbench.report.frame import load_results
    from kdbench.student import load_student

wait_passively()
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
