"""The command line: arguments to a request, results to text. The only place that prints and exits.

torch is imported inside the verbs that compute, so that boards and help start at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from kdbench import __version__
from kdbench.cli import boards, check, data, models, runs
from kdbench.cli.console import complain, out
from kdbench.errors import KdbenchError

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
for verb in (runs.run, boards.leaderboard, check.check):
    app.command()(verb)
app.command("list")(boards.list_)
app.add_typer(data.app, name="data")
app.add_typer(models.app, name="models")


def main() -> None:
    """The entry point: a KdbenchError is printed without a traceback, exit status 2."""
    try:
        app()
    except KdbenchError as error:
        complain(str(error))
        sys.exit(error.status)
    except OSError as error:
        complain(f"{error.strerror or error} ({error.filename})")
        sys.exit(1)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Knowledge distillation for domain-generalised semantic segmentation, under one protocol."""
    if show:
        out(f"kdbench {__version__}")
        raise typer.Exit
