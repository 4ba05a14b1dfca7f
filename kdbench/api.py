"""The request that the command line and Python share, and `kdbench.run`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from kdbench.benchmark import Benchmark
from kdbench.errors import KdbenchError, allowed, unknown
from kdbench.files import default_results, default_store
from kdbench.models.registry import NAMED_PAIRS
from kdbench.plugins import as_passed, benchmark_names, load_all, load_benchmark, load_method, method_names
from kdbench.protocol import Asked, find_protocol
from kdbench.records import Record, starts_from_file
from kdbench.spec import RunSpec, split_list

if TYPE_CHECKING:
    import pandas as pd

FIELDS = {
    "method": "methods", "pair": "pairs", "benchmark": "benchmarks", "seed": "seeds", "set": "settings", "as_": "label",
    "label_map": "label_maps", "compile": "compiled",
}  # fmt: skip
"""Options that RunSpec knows by another name."""


def run(method: Any, pair: Any, *, quiet: bool = False, **options: Any) -> pd.DataFrame:
    """Train, test and record cells as `kdbench run` does; what is done already is skipped.

    Args:
        method: Names or files, as a list or separated by commas; `all`.
        pair: `teacher:student`, one or several in the same way.
        quiet: Show no progress.
        options: As of `kdbench run`, dashes written as underscores: benchmark, protocol, budget, seed, set (a
            dictionary or texts), as_, data_root, results, store, device and so on.

    Returns:
        The records of the request, the teacher's and the undistilled student's among them, as kdbench.load_results has
        them: a row for each cell, snapshot and domain. A cell that failed is a row with its error.

    Raises:
        KdbenchError: the request is wrong; the text says how to mend it.
    """
    spec = make_request(warnings.warn, method=method, pair=pair, **options)
    from rich.console import Console

    from kdbench.cli.console import progress_for
    from kdbench.engine.grid import expand, make_context, run_grid
    from kdbench.progress import Silent
    from kdbench.report.frame import Entry, to_frame

    context = make_context(spec, Silent() if quiet else progress_for(Console()))
    records = [done.record for done in run_grid(spec, context, expand(spec, context))]
    return to_frame(Entry(record, path=spec.results / record.path()) for record in records)


def make_request(note: Callable[[str], object], **options: Any) -> RunSpec:
    """Build the request from the options of `kdbench run`: texts, as typed, or lists and dictionaries.

    `all` becomes names, and what is not given its default. note is told of methods that are left out.

    Raises:
        KdbenchError: an option that does not exist, or a value that it cannot have.
    """
    for name in options:
        if name in FIELDS.values() or FIELDS.get(name, name) not in RunSpec.model_fields:
            raise unknown("option", name, {*FIELDS, *RunSpec.model_fields} - {*FIELDS.values()})
    fields = {FIELDS.get(name, name): value for name, value in options.items() if value is not None}
    root, protocol = fields.get("data_root"), fields.get("protocol", "mini")
    everything: dict[str, Callable[[], Iterable[str]]] = {
        "methods": lambda: usable_methods(note),
        "pairs": lambda: NAMED_PAIRS,
        "benchmarks": lambda: servable_benchmarks(Path(root) if root else None, protocol),
    }
    for name, names in everything.items():
        fields[name] = _listed(fields.get(name, "all"), names)
    fields["watch"] = _trackers(fields.get("watch"), note)
    fields = {"results": default_results(), "store": default_store()} | fields
    try:
        return RunSpec(**fields)
    except ValidationError as error:
        fault = error.errors()[0]
        raise KdbenchError(f"option {fault['loc'][0]} cannot be {fault['input']!r}: {allowed(fault)}.") from error


def _listed(value: Any, everything: Callable[[], Iterable[str]]) -> tuple[str, ...]:
    if isinstance(value, str | Path):
        return tuple(everything()) if str(value).strip() == "all" else split_list(str(value))
    return tuple(str(each) for each in value)


def _trackers(watch: Any, note: Callable[[str], object]) -> tuple[str, ...]:
    from kdbench.engine.tracking import DEFAULT, find_trackers

    found = find_trackers(watch if watch is None or isinstance(watch, str) else ",".join(watch) or "none")
    if watch is None and not found:
        note(f"{DEFAULT} is not installed, so that nothing is written for it. Install it: pip install {DEFAULT}")
    return found


def usable_methods(note: Callable[[str], object]) -> list[str]:
    """Return every method that loads; note is told of the others."""
    loaded, broken = load_all(method_names(), lambda name: load_method(name).usable())
    for error in broken.values():
        note(f"left out: {error}")
    return list(loaded)


def servable_benchmarks(data_root: Path | None, protocol: Asked = "mini") -> list[str]:
    """Return the benchmarks that run without data, or those whose data sets lie under data_root, under a protocol."""
    loaded, _ = load_all(benchmark_names(), load_benchmark)
    if data_root is None:
        return [name for name, benchmark in loaded.items() if all(d.synthetic for d in benchmark.evaluated())]
    from kdbench.data.datasets import ADAPTERS
    from kdbench.data.sources import DataSources

    if not data_root.is_dir():
        raise KdbenchError(f"--data-root {data_root} is not a folder.")
    there = [name for name, adapter in ADAPTERS.items() if adapter.folder(data_root)]
    data_sources = DataSources(find_protocol(protocol), Path(), data_root)
    stated = {name: benchmark for name, benchmark in loaded.items() if data_sources.states_sizes(benchmark)}
    missing = {name: _missing(benchmark, there) for name, benchmark in stated.items()}
    served = [name for name, lacking in missing.items() if not lacking]
    if not served:
        each = "; ".join(f"{name} lacks {', '.join(lacking)}" for name, lacking in missing.items())
        raise KdbenchError(
            f"no benchmark has all of its data sets under {data_root}. Found there: {', '.join(there) or 'none'}. "
            f"{each}. `kdbench list datasets` says which folders are looked for."
        )
    return served


def _missing(benchmark: Benchmark, there: Container[str]) -> list[str]:
    """Return the data sets of a benchmark's labelled domains that are not there, each once."""
    names = [d.real.dataset if d.real else f"a data set for {d.name}" for d in benchmark.evaluated()]
    return [name for name in dict.fromkeys(names) if name not in there]


