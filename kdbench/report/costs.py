"""What a method cost, as means over its seeds, and who is worth its cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kdbench.metrics import mean_of
from kdbench.records import Record, Result, RunInfo


@dataclass(frozen=True)
class Cost:
    """Of the training, all stages of a method together; None where a record does not have it.

    images, passes: training images, and how often the student saw one. flops: floating point operations, forward and
    back. seconds: of the stages, wherever they were computed. memory_mb: the highest peak of a stage.
    inference_flops, latency_ms: what is deployed, on one image.
    """

    images: float | None = None
    passes: float | None = None
    flops: float | None = None
    seconds: float | None = None
    memory_mb: float | None = None
    inference_flops: float | None = None
    latency_ms: float | None = None


class Costly(Protocol):
    """What has a score and a cost."""

    @property
    def method(self) -> str: ...
    @property
    def mean(self) -> float | None: ...
    @property
    def cost(self) -> Cost: ...


def mean_cost(records: Sequence[Record]) -> Cost:
    """The mean over the seeds of one method, of what all of them have."""
    held = [(record.result, record.run) for record in records if record.result]

    def mean(measure: Callable[[Result, RunInfo], float | None]) -> float | None:
        return mean_of(measure(result, run) for result, run in held) if len(held) == len(records) else None

    return Cost(
        images=mean(lambda result, run: _sum(stage.images for stage in result.stages)),
        passes=mean(lambda result, run: _sum(stage.student_forwards for stage in result.stages)),
        flops=mean(lambda result, run: _sum(stage.flops for stage in result.stages)),
        seconds=mean(lambda result, run: _sum(run.stage_seconds.get(stage.name) for stage in result.stages)),
        memory_mb=mean(_memory),
        inference_flops=mean(lambda result, run: result.inference_flops),
        latency_ms=mean(lambda result, run: run.latency_ms),
    )


def pareto(rows: Iterable[Costly]) -> set[str]:
    """The methods that no other beats at once in mean mIoU and in operations of training (Pareto)."""
    known = [(row.method, row.mean, row.cost.flops) for row in rows]
    there = [(method, mean, flops) for method, mean, flops in known if mean is not None and flops is not None]
    return {
        method
        for method, mean, flops in there
        if not any(m >= mean and f <= flops and (m, f) != (mean, flops) for _, m, f in there)
    }


def _memory(result: Result, run: RunInfo) -> float | None:
    there = [run.stage_memory_mb.get(stage.name) for stage in result.stages]
    return None if not there or None in there else max(value for value in there if value is not None)


def _sum(values: Iterable[float | None]) -> float | None:
    there = list(values)
    known = [value for value in there if value is not None]
    return sum(known) if known and len(known) == len(there) else None
