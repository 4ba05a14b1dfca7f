"""The share of a training step that distillation takes, as tests/perf measured it with pytest-benchmark."""

from __future__ import annotations

import json
from pathlib import Path

from kdbench.errors import KdbenchError

FILE = "costs.json"
MEASURE = f"python -m pytest tests/perf/test_methods.py -m slow --benchmark-json DIR/{FILE}"


def read_costs(path: Path) -> dict[str, float]:
    """Return the measured methods' shares, which are below 1; a file that holds none is an error."""
    try:
        # Entries without a share measure something else.
        held = [entry["extra_info"] for entry in json.loads(path.read_bytes())["benchmarks"]]
        shares = {str(each["method"]): float(each["share"]) for each in held if "share" in each}
        if not shares or not all(share < 1 for share in shares.values()):
            raise ValueError("a share below 1 is needed")
    except (ValueError, KeyError, TypeError) as error:
        raise KdbenchError(f"{path} holds no measured costs ({error}). Measure: {MEASURE}") from error
    return shares
