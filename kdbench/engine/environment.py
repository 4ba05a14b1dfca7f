"""What a record says of where it was made: the machine, library versions and the revision of kdbench."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy
import PIL
import timm
import torch
import torchvision

import kdbench
from kdbench.engine.keys import ENGINE_VERSION


def versions(device: torch.device, precision: str) -> dict[str, str]:
    """Return the versions of engine and libraries, and the settings that decide a result's last bit."""
    return {
        "engine": str(ENGINE_VERSION),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        "transformers": version("transformers"),
        "scipy": version("scipy"),
        "device": device.type,
        "precision": precision,
        "threads": str(torch.get_num_threads() if device.type == "cpu" else 0),
        "python": platform.python_version(),
    }


def host() -> dict[str, str]:
    """Return the machine, its system, its processor, and the vector instructions that torch uses on it."""
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "processor": _processor(),
        "vector_code": torch.backends.cpu.get_cpu_capability(),
    }


def device_name(device: torch.device) -> str:
    """Return a device's kind and model, of a CPU with the vector instructions that torch uses on it."""
    if device.type == "cuda":
        return f"cuda, {torch.cuda.get_device_name(device)}"
    return f"{device.type}, {_cpu()}, {torch.backends.cpu.get_cpu_capability()}"


def _processor() -> str:
    """Return the model's name: libraries pick other kernels on another model, and the last bit follows them."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def gpu_memory(device: torch.device) -> float | None:
    """Return the most MiB that tensors took on a GPU since torch.cuda.reset_peak_memory_stats; None on a CPU.

    A CPU's is not known: its process holds the libraries and whatever ran in it before.
    """
    return round(torch.cuda.max_memory_allocated(device) / 2**20, 1) if device.type == "cuda" else None


def peak_memory(device: torch.device) -> float:
    """Return the largest memory so far in MiB: of tensors on a GPU, else of this process."""
    if found := gpu_memory(device):
        return found
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


@cache
def revision() -> str:
    """Return kdbench's version, with the commit where this is a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return kdbench.__version__
    return f"{kdbench.__version__}+{found}"
