"""What tests share: a store, small requests, and the rule on skipped tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Small tensors gain nothing from threads, and test processes beside each other lose much by them. Both are read when
# torch is loaded, and subprocesses inherit them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from kdbench.engine.grid import Done, expand, make_context, run_grid
from kdbench.engine.plan import Cell, RunContext
from kdbench.progress import Silent
from kdbench.spec import RunSpec


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """With KDBENCH_NO_SKIPS a skip is a failure, unless its reason names the optional part that is missing."""
    outcome = yield
    report = outcome.get_result()
    if os.environ.get("KDBENCH_NO_SKIPS") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if "optional:" not in reason:
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} was skipped without naming an optional part: {reason}"


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    """The same for a module that skips itself as a whole."""
    outcome = yield
    report = outcome.get_result()
    if os.environ.get("KDBENCH_NO_SKIPS") and report.skipped and "optional:" not in str(report.longrepr):
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} was skipped without naming an optional part: {report.longrepr}"


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for tests that do not care what is in it, on all of xdist's workers: stages are trained once."""
    own = tmp_path_factory.getbasetemp()
    store = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared-store"
    store.mkdir(exist_ok=True)
    return store


@pytest.fixture
def make_spec(tmp_path: Path, shared_store: Path) -> Callable[..., RunSpec]:
    """A smoke request on the CPU; every field can be replaced."""

    def make(**fields: Any) -> RunSpec:
        defaults: dict[str, Any] = {
            "methods": ("gkd",),
            "pairs": ("dinov2-s:deit-s",),
            "benchmarks": ("g2c",),
            "protocol": "smoke",
            "device": "cpu",
            "results": tmp_path / "results",
            "store": shared_store,
            "references": False,
        }
        return RunSpec(**(defaults | fields))

    return make


@pytest.fixture
def plan_cells(make_spec: Callable[..., RunSpec]) -> Callable[..., tuple[RunContext, list[Cell]]]:
    """The lab and the cells of a request."""

    def plan(**fields: Any) -> tuple[RunContext, list[Cell]]:
        spec = make_spec(**fields)
        context = make_context(spec, Silent())
        return context, expand(spec, context)

    return plan


@pytest.fixture
def run_cells(make_spec: Callable[..., RunSpec]) -> Callable[..., list[Done]]:
    """Runs a request."""

    def run(**fields: Any) -> list[Done]:
        spec = make_spec(**fields)
        context = make_context(spec, Silent())
        return list(run_grid(spec, context, expand(spec, context)))

    return run
