"""What several verbs share: options, the text that they print, and what `all` stands for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from kdbench.errors import KdbenchError
from kdbench.plugins import benchmark_names, load_all, load_benchmark, load_method, method_names
from kdbench.spec import split_list

Results = Annotated[Path | None, typer.Option(help="Where records are written and read. [results/runs]")]
StoreOption = Annotated[Path | None, typer.Option(help="Where finished stages are kept. [~/.cache/kdbench]")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder with the real data sets; without it, the built-in world.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")]
Seeds = Annotated[str, typer.Option(help="Seeds, comma-separated.")]
ProtocolName = Annotated[str, typer.Option(help="smoke or mini.")]
Label = Annotated[str, typer.Option("--as", help="A label for the variant that --set makes.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="knob=value, or method.knob=value; repeatable.")]


def servable(data_root: Path | None) -> list[str]:
    """The benchmarks that can run without data, or those that have data sets to run with."""
    loaded, _ = load_all(benchmark_names(), load_benchmark)
    served = []
    for name, benchmark in loaded.items():
        domains = list(benchmark.evaluated())
        if all(domain.real if data_root else domain.synthetic for domain in domains):
            served.append(name)
    if not served:
        raise KdbenchError("no benchmark can be served: none has a data set that this version reads.")
    return served


def needed(data_root: Path | None) -> Path:
    """--data-root, where a verb cannot do without it."""
    if data_root is None:
        raise KdbenchError("add --data-root DIR, the folder that holds the data sets.")
    return data_root


def usable_methods() -> list[str]:
    """Every method that loads; those that do not are named and left out."""
    loaded, broken = load_all(method_names(), load_method)
    for error in broken.values():
        complain(f"left out: {error}")
    return list(loaded)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from a comma-separated list."""
    parts = split_list(text)
    if not all(part.isdecimal() for part in parts):
        raise KdbenchError(f"--seed '{text}': seeds are whole numbers from 0 on, separated by commas.")
    return tuple(int(part) for part in parts)


def complain(text: str) -> None:
    """Print to standard error."""
    Console(stderr=True).print(f"kdbench: {text}", highlight=False, markup=False, soft_wrap=True)


def out(text: str) -> None:
    """Print to standard output, as it is."""
    sys.stdout.write(text.rstrip("\n") + "\n")
