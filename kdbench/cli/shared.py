"""What several verbs share: options, the text that they print, and what `all` stands for."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from kdbench.benchmark import Benchmark
from kdbench.errors import KdbenchError
from kdbench.plugins import benchmark_names, load_all, load_benchmark, load_method, method_names
from kdbench.protocol import find_protocol

Results = Annotated[Path | None, typer.Option(help="Where records are written and read. [results/runs]")]
StoreOption = Annotated[Path | None, typer.Option(help="Where finished stages are kept. [~/.cache/kdbench]")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder with the real data sets; without it, the built-in world.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")]
Seeds = Annotated[str, typer.Option(help="Seeds, comma-separated; 0-4 is a range.")]
ProtocolName = Annotated[str, typer.Option(help="smoke, mini, paper or paper-text.")]
Label = Annotated[str, typer.Option("--as", help="A label for the variant that --set makes.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="knob=value, or method.knob=value; repeatable.")]


def servable(data_root: Path | None, protocol: str = "mini") -> list[str]:
    """The benchmarks that can run without data, or those that have data sets to run with, on a protocol's terms."""
    loaded, _ = load_all(benchmark_names(), load_benchmark)
    if data_root is None:
        return [name for name, benchmark in loaded.items() if all(d.synthetic for d in benchmark.evaluated())]
    from kdbench.data.datasets import ADAPTERS
    from kdbench.data.sources import DataSources

    if not data_root.is_dir():
        raise KdbenchError(f"--data-root {data_root} is not a folder.")
    there = [name for name, adapter in ADAPTERS.items() if adapter.is_under(data_root)]
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
    """The data sets of its labelled domains that are not there, each once."""
    names = [d.real.dataset if d.real else f"a data set for {d.name}" for d in benchmark.evaluated()]
    return [name for name in dict.fromkeys(names) if name not in there]


def needed(data_root: Path | None) -> Path:
    """--data-root, where a verb cannot do without it."""
    if data_root is None:
        raise KdbenchError("add --data-root DIR, the folder that holds the data sets.")
    return data_root


def usable_methods() -> list[str]:
    """Every method that loads; those that do not are named and left out."""
    loaded, broken = load_all(method_names(), lambda name: load_method(name).usable())
    for error in broken.values():
        complain(f"left out: {error}")
    return list(loaded)


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Around work of which nothing is lost when it is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        complain("stopped. The same command continues where it was.")
        raise typer.Exit(130) from None


def complain(text: str) -> None:
    """Print to standard error."""
    Console(stderr=True).print(f"kdbench: {text}", highlight=False, markup=False, soft_wrap=True)


def out(text: str) -> None:
    """Print to standard output, as it is, at once."""
    sys.stdout.write(text.rstrip("\n") + "\n")
    sys.stdout.flush()
