"""The machine that a record was made on: what its times, its memory and its last bits depend on."""

from __future__ import annotations

import platform
import resource
import sys
from pathlib import Path

import torch


def host() -> dict[str, str]:
    """The machine, its system, its processor, and the vector instructions that torch uses on it."""
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "processor": _processor(),
        "vector_code": torch.backends.cpu.get_cpu_capability(),
    }


def peak_memory(device: torch.device) -> float:
    """The most memory so far, in MiB: of tensors on a GPU, else of this process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def _processor() -> str:
    """The model's name: libraries pick other kernels on another model, and the last bit follows them."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
