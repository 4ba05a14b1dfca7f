"""`kdbench models`: the mini zoo's stand-ins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from tabulate import tabulate

from kdbench.cli.shared import Device, StoreOption, out, servable
from kdbench.errors import KdbenchError
from kdbench.files import write_atomically
from kdbench.paths import default_store
from kdbench.spec import RunSpec, split_list

app = typer.Typer(no_args_is_help=True, help="The mini zoo's stand-ins.", rich_markup_mode=None)


@app.command("train")
def train_models(
    names: Annotated[str, typer.Argument(help="Stand-ins, comma-separated, or `all`; teachers first.")],
    store: StoreOption = None,
    output: Annotated[Path, typer.Option(help="A folder for the weights and their cards.")] = Path("kdbench-zoo"),
    device: Device = "auto",
) -> None:
    """Pretrain stand-ins of the mini zoo as those shipped were; the same command continues what was stopped."""
    from kdbench.cli.console import progress_for
    from kdbench.tools.pretraining.courses import COURSES, find_course
    from kdbench.tools.pretraining.train import make_school

    console = Console()
    school = make_school(store or default_store(), output, device, progress_for(console))
    for course in [find_course(name) for name in split_list(names, list(COURSES))]:
        card = school.train(course)
        out(f"{card.role}: {card.parameters / 1e6:.2f} M parameters, {card.seconds:.0f} s, sha256 {card.sha256[:16]}")


@app.command("verify")
def verify_models(
    weights_dir: Annotated[Path | None, typer.Option(help="A folder of stand-ins. [those shipped]")] = None,
) -> None:
    """Compare every stand-in's weights with its card and its architecture. Exit status 1 on a fault."""
    from kdbench.models.card import SHIPPED
    from kdbench.models.registry import TOY_MODELS
    from kdbench.models.toy import ToyModels

    models, faults = ToyModels(weights_dir or SHIPPED), 0
    for name in TOY_MODELS:
        try:
            card = models.check(name)
            out(f"ok    {name}: {card.bytes / 1e6:.2f} MB, sha256 {card.sha256}")
        except KdbenchError as error:
            faults += 1
            out(f"FAIL  {error}")
    if faults:
        raise typer.Exit(1)


@app.command("ladder")
def climb_ladder(
    store: StoreOption = None,
    device: Device = "auto",
    output: Annotated[Path, typer.Option(help="A folder.")] = Path("kdbench-ladder"),
    cards: Annotated[
        Path | None, typer.Option(help="A folder of stand-ins, whose cards are told what each rung gave.")
    ] = None,
) -> None:
    """What each pretraining objective gives a foundation stand-in, label-free first: one row a rung."""
    from kdbench.cli.console import progress_for
    from kdbench.engine.grid import make_context
    from kdbench.models.toy import ToyModels
    from kdbench.tools.pretraining.ladder import climb
    from kdbench.tools.pretraining.train import make_school

    progress, place, names = progress_for(Console()), store or default_store(), servable(None)
    request = RunSpec(methods=(), pairs=(), benchmarks=(), device=device, results=output, store=place)
    if cards is not None:
        # Before an hour's work: a folder that is no zoo says so.
        ToyModels(cards).cards()
    rungs = []
    for rung in climb(make_school(place, output, device, progress), make_context(request, progress), names, output):
        rungs.append(rung)
        out(f"{rung.objective}: targets " + ", ".join(f"{n} {rung.targets[n]:.1f}" for n in names))
    rows = [
        {"objective": rung.objective}
        | {f"{n}: {k}": v[n] for n in names for k, v in (("source", rung.source), ("targets", rung.targets))}
        for rung in rungs
    ]
    text = tabulate(rows, headers="keys", tablefmt="github")
    write_atomically(output / "ladder.md", (text + "\n").encode())
    out(f"{text}\nwritten: {output / 'ladder.md'}")
    if cards is not None:
        out(f"on the cards in {cards}: " + ", ".join(card.role for card in ToyModels(cards).note_ladder(rungs)))
