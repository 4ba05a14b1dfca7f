"""`kdbench models`: the toy models of protocols mini and smoke."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from kdbench.cli.console import Device, StoreOption, out, progress_for
from kdbench.errors import KdbenchError
from kdbench.files import default_store
from kdbench.spec import split_list

app = typer.Typer(no_args_is_help=True, help="Toy models: pretrain and verify them.", rich_markup_mode=None)


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


@app.command("verify")
def verify_models(
    weights_dir: Annotated[Path | None, typer.Option(help="A folder of toy models. [those shipped]")] = None,
) -> None:
    """Compare every toy model's weights with its card and its architecture. Exit status 1 on a fault."""
    from kdbench.models.registry import TOY_MODELS
    from kdbench.models.toy import SHIPPED
    from kdbench.tools.pretraining.pretrainer import verify_toy_model

    faults = 0
    for name in TOY_MODELS:
        try:
            card = verify_toy_model(name, weights_dir or SHIPPED)
            out(f"ok    {name}: {card.bytes / 1e6:.2f} MB, sha256 {card.sha256}")
        except KdbenchError as error:
            faults += 1
            out(f"FAIL  {error}")
    if faults:
        raise typer.Exit(1)
