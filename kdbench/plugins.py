"""Finds methods and benchmarks in their folders, in installed packages' entry points, and at a given path.

The folder is the registry and the file's stem is the name; hyphen and underscore are one. A file that does not import
is listed with its error and breaks nothing else.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from kdbench.benchmark import Benchmark
from kdbench.benchmark_file import is_benchmark_file, read_benchmark
from kdbench.errors import KdbenchError, describe, unknown
from kdbench.identity import digest

if TYPE_CHECKING:
    from kdbench.method import Method

METHODS, BENCHMARKS = "kdbench.methods", "kdbench.benchmarks"
"""The packages of the plug-ins, which are also their entry point groups."""
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Plugin:
    """A plug-in that was found and is not imported yet. origin says where, for messages."""

    name: str
    origin: str
    load: Callable[[], Any]


@dataclass(frozen=True)
class MethodPlugin:
    """A method's class by its name."""

    name: str
    method: type[Method[Any]]

    @property
    def missing(self) -> str:
        """The optional package that the method needs and that is not installed; empty where there is none."""
        package = self.method.requires
        return package if package and importlib.util.find_spec(package) is None else ""

    def usable(self) -> MethodPlugin:
        """Return itself; raise where its optional package is missing."""
        if self.missing:
            raise KdbenchError(
                f"method '{self.name}' needs the package {self.missing}. Repair: pip install {self.missing}"
            )
        return self


def load_method(name: str, folder: Path | None = None) -> MethodPlugin:
    """Load a method by name, or by the path of its file."""
    plugin = _find(name, "method", discover(METHODS, folder))
    return MethodPlugin(plugin.name, _load(plugin, "method", _method_in))


def load_benchmark(name: str, folder: Path | None = None) -> Benchmark:
    """Load a benchmark by name, or by the path of its file, Python or YAML."""
    if is_benchmark_file(name):
        if normal(Path(name).stem) in discover(BENCHMARKS, folder):
            raise KdbenchError(f"{name} has the name of a benchmark that kdbench has: rename the file.")
        return read_benchmark(Path(name))
    plugin = _find(name, "benchmark", discover(BENCHMARKS, folder))
    benchmark = _load(plugin, "benchmark", _benchmark_in)
    if normal(benchmark.name) != plugin.name:
        raise KdbenchError(f"{plugin.origin} calls its benchmark '{benchmark.name}'; it has to be '{plugin.name}'.")
    return benchmark


def load_all(names: Iterable[str], load: Callable[[str], Loaded]) -> tuple[dict[str, Loaded], dict[str, str]]:
    """Return what loads by name, and the errors of what does not."""
    loaded: dict[str, Loaded] = {}
    broken: dict[str, str] = {}
    for name in names:
        try:
            loaded[name] = load(name)
        except KdbenchError as error:
            broken[name] = str(error)
    return loaded, broken


def method_names() -> tuple[str, ...]:
    """Return the names of all methods that are found."""
    return tuple(discover(METHODS))


def benchmark_names() -> tuple[str, ...]:
    """Return the names of all benchmarks that are found."""
    return tuple(discover(BENCHMARKS))


def method_origin(name: str) -> str:
    """Return where a method is defined, by its name or its file's path, without importing it; raise for neither."""
    return _find(name, "method", discover(METHODS)).origin


def discover(package: str, folder: Path | None = None) -> dict[str, Plugin]:
    """Find every plug-in of kdbench.methods or kdbench.benchmarks by name; two of one name are an error."""
    root = folder or _folder(package)
    plugins = [_from_file(path, package) for path in sorted(root.glob("*.py")) if not path.name.startswith("_")]
    plugins += [
        Plugin(normal(point.name), f"entry point {point.value}", point.load)
        for point in importlib.metadata.entry_points(group=package)
    ]
    found: dict[str, Plugin] = {}
    for plugin in plugins:
        other = found.setdefault(plugin.name, plugin)
        if other is not plugin:
            raise _same_name(plugin.name, other.origin, plugin.origin)
    return found


