"""`kdbench data`: verify, preview and prepare data sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from tabulate import tabulate

from kdbench.api import servable_benchmarks
from kdbench.benchmark_file import is_benchmark_file
from kdbench.cli.console import DataRoot, PackDir, StoreOption, needed, out, progress_for, resumable, use_packs
from kdbench.errors import KdbenchError, unknown
from kdbench.files import default_store
from kdbench.plugins import benchmark_names, load_benchmark
from kdbench.spec import split_list

if TYPE_CHECKING:
    from kdbench.data.datasets import Adapter

app = typer.Typer(no_args_is_help=True, help="Verify, preview and prepare data.", rich_markup_mode=None)
Output = Annotated[Path, typer.Option(help="A folder.")]


def _adapters(name: str) -> list[Adapter]:
    """Return a data set's adapter, or those of the domains of a benchmark file."""
    from kdbench.data.datasets import ADAPTERS
    from kdbench.data.sources import adapter_for

    if is_benchmark_file(name):
        benchmark = load_benchmark(name)
        domains = [*benchmark.sources, *benchmark.targets, benchmark.proxy]
        return [adapter_for(domain, domain.real) for domain in domains if domain.real and domain.real.patterns]
    if name not in ADAPTERS:
        raise unknown("data set", name, ADAPTERS, "A benchmark's YAML file works too.")
    return [ADAPTERS[name]]


@app.command()
def verify(
    names: Annotated[
        str, typer.Argument(help="Data sets or benchmark files, comma-separated, or `all` that are there.")
    ] = "all",
    data_root: DataRoot = None,
    sample: Annotated[int, typer.Option(min=1, help="Images of each part whose pixels are checked.")] = 100,
    full: Annotated[bool, typer.Option("--full", help="Check the pixels of all images.")] = False,
) -> None:
    """Check counts, pairs, sizes, labels and pixels of data sets. Exit status 1 where something is wrong."""
    from kdbench.data.datasets import ADAPTERS
    from kdbench.tools.verify import lines
    from kdbench.tools.verify import verify as verify_set

    root, progress = needed(data_root), progress_for(Console())
    if not root.is_dir():
        raise KdbenchError(f"--data-root {root} is not a folder.")
    chosen = split_list(names, [name for name, adapter in ADAPTERS.items() if adapter.folder(root)])
    if not chosen:
        looked = "; ".join(f"{a.name}: {', '.join(a.folders)}" for a in ADAPTERS.values())
        raise KdbenchError(f"no data set is under {root}. Their folders are called: {looked}.")
    healthy = True
    for adapter in [adapter for name in chosen for adapter in _adapters(name)]:
        report = verify_set(adapter, root, None if full else sample, progress)
        healthy &= report.healthy
        out("\n".join(lines(report)))
    if not healthy:
        raise typer.Exit(1)


@app.command()
def preview(
    names: Annotated[
        str, typer.Argument(help="Benchmarks or data sets, comma-separated, or `all` benchmarks that can be served.")
    ] = "all",
    protocol: Annotated[str, typer.Option(help="Sizes of images.")] = "mini",
    data_root: DataRoot = None,
    store: StoreOption = None,
    count: Annotated[int, typer.Option(min=1, max=12, help="Images a domain.")] = 4,
    output: Output = Path("kdbench-preview"),
) -> None:
    """Draw a contact sheet of every domain of a benchmark, or of every part of a data set: images, labels, legend."""
    from kdbench.data.datasets import ADAPTERS
    from kdbench.tools.preview import preview_benchmarks, preview_data_set

    chosen = split_list(names, servable_benchmarks(data_root) if names == "all" else None)
    benchmarks = benchmark_names()
    for name in chosen:
        if name not in ADAPTERS and name not in benchmarks and not is_benchmark_file(name):
            raise unknown("benchmark or data set", name, {*ADAPTERS, *benchmarks})
    shown = [name for name in chosen if name not in ADAPTERS or name in benchmarks]
    for path in preview_benchmarks(shown, protocol, data_root, store or default_store(), count, output):
        out(f"picture: {path}")
    for name in chosen:
        if name not in shown:
            out(f"picture: {preview_data_set(name, needed(data_root), count, output)}")


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="potsdam or vaihingen, to cut their tiles; any data set with --pack.")],
    data_root: DataRoot = None,
    pack: Annotated[bool, typer.Option("--pack", help="Write decoded pixels: more disk, no decoding.")] = False,
    pack_dir: PackDir = None,
    part: Annotated[str, typer.Option(help="Parts to pack, comma-separated. [all]")] = "",
    workers: Annotated[int, typer.Option(min=1, help="Tiles or pictures at a time.")] = 4,
) -> None:
    """Cut ISPRS tiles into crops, or pack a data set; what is done is kept, a stopped run goes on."""
    from kdbench.tools.prepare import cut_tiles
    from kdbench.tools.prepare import pack as pack_set

    root, progress, adapters = needed(data_root), progress_for(Console()), _adapters(name)
    use_packs(pack_dir)
    if part and not pack:
        raise KdbenchError("--part names what --pack packs; tiles are cut all together.")
    if pack:
        for adapter in adapters:
            with resumable():
                folders = pack_set(adapter, root, split_list(part) if part else (), workers, progress)
            for folder in folders:
                out(f"packed: {folder}")
        return
    with resumable():
        tiles = cut_tiles(name, root, workers, progress)
    rows = [(t.bands or "-", t.split, t.tile, t.crops, f"{100 * t.off_palette / t.pixels:.2f} %") for t in tiles]
    out(tabulate(rows, headers=("bands", "split", "tile", "crops", "off the palette, ignored")))
