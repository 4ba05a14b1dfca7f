"""The share of a training step that distillation takes, as tests/perf measured it with pytest-benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from kdbench.errors import KdbenchError

FILE = "costs.json"
MEASURE = f"python -m pytest tests/perf/test_methods.py -m slow --benchmark-json DIR/{FILE}"


class StepCost(BaseModel):
    """What pytest-benchmark's extra_info says of a method."""

    method: str
    share: float = Field(lt=1, allow_inf_nan=False)

    @property
    def steps(self) -> float:
        """A step's time in undistilled steps."""
        return 1 / (1 - self.share)


class _Timing(BaseModel):
    """One entry; those without a share measure something else."""

    extra_info: dict[str, Any]


class _Timings(BaseModel):
    """What of pytest-benchmark's file is read."""

    benchmarks: list[_Timing]


def read_costs(path: Path) -> dict[str, StepCost]:
    """Return the measured methods of a file; one that holds none is an error."""
    try:
        entries = _Timings.model_validate_json(path.read_bytes()).benchmarks
        costs = [StepCost.model_validate(entry.extra_info) for entry in entries if "share" in entry.extra_info]
    except ValidationError as error:
        first = error.errors()[0]
        raise KdbenchError(
            f"{path} holds no measured costs ({'.'.join(map(str, first['loc']))}: {first['msg']}). Measure: {MEASURE}"
        ) from error
    if not costs:
        raise KdbenchError(f"{path} holds no benchmark with a share in its extra_info. Measure: {MEASURE}")
    return {cost.method: cost for cost in costs}
