"""`kdbench run`: train, evaluate and rank."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from kdbench import __version__
from kdbench.api import make_request
from kdbench.cli.boards import BoardRequest, print_boards
from kdbench.cli.console import (
    DataRoot,
    Device,
    PackDir,
    Results,
    StoreOption,
    complain,
    out,
    print_line,
    progress_for,
    resumable,
    use_packs,
)
from kdbench.errors import KdbenchError
from kdbench.protocol import Protocol
from kdbench.spec import RunSpec

if TYPE_CHECKING:
    from kdbench.engine.grid import Done
    from kdbench.engine.plan import RunContext


def run(
    method: Annotated[str, typer.Option(help="Methods by name or file, comma-separated, or `all`.")],
    pair: Annotated[
        str,
        typer.Option(
            help="teacher:student, comma-separated, e.g. dinov2-l:resnet50; under --protocol paper also timm/NAME. "
            "Your own models: kdbench.register_model."
        ),
    ],
    benchmark: Annotated[
        str, typer.Option(help="Benchmarks, comma-separated, or `all` that the data source serves.")
    ] = "all",
    protocol: Annotated[str, typer.Option(help="smoke, mini, paper, paper-text, or your own: a YAML file.")] = "mini",
    budget: Annotated[
        Literal["published", "equal"],
        typer.Option(
            help="published: the protocol's steps in every phase; equal: as many images through every method's student."
        ),
    ] = "published",
    resampling: Annotated[
        Literal["bicubic", "pseudo-inverse"],
        typer.Option(
            help="How patches and positions change their size. bicubic: as GKD's code; pseudo-inverse: as FlexiViT, "
            "which keeps the response."
        ),
    ] = "bicubic",
    data_root: DataRoot = None,
    pack_dir: PackDir = None,
    seed: Annotated[str, typer.Option(help="Seeds, comma-separated; 0-4 is a range.")] = "0",
    set: Annotated[list[str] | None, typer.Option(help="option=value, or method.option=value; repeatable.")] = None,
    as_: Annotated[str, typer.Option("--as", help="A label for the variant that --set makes.")] = "",
    label_fraction: Annotated[
        str, typer.Option(help="Part of the labelled source images that has labels, e.g. 1/16; drawn by the seed.")
    ] = "1",
    label_map: Annotated[
        list[str] | None, typer.Option(help="dataset=table, for a set with several published label maps; repeatable.")
    ] = None,
    student_from: Annotated[
        Path | None, typer.Option(help="A file of weights from which the methods' student starts, e.g. a released one.")
    ] = None,
    stages_done: Annotated[
        str | None, typer.Option(help="The first stages, comma-separated, that those weights have been through.")
    ] = None,
    steps_scale: Annotated[
        float, typer.Option(help="Factor on the steps of every stage, e.g. 0.01 to rehearse a long run.")
    ] = 1.0,
    until: Annotated[
        str, typer.Option(help="Stop after this stage, without a record: it stays in the store, where others find it.")
    ] = "",
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that read images ahead. [a process's share of cores]"),
    ] = None,
    weights_dir: Annotated[
        Path | None, typer.Option(help="Folder with weights of real models, for --protocol paper. [timm's hub]")
    ] = None,
    device: Device = "auto",
    devices: Annotated[
        int, typer.Option(min=1, help="Processes, one a device; under torchrun or srun as many as it starts.")
    ] = 1,
    compile: Annotated[
        bool, typer.Option("--compile", help="Train encoders through torch.compile; refused where it changes them.")
    ] = False,
    results: Results = None,
    store: StoreOption = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Compute everything again, also stages that come with kdbench.")
    ] = False,
    references: Annotated[bool, typer.Option(help="Also run the teacher and the undistilled student.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run.")] = False,
    pictures: Annotated[bool, typer.Option("--pictures", help="Write pictures of predictions side by side.")] = False,
    watch: Annotated[
        str | None,
        typer.Option(
            help="Trackers besides the JSON lines, comma-separated: tensorboard, wandb, mlflow; or none. [tensorboard]"
        ),
    ] = None,
) -> None:
    """Train, test and rank: the grid of methods, pairs, benchmarks and seeds. What is done already is skipped."""
    options: dict[str, Any] = locals()
    dry_run, pictures = options.pop("dry_run"), options.pop("pictures")
    use_packs(options.pop("pack_dir"))
    with resumable():
        failed = _run(make_request(complain, **options), dry_run, pictures)
    if failed:
        why = "" if until else "; the board says why"
        complain(f"{failed} cell{'s' * (failed > 1)} failed{why}. The same command tries them again.")
        raise typer.Exit(1)


def _run(spec: RunSpec, dry_run: bool, pictures: bool) -> int:
    """Run or describe the cells; return how many failed."""
    from kdbench.engine.grid import expand, make_context, run_grid
    from kdbench.engine.preflight import describe
    from kdbench.report.tables import result_line

    console = Console()
    context = make_context(spec, progress_for(console))
    if pictures and context.fabric.world_size > 1:
        raise KdbenchError("--pictures are drawn by one process: run the same command again without several.")
    cells = expand(spec, context)
    if not context.fabric.is_global_zero:
        # The first process prints for all.
        return 0 if dry_run else sum(done.record.status == "failed" for done in run_grid(spec, context, cells))
    out(_heading(context.protocol, len(cells), spec))
    if dry_run:
        for line in describe(context, cells):
            out(line)
        return 0
    ran = []
    for done in run_grid(spec, context, cells):
        ran.append(done)
        print_line(console, result_line(done.record, done.cached))
    if spec.until:
        out(f"Stopped after the stage '{spec.until}', as asked. The same command without --until goes on from there.")
    else:
        _show(console, context, spec, ran, pictures)
    return sum(done.record.status == "failed" for done in ran)


def _show(console: Console, context: RunContext, spec: RunSpec, ran: Sequence[Done], pictures: bool) -> None:
    """Print the boards, draw the pictures, and say where losses can be watched."""
    from kdbench.engine.tracking import DEFAULT, logdir

    console.print()
    benchmarks = [done.cell.id.benchmark for done in ran]
    print_boards(BoardRequest(spec.results, context.protocol.id, benchmarks, list(spec.pairs), terminal=console))
    if pictures:
        from kdbench.engine.pictures import write_pictures

        for path in write_pictures(context, [done.cell for done in ran if done.record.status == "done"], spec):
            out(f"picture: {path}")
    if not all(done.cached for done in ran) and DEFAULT in spec.watch and logdir(spec.results).is_dir():
        out(f"watch: tensorboard --logdir {logdir(spec.results)}")


def _heading(protocol: Protocol, cells: int, spec: RunSpec) -> str:
    where = f"the data sets under {spec.data_root}" if spec.data_root else "the built-in synthetic world"
    return f"kdbench {__version__}: {cells} cells, protocol {protocol.id} ({protocol.summary}), {where}"