def normal(name: str) -> str:
    """Return a plug-in's name as it is compared and stored."""
    return name.replace("-", "_")


def as_passed(name: str, passed: Iterable[str]) -> str:
    """Return how a request named a plug-in, by its file's path perhaps; the name where it did not."""
    return next((given for given in passed if normal(Path(given).stem) == normal(name)), name)


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise KdbenchError(f"the package {package} is not installed. Repair: pip install -e . in kdbench's checkout.")
    return Path(next(iter(spec.submodule_search_locations)))


def _find(name: str, kind: str, found: dict[str, Plugin]) -> Plugin:
    path = Path(name)
    if path.suffix != ".py":
        if normal(name) not in found:
            raise unknown(kind, name, found, "A path to a file works too.")
        return found[normal(name)]
    if not path.is_file():
        raise KdbenchError(f"there is no {kind} file {path}. Give a {kind}'s name or the path of an existing file.")
    path = path.resolve()
    known = found.get(normal(path.stem))
    if known is None:
        # The path is part of the module's name: two files of one stem must not replace each other.
        return _from_file(path, f"kdbench_plugin_{digest(str(path), 8)}")
    if Path(known.origin).resolve() != path:
        raise _same_name(known.name, known.origin, str(path))
    return known


def _same_name(name: str, first: str, second: str) -> KdbenchError:
    return KdbenchError(f"two plug-ins are named '{name}': {first} and {second}. Rename one of them.")


def _from_file(path: Path, package: str) -> Plugin:
    module_name = f"{package}.{path.stem}"

    def load() -> ModuleType:
        loaded = sys.modules.get(module_name)
        if loaded is not None and getattr(loaded, "__file__", None) == str(path):
            return loaded
        return _import_file(path, module_name)

    return Plugin(normal(path.stem), str(path), load)


def _import_file(path: Path, module_name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs, as Python's own import does: dataclasses and pickling look the module up by name.
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def _load(plugin: Plugin, kind: str, pick: Callable[[Any, str], Loaded]) -> Loaded:
    try:
        return pick(plugin.load(), plugin.origin)
    except KdbenchError:
        raise
    except Exception as error:
        raise KdbenchError(f"{kind} '{plugin.name}' ({plugin.origin}) cannot be used: {describe(error)}") from error


def _method_in(loaded: Any, origin: str) -> type[Method[Any]]:
    """Return the method that an entry point names, or the only one that a module defines."""
    from kdbench.method import Method, MethodConfig

    classes = [loaded] if isinstance(loaded, type) else vars(loaded).values()
    module = loaded.__module__ if isinstance(loaded, type) else loaded.__name__
    own = [c for c in classes if isinstance(c, type) and issubclass(c, Method) and c.__module__ == module]
    if len(own) != 1:
        names = ", ".join(cls.__name__ for cls in own) or "none"
        repair = " Put a base that they share into another file and import it." if own else ""
        raise KdbenchError(
            f"{origin} has to define exactly one subclass of kdbench.method.Method; found {names}.{repair}"
        )
    (method,) = own
    if not (isinstance(method.Config, type) and issubclass(method.Config, MethodConfig)):
        raise KdbenchError(
            f"{origin}: the Config of {method.__name__} is no kdbench.method.MethodConfig. Write its options as "
            "class MyConfig(MethodConfig): weight: float = Field(1.0, description='what it is'), and the method as "
            "class Mine(Method[MyConfig])."
        )
    return method


def _benchmark_in(loaded: Any, origin: str) -> Benchmark:
    value = loaded if isinstance(loaded, Benchmark) else getattr(loaded, "BENCHMARK", None)
    if not isinstance(value, Benchmark):
        raise KdbenchError(f"{origin} has to define BENCHMARK, a kdbench.benchmark.Benchmark.")
    return value
