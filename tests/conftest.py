"""What tests share: a store, small requests, and the rule on skipped tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from kdbench.engine.grid import Done
    from kdbench.engine.plan import Cell, RunContext
    from kdbench.spec import RunSpec

# Small tensors gain nothing from threads, and test processes beside each other lose much by them. Both are read when
# torch is loaded, and subprocesses inherit them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """With KDBENCH_NO_SKIPS a skip is a failure, unless its reason names the optional part that is missing."""
    outcome = yield
    if not hasattr(outcome.get_result(), "wasxfail"):
        _refuse_skip(outcome.get_result(), item.nodeid)


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    """The same for a module that skips itself as a whole."""
    outcome = yield
    _refuse_skip(outcome.get_result(), collector.nodeid)


def _refuse_skip(report: Any, name: str) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if os.environ.get("KDBENCH_NO_SKIPS") and report.skipped and "optional:" not in reason:
        report.outcome = "failed"
        report.longrepr = f"{name} was skipped without naming an optional part: {reason}"


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
    from kdbench.spec import RunSpec

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
    """The context and the cells of a request."""
    from kdbench.engine.grid import expand, make_context
    from kdbench.progress import Silent

    def plan(**fields: Any) -> tuple[RunContext, list[Cell]]:
        spec = make_spec(**fields)
        context = make_context(spec, Silent())
        return context, expand(spec, context)

    return plan


@pytest.fixture
def run_cells(make_spec: Callable[..., RunSpec]) -> Callable[..., list[Done]]:
    """Runs a request."""
    from kdbench.engine.grid import expand, make_context, run_grid
    from kdbench.progress import Silent

    def run(**fields: Any) -> list[Done]:
        spec = make_spec(**fields)
        context = make_context(spec, Silent())
        return list(run_grid(spec, context, expand(spec, context)))

    return run


@pytest.fixture
def plugin(tmp_path: Path) -> Callable[..., str]:
    """Writes a method's file with a class body, which begins in line 6; returns its path."""

    def write(name: str, body: str, folder: Path = tmp_path) -> str:
        head = "from kdbench.method import Method, Stage, task_loss\nfrom kdbench.types import STUDENT, Phase\n"
        path = folder / f"{name}.py"
        path.write_text(f"{head}\n\nclass Made(Method):\n{body}", encoding="utf-8")
        return str(path)

    return write
