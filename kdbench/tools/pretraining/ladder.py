"""The ladder of objectives for a foundation stand-in, label-free first, each rung probed as a frozen teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from kdbench.engine.plan import RunContext
from kdbench.engine.runner import run_cell
from kdbench.errors import KdbenchError
from kdbench.metrics import role_miou
from kdbench.models.card import Rung
from kdbench.models.registry import MODELS
from kdbench.models.toy import ToyModels
from kdbench.plugins import load_benchmark
from kdbench.tools.pretraining.courses import COURSES, LADDER
from kdbench.tools.pretraining.train import School

ROLE = "dinov2-s"


def climb(school: School, context: RunContext, benchmarks: Sequence[str], folder: Path) -> Iterator[Rung]:
    """Pretrains one stand-in by every rung for the same number of steps, and probes it."""
    for objective, recipe in LADDER:
        models = ToyModels(folder / objective.replace(" ", ""))
        course = replace(COURSES[ROLE], objective=objective, teacher=None, recipe=recipe)
        replace(school, models=models).train(course, "kdbench models ladder")
        scores = [_probe(replace(context, models=models), name) for name in benchmarks]
        yield Rung(
            objective=objective,
            source={name: round(source, 1) for name, (source, _) in zip(benchmarks, scores, strict=True)},
            targets={name: round(target, 1) for name, (_, target) in zip(benchmarks, scores, strict=True)},
        )


def _probe(context: RunContext, benchmark: str) -> tuple[float, float]:
    """mIoU on the source's own validation split, and the mean over the targets."""
    cell = context.make_cell(load_benchmark(benchmark), MODELS[ROLE])
    record = run_cell(context, cell).record
    if record.status != "done":
        raise KdbenchError(f"probing {ROLE} on {benchmark}: {record.error}")
    return role_miou(record, "source"), role_miou(record, "target")
