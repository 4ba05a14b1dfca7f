"""The laws that can be read off the source: who imports whom, who knows whose name, what a method must not do."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HARNESS = sorted((ROOT / "kdbench").rglob("*.py"))
METHODS = sorted(path for path in (ROOT / "methods").glob("*.py") if path.stem != "__init__")
BENCHMARKS = sorted(path for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__init__")
PLUGINS = {path.stem for path in METHODS + BENCHMARKS}
WITH_DATA_SET_NAMES = ("kdbench.data.datasets", "kdbench.benchmark", "kdbench.tools.prepare")

# Who may import what of kdbench; a package stands for its modules. Prefixes; the module itself is always allowed.
SMALL = ("kdbench.errors", "kdbench.identity", "kdbench.files", "kdbench.progress")
ARROWS = {
    "kdbench.errors": (),
    "kdbench.identity": (),
    "kdbench.progress": (),
    "kdbench.files": ("kdbench.errors",),
    "kdbench.types": (),
    "kdbench.names": ("kdbench.identity",),
    "kdbench.benchmark": ("kdbench.errors",),
    "kdbench.losses": ("kdbench.errors", "kdbench.types"),
    "kdbench.method": ("kdbench.errors", "kdbench.types", "kdbench.losses"),
    "kdbench.protocol": (*SMALL, "kdbench.types"),
    "kdbench.spec": (*SMALL, "kdbench.method", "kdbench.plugins", "kdbench.protocol"),
    "kdbench.benchmark_file": (*SMALL, "kdbench.benchmark", "kdbench.types"),
    "kdbench.plugins": (*SMALL, "kdbench.benchmark", "kdbench.benchmark_file", "kdbench.method"),
    "kdbench.records": (*SMALL, "kdbench.names"),
    "kdbench.metrics": ("kdbench.records",),
    "kdbench.pictures": (*SMALL, "kdbench.benchmark", "kdbench.records"),
    "kdbench.synthetic": ("kdbench.errors",),
    "kdbench.models": (*SMALL, "kdbench.types"),
    "kdbench.data": (*SMALL, "kdbench.synthetic", "kdbench.benchmark", "kdbench.protocol", "kdbench.types"),
    "kdbench.report": (
        *SMALL, "kdbench.records", "kdbench.metrics", "kdbench.names", "kdbench.pictures",
        "kdbench.benchmark", "kdbench.protocol",
    ),
    "kdbench.engine": (
        *SMALL, "kdbench.models", "kdbench.data", "kdbench.plugins", "kdbench.protocol", "kdbench.spec",
        "kdbench.records", "kdbench.metrics", "kdbench.names", "kdbench.pictures",
        "kdbench.method", "kdbench.types", "kdbench.benchmark",
    ),
    "kdbench.conformance": (
        *SMALL, "kdbench.engine", "kdbench.models", "kdbench.plugins", "kdbench.method", "kdbench.types",
    ),
    "kdbench.tools": ("kdbench",),
    "kdbench.integrations": ("kdbench",),
    "kdbench.api": ("kdbench",),
    "kdbench.student": (
        *SMALL, "kdbench.api", "kdbench.engine", "kdbench.data", "kdbench.models", "kdbench.protocol",
        "kdbench.records", "kdbench.spec",
    ),
    "kdbench.cli": ("kdbench",),
    "kdbench.methods": ("kdbench.method", "kdbench.types", "kdbench.losses"),
    "kdbench.benchmarks": ("kdbench.benchmark",),
}  # fmt: skip


def module_name(path: Path) -> str:
    """The dotted name that a file is imported under."""
    relative = path.relative_to(ROOT).with_suffix("")
    parts = [part for part in relative.parts if part != "__init__"]
    return ".".join(parts if parts[0] == "kdbench" else ["kdbench", *parts])


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at the top or in a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide who is meant"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def area(module: str) -> str:
    """The entry of ARROWS that a module belongs to."""
    return max((name for name in ARROWS if module == name or module.startswith(f"{name}.")), key=len)


@pytest.mark.parametrize("path", [*HARNESS, *METHODS, *BENCHMARKS], ids=lambda path: module_name(path))
def test_imports_follow_the_arrows(path: Path) -> None:
    module = module_name(path)
    if module == "kdbench":
        return
    here = area(module)
    allowed = (here, *ARROWS[here])
    for name in imports(path):
        if name.split(".")[0] == "kdbench" and name != "kdbench.__version__" and name != "kdbench":
            assert any(name == a or name.startswith(f"{a}.") for a in allowed), f"{module} must not import {name}"


def test_nothing_imports_the_integrations_and_the_core_no_tools() -> None:
    for path in HARNESS:
        module = module_name(path)
        others = () if module.startswith("kdbench.integrations") else ("kdbench.integrations",)
        others += () if module.startswith(("kdbench.tools", "kdbench.cli")) else ("kdbench.tools",)
        assert not [name for name in imports(path) if name.startswith(others)], path


def test_models_and_engine_do_not_know_the_integrations() -> None:
    names = [path.name for path in (ROOT / "kdbench" / "integrations").iterdir() if path.is_dir()]
    for path in HARNESS:
        if module_name(path).startswith(("kdbench.models", "kdbench.engine")):
            assert not [name for name in names if name in path.read_text(encoding="utf-8")], path


@pytest.mark.parametrize("path", METHODS + BENCHMARKS, ids=lambda path: path.stem)
def test_a_plug_in_imports_no_other_plug_in(path: Path) -> None:
    names = [name for name in imports(path) if name.startswith(("kdbench.methods", "kdbench.benchmarks"))]
    assert not names


@pytest.mark.parametrize("path", HARNESS, ids=lambda path: module_name(path))
def test_the_harness_knows_no_plug_in(path: Path) -> None:
    """Law 1: no method's or benchmark's name stands as a string in the harness."""
    if module_name(path).startswith(WITH_DATA_SET_NAMES):
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert not {name for name in strings if name.replace("-", "_") in PLUGINS}


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_method_returns_losses_and_never_steps(path: Path) -> None:
    called = {
        node.func.attr
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert not called & {
        "backward",
        "step",
        "zero_grad",
        "train",
        "eval",
        "to",
        "cuda",
        "requires_grad_",
        "manual_seed",
    }
    assert not any(name.startswith("torch.optim") for name in imports(path))


def test_weights_are_never_unpickled() -> None:
    """Law 8: torch.load only with weights_only=True, numpy.load never with pickles, no pickle module."""
    for path in HARNESS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert given.get("allow_pickle", "False") == "False"
                if ast.unparse(node.func.value) == "torch":
                    assert given.get("weights_only") == "True", path
        assert not {"pickle", "joblib", "dill"} & {name.split(".")[0] for name in imports(path)}


def test_no_two_classes_share_a_name() -> None:
    names = Counter(
        node.name
        for path in HARNESS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_only_the_command_line_prints_and_exits() -> None:
    for path in HARNESS:
        if module_name(path).startswith("kdbench.cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in {"print", "exit", "sys.exit", "os._exit"}, path


@pytest.mark.parametrize(
    "module",
    [
        "kdbench.cli",
        "kdbench.report.boards",
        "kdbench.report.frame",
        "kdbench.report.formats",
        "kdbench.protocol",
        "kdbench.spec",
        "kdbench.tools.ci_checks.agreement",
        "kdbench.tools.ci_checks.records",
        "kdbench.tools.ci_checks.boards",
        "kdbench.tools.ci_checks.scores",
        "kdbench.tools.ci_checks.speed",
    ],
)
def test_boards_start_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit(any(name in sys.modules for name in ('torch', 'seaborn', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_tree_stays_small() -> None:
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    # An unpacked archive has no list of tracked files; all that lies beside the tests is none either.
    paths = [ROOT / name for name in files.split("\0") if name] or [*HARNESS, *METHODS, *BENCHMARKS]
    assert sum(path.stat().st_size for path in paths if path.is_file()) < 48 * 2**20
    reference = [path for path in (ROOT / "results" / "reference").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in reference) < 12 * 2**20
    assert all(path.stat().st_size < 9 * 2**10 for path in reference if path.suffix == ".json")
