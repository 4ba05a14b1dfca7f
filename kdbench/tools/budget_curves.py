"""Measures mIoU against the steps of one phase, from which a protocol's budgets are chosen.

The curves of docs/mini.md, e.g. those of the proxy phase:

    spec = RunSpec(methods=(METHOD,), pairs=(PAIR,), benchmarks=(BENCHMARK,), references=False, ...)
    write_curves(spec, Phase.PROXY, Path("docs/pictures"))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd
from filelock import FileLock
from matplotlib.figure import Figure

from kdbench.engine.grid import expand, make_context
from kdbench.engine.plan import Cell, RunContext, make_plan
from kdbench.engine.runner import run_cell
from kdbench.errors import KdbenchError
from kdbench.files import save_atomically, write_atomically
from kdbench.metrics import role_miou
from kdbench.progress import Silent
from kdbench.protocol import Protocol
from kdbench.spec import RunSpec
from kdbench.types import Phase

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Point:
    """One cell at a scaled budget; mIoU in percent, mean of the targets and of the sources."""

    method: str
    benchmark: str
    seed: int
    steps: int
    targets: float
    source: float


def scaled(protocol: Protocol, phase: Phase, factor: float) -> Protocol:
    """Return the protocol with another number of steps in one phase; warm-up and schedule stretch with it."""
    recipe = protocol.recipes[phase]
    steps, warmup = max(1, round(recipe.steps * factor)), round(recipe.warmup * factor)
    return protocol.model_copy(
        update={"recipes": {**protocol.recipes, phase: recipe.model_copy(update={"steps": steps, "warmup": warmup})}}
    )


def measure(
    context: RunContext, cells: Sequence[Cell], phase: Phase, factors: Sequence[float] = FACTORS
) -> Iterator[Point]:
    """Run each cell at each budget of the phase. No records are written: these are no results of the protocol."""
    for cell in cells:
        phases = [step.stage.phase for step in make_plan(context, cell).stages]
        if phase not in phases:
            raise KdbenchError(f"{cell.id.label} has no stage in the phase {phase}. Its phases: {', '.join(phases)}.")
    for factor in factors:
        protocol = scaled(context.protocol, phase, factor)
        there = replace(context, protocol=protocol)
        for cell in cells:
            record = run_cell(there, replace(cell, id=replace(cell.id, protocol_id=protocol.id))).record
            if record.status != "done":
                raise KdbenchError(f"{cell.id.name} at {factor} times the {phase} budget: {record.error}")
            yield Point(
                cell.id.label,
                cell.benchmark.name,
                cell.seed,
                protocol.recipes[phase].steps,
                role_miou(record, "target"),
                role_miou(record, "source"),
            )


def add_point(path: Path, point: Point) -> pd.DataFrame:
    """Add a point to the table (CSV) at path and return the table; a point measured again replaces its older row."""
    row = pd.DataFrame([asdict(point)]).round(2)
    with FileLock(f"{path}.lock"):
        table = pd.concat([pd.read_csv(path), row]) if path.exists() else row
        table = table.drop_duplicates(["method", "benchmark", "seed", "steps"], keep="last")
        table = table.sort_values(["benchmark", "method", "seed", "steps"], ignore_index=True)
        write_atomically(path, table.to_csv(index=False).encode())
    return table


def write_curves(spec: RunSpec, phase: Phase, output: Path) -> Path:
    """Write a table (CSV) and a picture (PNG) of a request's cells into a folder; return the table's path.

    Both are written after every point, and further methods, variants and seeds are added to them. Cells are the
    methods' rows, in phase fit_teacher the teacher's.
    """
    context = make_context(spec, Silent())
    cells = [cell for cell in expand(spec, context) if (cell.method is None) == (phase == Phase.FIT_TEACHER)]
    (pair,) = spec.pairs
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{context.protocol.id}-{phase}-{pair.replace(':', '--')}.csv"
    title = f"Steps of {phase}, {' to '.join('mini:' + name for name in pair.split(':'))}"
    for point in measure(context, cells, phase):
        curves = draw_curves(add_point(path, point), title, context.protocol.recipes[phase].steps)
        save_atomically(path.with_suffix(".png"), curves.savefig)
    return path


def draw_curves(table: pd.DataFrame, title: str, chosen: int) -> Figure:
    """Draw mIoU on the targets against steps: a line a method and benchmark, with the deviation over seeds.

    table: columns method, benchmark, seed, steps, targets. chosen: the protocol's steps, a vertical line.
    """
    import seaborn

    lines = table.assign(line=table.method + ", " + table.benchmark)
    figure = Figure(figsize=(7.2, 4.0), dpi=110, layout="constrained")
    axes = figure.subplots()
    seaborn.lineplot(
        lines, x="steps", y="targets", hue="line", errorbar="sd", marker="o", palette="colorblind", ax=axes
    )
    axes.axvline(chosen, color="0.4", linestyle=":", linewidth=1)
    axes.set(xscale="log", xlabel="steps (dotted: the protocol's)", ylabel="mIoU (%), mean of the targets")
    axes.set_xticks(sorted(table.steps.unique()), [str(steps) for steps in sorted(table.steps.unique())])
    axes.minorticks_off()
    axes.set_title(title, fontsize=11, loc="left")
    axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.25)
    return figure
