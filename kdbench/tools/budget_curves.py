"""mIoU against the steps of one phase: what a protocol's budgets are chosen from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd
from filelock import FileLock

from kdbench.engine.plan import Cell, RunContext, make_plan
from kdbench.engine.runner import run_cell
from kdbench.errors import KdbenchError
from kdbench.files import write_atomically
from kdbench.metrics import role_miou
from kdbench.protocol import Protocol
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
    """The protocol with another number of steps in one phase; warm-up and schedule stretch with it."""
    recipe = protocol.recipes[phase]
    steps, warmup = max(1, round(recipe.steps * factor)), round(recipe.warmup * factor)
    return protocol.model_copy(
        update={"recipes": {**protocol.recipes, phase: recipe.model_copy(update={"steps": steps, "warmup": warmup})}}
    )


def measure(
    context: RunContext, cells: Sequence[Cell], phase: Phase, factors: Sequence[float] = FACTORS
) -> Iterator[Point]:
    """Runs each cell at each budget of the phase. No records are written: these are no results of the protocol."""
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
    """The table (CSV) at path with one more point, written back; a point measured again replaces its older row."""
    row = pd.DataFrame([asdict(point)]).round(2)
    with FileLock(f"{path}.lock"):
        table = pd.concat([pd.read_csv(path), row]) if path.exists() else row
        table = table.drop_duplicates(["method", "benchmark", "seed", "steps"], keep="last")
        table = table.sort_values(["benchmark", "method", "seed", "steps"], ignore_index=True)
        write_atomically(path, table.to_csv(index=False).encode())
    return table