_CHOICES = (("budget", "published"), ("resampling", "bicubic"), ("label_fraction", "1"), ("steps_scale", 1.0))
"""Options of a request that stand in the command of each of its cells, with their defaults."""


def run_command(record: Record, seeds: Iterable[int]) -> str:
    """Return the `kdbench run` command that makes a record's cell again, with these seeds."""
    cell, passed = record.spec.resolved.id, record.spec.passed
    given = as_passed(cell.method, passed.get("methods", ()))
    benchmark = as_passed(cell.benchmark, passed.get("benchmarks", ()))
    words = [f"--method {given}", f"--pair {cell.pair}"]
    if cell.student is None:
        words = [f"--{option} {','.join(passed.get(f'{option}s', ()))}" for option in ("method", "pair")]
    own = isinstance(passed.get("protocol"), dict)
    protocol = f"{record.spec.resolved.protocol}.yaml" if own else record.spec.resolved.protocol
    words += [f"--benchmark {benchmark}", f"--protocol {protocol}"]
    words += [f"--seed {','.join(map(str, seeds))}"]
    for option, default in _CHOICES:
        if passed.get(option, default) != default:
            words.append(f"--{option.replace('_', '-')} {passed[option]}")
    words += [f"--label-map {text}" for text in passed.get("label_maps", ())]
    settings = [text.partition("=")[0].rpartition(".")[0] in ("", given) and text for text in passed["settings"]]
    words += [f"--set {text}" for text in settings if text and cell.variant]
    words += [f"--as {passed['label']}"] if passed.get("label") and cell.variant.startswith(passed["label"]) else []
    if starts_from_file(record.spec.resolved):
        words.append(f"--student-from {passed['student_from']}")
        words += [f"--stages-done {','.join(passed['stages_done'])}"] if passed["stages_done"] else []
    words += ["--data-root DIR"] if passed.get("real") else []
    words += ["--no-references"] if cell.student else []
    return f"kdbench run {' '.join(words)}"
