"""No method's training step became slower than a ratio, against an earlier state.

A file of pytest-benchmark holds the share s of a step that distillation takes beside the undistilled student's step of
the same run, so a step takes 1 / (1 - s) undistilled steps, whatever the machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kdbench.report.step_costs import FILE, MEASURE, read_costs
from kdbench.tools.ci_checks.result import CheckResult

RATIO = 1.5
"""How many times as long a step may take: above what measurements of the same code differ by on a busy machine."""
NAME = "speed"


def check(results: Path, reference: Path | None, earlier: Path) -> Iterator[CheckResult]:
    """One line, or one for every method that became slower. A run's file goes before the committed one."""
    old = earlier / FILE
    new = next((folder / FILE for folder in (results, reference) if folder and (folder / FILE).is_file()), None)
    if not old.is_file():
        yield CheckResult(NAME, "skip", f"no {FILE} in {earlier}; nothing was compared")
    elif new is None:
        yield CheckResult(NAME, "FAIL", f"{old} has nothing to compare with. Measure: {MEASURE}", old)
    else:
        yield from _compare(new, _steps(new), _steps(old))


def _steps(path: Path) -> dict[str, float]:
    return {method: 1 / (1 - share) for method, share in read_costs(path).items()}


def _compare(path: Path, now: dict[str, float], before: dict[str, float]) -> Iterator[CheckResult]:
    ratios = {method: now[method] / before[method] for method in sorted(now.keys() & before.keys())}
    slower = [method for method, ratio in ratios.items() if ratio > RATIO]
    for method in slower:
        yield CheckResult(
            NAME,
            "FAIL",
            f"{method}'s step takes {now[method]:.2f} undistilled steps, before {before[method]:.2f}: "
            f"{ratios[method]:.2f} times as long (allowed {RATIO}). Measure again on a quiet machine, then repair it.",
            path,
        )
    if not ratios:
        yield CheckResult(NAME, "FAIL", f"{path} has no method in common with the earlier file. Measure: {MEASURE}")
    elif not slower:
        slowest = max(ratios, key=lambda method: ratios[method])
        yield CheckResult(
            NAME, "ok", f"{len(ratios)} methods, highest {ratios[slowest]:.2f} times ({slowest}; allowed {RATIO})"
        )
