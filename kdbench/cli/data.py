"""`kdbench data`: look at the data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from kdbench.cli.shared import DataRoot, Device, StoreOption, out, servable
from kdbench.places import default_store
from kdbench.spec import split_list

app = typer.Typer(no_args_is_help=True, help="Look at the data.", rich_markup_mode=None)


@app.command("causes")
def draw_causes(
    source: Annotated[str, typer.Argument(help="A domain of the built-in world; `kdbench list domains`.")],
    target: Annotated[str, typer.Argument(help="Another one of the same kind.")],
    index: Annotated[int, typer.Option(min=0, help="Which scene.")] = 4,
    output: Annotated[Path, typer.Option(help="A folder.")] = Path("kdbench-causes"),
) -> None:
    """A picture of a domain shift cause by cause: palette, texture, illumination, weather, sensor."""
    from kdbench.engine.preview import write_causes

    out(f"picture: {write_causes(source, target, index, (128, 256), output)}")


@app.command()
def preview(
    benchmark: Annotated[
        str, typer.Option(help="Benchmarks, comma-separated, or `all` that the world serves.")
    ] = "all",
    protocol: Annotated[str, typer.Option(help="Sizes of images.")] = "mini",
    data_root: DataRoot = None,
    store: StoreOption = None,
    count: Annotated[int, typer.Option(min=1, max=12, help="Images a domain.")] = 4,
    output: Annotated[Path, typer.Option(help="A folder.")] = Path("kdbench-preview"),
) -> None:
    """A contact sheet of every domain of a benchmark: images with their labels, and the legend."""
    from kdbench.engine.preview import write_previews

    names = split_list(benchmark, servable(data_root))
    for path in write_previews(names, protocol, data_root, store or default_store(), count, output):
        out(f"picture: {path}")


@app.command()
def distances(
    kind: Annotated[
        Literal["all", "street", "aerial"], typer.Option(help="Which domains are compared with each other.")
    ] = "all",
    store: StoreOption = None,
    device: Device = "auto",
    output: Annotated[Path, typer.Option(help="A folder.")] = Path("kdbench-distances"),
) -> None:
    """How far apart the built-in world's domains lie: a reference network trained on each, tested on every other.

    Writes a matrix of mIoU (CSV) and its heat map (PNG) for each kind of domain.
    """
    from kdbench.display import progress_for
    from kdbench.engine.distances import Distances
    from kdbench.report.charts import heat_map

    measured = Distances(store or default_store(), device, progress_for(Console()))
    output.mkdir(parents=True, exist_ok=True)
    for name in ("street", "aerial") if kind == "all" else (kind,):
        matrix = measured.matrix(name)
        matrix.round(1).to_csv(output / f"distances-{name}.csv")
        heat_map(matrix, "trained on", "tested on", f"mIoU (%) of a reference network, {name} domains").savefig(
            output / f"distances-{name}.png"
        )
        out(matrix.round(1).to_markdown())
        out(f"written: {output}/distances-{name}.csv and .png")
