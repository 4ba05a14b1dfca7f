"""`kdbench models`: the toy models of protocols mini and smoke, and the stages that come with kdbench."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from kdbench.api import make_request
from kdbench.cli.console import Device, StoreOption, complain, out, progress_for
from kdbench.errors import KdbenchError
from kdbench.files import default_store
from kdbench.spec import split_list

if TYPE_CHECKING:
    from kdbench.engine.shipped import ShippedStage

app = typer.Typer(
    no_args_is_help=True, help="Toy models and shipped stages: make and verify them.", rich_markup_mode=None
)


@app.command("train")
def train_models(
    names: Annotated[str, typer.Argument(help="Toy models, comma-separated, or `all`; teachers first.")],
    store: StoreOption = None,
    output: Annotated[Path, typer.Option(help="A folder for weights and cards.")] = Path("kdbench-models"),
    device: Device = "auto",
) -> None:
    """Pretrain toy models as the shipped ones were; the same command continues what was stopped."""
    from kdbench.tools.pretraining.configs import CONFIGS, find_config
    from kdbench.tools.pretraining.pretrainer import make_pretrainer

    pretrainer = make_pretrainer(store or default_store(), output, device, progress_for(Console()))
    for config in [find_config(name) for name in split_list(names, list(CONFIGS))]:
        card = pretrainer.train(config)
        out(f"{card.name}: {card.parameters / 1e6:.2f} M parameters, {card.seconds:.0f} s, sha256 {card.weights}")


@app.command("ship")
def ship_stages(
    method: Annotated[str, typer.Option(help="Methods, comma-separated.")],
    pair: Annotated[str, typer.Option(help="teacher:student, comma-separated.")],
    protocol: Annotated[str, typer.Option(help="A protocol that has phases common to all seeds.")] = "mini",
    benchmark: Annotated[str, typer.Option(help="Benchmarks, comma-separated, or `all`.")] = "all",
    budget: Annotated[Literal["published", "equal"], typer.Option(help="As of `kdbench run`.")] = "published",
    set: Annotated[list[str] | None, typer.Option(help="option=value, or method.option=value; repeatable.")] = None,
    output: Annotated[Path | None, typer.Option(help="A folder of stages. [the package's own]")] = None,
    store: StoreOption = None,
    device: Device = "auto",
) -> None:
    """Write the stages that are common to all seeds as they come with kdbench; what the store lacks is trained."""
    options: dict[str, Any] = locals()
    output = options.pop("output")
    from kdbench.engine.grid import expand, make_context
    from kdbench.engine.shipped import SHIPPED
    from kdbench.tools import shipping

    spec = make_request(complain, **options, references=False)
    context = make_context(spec, progress_for(Console()))
    for stage in shipping.ship_stages(context, expand(spec, context), output or SHIPPED):
        out(f"{stage.path}: {_described(stage)}")


@app.command("verify")
def verify_models(
    weights_dir: Annotated[Path | None, typer.Option(help="A folder of toy models. [those shipped]")] = None,
    stages: Annotated[Path | None, typer.Option(help="A folder of stages. [those shipped]")] = None,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Give stages of an older key today's where their first steps agree.")
    ] = False,
    store: StoreOption = None,
    device: Device = "auto",
) -> None:
    """Compare toy models with their cards and shipped stages with their first steps. Exit status 1 on a fault."""
    from kdbench.engine.shipped import SHIPPED as SHIPPED_STAGES
    from kdbench.engine.shipped import shipped_stages
    from kdbench.models.registry import MODELS, TOY_MODELS
    from kdbench.models.toy import SHIPPED
    from kdbench.tools.pretraining.pretrainer import verify_toy_model
    from kdbench.tools.shipping import StageVerifier

    def toy_model(name: str) -> str:
        card = verify_toy_model(MODELS[name], weights_dir or SHIPPED)
        return f"{name}: {card.bytes / 1e6:.2f} MB, sha256 {card.sha256}"

    def stage(held: ShippedStage) -> str:
        return f"{_described(held)}: {verifier.verify(held, adopt)}"

    verifier = StageVerifier(store or default_store(), device, progress_for(Console()))
    checks = [partial(toy_model, name) for name in TOY_MODELS]
    checks += [partial(stage, held) for held in shipped_stages(stages or SHIPPED_STAGES)]
    faults = 0
    for check in checks:
        try:
            out(f"ok    {check()}")
        except KdbenchError as error:
            faults += 1
            out(f"FAIL  {error}")
    if faults:
        raise typer.Exit(1)


def _described(stage: ShippedStage) -> str:
    card = stage.card
    size = sum(file.stat().st_size for file in stage.path.iterdir()) / 1e6
    options = f"[{card.cell.variant}]" if card.cell.variant else ""
    return (
        f"{card.stage} of {card.cell.method}{options}, {card.cell.pair}, protocol {card.protocol}: "
        f"{', '.join(card.parts)}, {size:.2f} MB, computed on {card.summary.device}"
    )
