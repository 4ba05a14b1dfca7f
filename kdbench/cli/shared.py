"""What several verbs share: options, the text that they print, and what `all` stands for."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from kdbench.benchmark import Domain
from kdbench.errors import KdbenchError
from kdbench.plugins import benchmark_names, load_all, load_benchmark, load_method, method_names
from kdbench.spec import split_list

Results = Annotated[Path | None, typer.Option(help="Where records are written and read. [results/runs]")]
StoreOption = Annotated[Path | None, typer.Option(help="Where finished stages are kept. [~/.cache/kdbench]")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder with the real data sets; without it, the built-in world.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")]
Seeds = Annotated[str, typer.Option(help="Seeds, comma-separated; 0-4 is a range.")]
ProtocolName = Annotated[str, typer.Option(help="smoke, mini or paper.")]
Label = Annotated[str, typer.Option("--as", help="A label for the variant that --set makes.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="knob=value, or method.knob=value; repeatable.")]


def servable(data_root: Path | None) -> list[str]:
    """The benchmarks that can run without data, or those that have data sets to run with."""
    loaded, _ = load_all(benchmark_names(), load_benchmark)
    served = []
    for name, benchmark in loaded.items():
        if all(_is_there(domain, data_root) for domain in benchmark.evaluated()):
            served.append(name)
    if not served:
        raise KdbenchError(
            f"no benchmark has all of its data sets under {data_root}. Name one with --benchmark to see what it lacks."
        )
    return served


def _is_there(domain: Domain, data_root: Path | None) -> bool:
    if data_root is None:
        return domain.synthetic is not None
    from kdbench.data.real import ADAPTERS

    adapter = ADAPTERS.get(domain.real.dataset) if domain.real else None
    return adapter is not None and adapter.is_under(data_root)


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


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from a comma-separated list of numbers and ranges: 0,1 or 0-4."""
    seeds: list[int] = []
    for part in split_list(text):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
            raise KdbenchError(f"--seed '{text}': seeds are whole numbers from 0 on, separated by commas, or 0-4.")
        seeds += range(int(first), int(last) + 1)
    return tuple(dict.fromkeys(seeds))


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
    """Print to standard output, as it is."""
    sys.stdout.write(text.rstrip("\n") + "\n")
