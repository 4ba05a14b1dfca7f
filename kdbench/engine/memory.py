"""The peak of memory of a piece of work: of the device, on a CPU of the process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

CLEAR = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""What Linux wants written there for the peak to begin anew (proc(5))."""


def reset_peak(device: torch.device) -> bool:
    """From here on the peak counts anew; whether the system can do that."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        CLEAR.write_text(RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def peak(device: torch.device) -> float:
    """The peak in MB (2**20 bytes)."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
