"""No method's training step became slower than a ratio, against an earlier state.

A file of pytest-benchmark holds the share s of a step that distillation takes beside the undistilled student's step of
the same run, so a step takes 1 / (1 - s) undistilled steps, whatever the machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from kdbench.errors import KdbenchError
from kdbench.gates.gate import Gate, Outcome

FILE = "costs.json"
RATIO = 1.5
"""How many times as long a step may take: above what measurements of the same code differ by on a busy machine."""
NAME = "speed"
MEASURE = f"python -m pytest tests/perf/test_methods.py -m slow --benchmark-json DIR/{FILE}"


class Cost(BaseModel):
    """extra_info of a measured method."""

    method: str
    share: float = Field(lt=1, allow_inf_nan=False)

    @property
    def steps(self) -> float:
        """A step's time in undistilled steps."""
        return 1 / (1 - self.share)


class Benchmark(BaseModel):
    """One entry; those without a share measure something else."""

    extra_info: dict[str, Any]


class Benchmarks(BaseModel):
    """What of pytest-benchmark's file is read."""

    benchmarks: list[Benchmark]


def gates(results: Path, reference: Path | None, earlier: Path) -> Iterator[Gate]:
    """One line, or one for every method that became slower. A run's file goes before the committed one."""
    old = earlier / FILE
    new = next((folder / FILE for folder in (results, reference) if folder and (folder / FILE).is_file()), None)
    if not old.is_file():
        yield Gate(NAME, Outcome.SKIP, f"no {FILE} in {earlier}; nothing was compared")
    elif new is None:
        yield Gate(NAME, Outcome.FAIL, f"{old} has nothing to compare with. Measure: {MEASURE}", old)
    else:
        yield from _compare(new, read_costs(new), read_costs(old))


def read_costs(path: Path) -> dict[str, Cost]:
    """The measured methods of a file; one that holds none is an error."""
    try:
        entries = Benchmarks.model_validate_json(path.read_bytes()).benchmarks
        costs = [Cost.model_validate(entry.extra_info) for entry in entries if "share" in entry.extra_info]
    except ValidationError as error:
        first = error.errors()[0]
        raise KdbenchError(
            f"{path} holds no measured costs ({'.'.join(map(str, first['loc']))}: {first['msg']}). Measure: {MEASURE}"
        ) from error
    if not costs:
        raise KdbenchError(f"{path} holds no benchmark with a share in its extra_info. Measure: {MEASURE}")
    return {cost.method: cost for cost in costs}


def _compare(path: Path, now: dict[str, Cost], before: dict[str, Cost]) -> Iterator[Gate]:
    ratios = {method: now[method].steps / before[method].steps for method in sorted(now.keys() & before.keys())}
    slower = [method for method, ratio in ratios.items() if ratio > RATIO]
    for method in slower:
        yield Gate(
            NAME,
            Outcome.FAIL,
            f"{method}'s step takes {now[method].steps:.2f} undistilled steps, before {before[method].steps:.2f}: "
            f"{ratios[method]:.2f} times as long (allowed {RATIO}). Measure again on a quiet machine, then repair it.",
            path,
        )
    if not ratios:
        yield Gate(NAME, Outcome.FAIL, f"{path} has no method in common with the earlier file. Measure: {MEASURE}")
    elif not slower:
        slowest = max(ratios, key=lambda method: ratios[method])
        yield Gate(
            NAME, Outcome.OK, f"{len(ratios)} methods, highest {ratios[slowest]:.2f} times ({slowest}; allowed {RATIO})"
        )
