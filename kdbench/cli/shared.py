"""What several verbs share: options, the text that they print, and what `all` stands for."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from kdbench.errors import KdbenchError

Results = Annotated[Path | None, typer.Option(help="Where records are written and read. [results/runs]")]
StoreOption = Annotated[Path | None, typer.Option(help="Where finished stages are kept. [~/.cache/kdbench]")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder with the real data sets; without it, the built-in world.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")]


def needed(data_root: Path | None) -> Path:
    """--data-root, where a verb cannot do without it."""
    if data_root is None:
        raise KdbenchError("add --data-root DIR, the folder that holds the data sets.")
    return data_root


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
