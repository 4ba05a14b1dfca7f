"""Writes the stages that kdbench ships, and proves by their first steps that today's code still computes them."""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from kdbench.engine.environment import device_name
from kdbench.engine.evaluation import deployed_parts
from kdbench.engine.grid import make_context
from kdbench.engine.plan import Cell, Plan, PlannedStage, RunContext, make_plan
from kdbench.engine.runner import FinishedStage, finish_stages, make_job
from kdbench.engine.shipped import ShippedCard, ShippedStage
from kdbench.engine.states import to_half
from kdbench.engine.store import StageFolder, Store
from kdbench.engine.tracking import EventLog
from kdbench.engine.trainer import FIRST_STEPS, train
from kdbench.errors import KdbenchError
from kdbench.identity import digest
from kdbench.models.registry import find_model
from kdbench.plugins import load_benchmark, load_method
from kdbench.progress import Progress
from kdbench.spec import RunSpec, make_config


def ship_stages(context: RunContext, cells: Iterable[Cell], output: Path) -> Iterator[ShippedStage]:
    """Write every common stage of these cells once, trained where the store lacks it; one that is there is replaced."""
    if context.protocol.base:
        raise KdbenchError(
            f"protocol '{context.protocol.name}' is no shipped one: its stages cannot be shipped either."
        )
    written: set[str] = set()
    for cell in cells:
        plan = make_plan(context, cell)
        new = [stage for stage in plan.stages if stage.common and stage.key not in written]
        if not new:
            continue
        for finished in finish_stages(context, plan, EventLog()):
            if finished.planned.common:
                yield _write(context, plan, finished, output)
                written.add(finished.planned.key)
            if finished.planned is new[-1]:
                break
    if not written:
        raise KdbenchError(
            f"nothing to ship: no stage of these methods is common to all seeds under protocol '{context.protocol.id}' "
            f"(its common phases: {', '.join(context.protocol.common) or 'none'})."
        )


def _write(context: RunContext, plan: Plan, finished: FinishedStage, output: Path) -> ShippedStage:
    planned, cell = finished.planned, plan.cell
    shipped, parts = ShippedStage(output / planned.key), parts_read_later(plan, planned)
    shipped.write(
        [{part: to_half(planned.trained(part, n).state()) for part in parts} for n in range(len(planned.snapshots))],
        cell=cell.id,
        protocol=context.protocol.name,
        budget=context.protocol.budget,
        options=cell.config.model_dump(mode="json"),
        stage=finished.name,
        key_parts=planned.key_parts,
        parts=parts,
        summary=finished.summary,
    )
    return shipped


def parts_read_later(plan: Plan, planned: PlannedStage) -> list[str]:
    """Return the parts that a stage trains and a later stage or the final model reads."""
    later = plan.stages[[stage.key for stage in plan.stages].index(planned.key) + 1 :]
    read = {source.key for stage in later for source in stage.inputs.values()}
    read |= {plan.final[name].key for name in deployed_parts(plan)}
    last = len(planned.snapshots) - 1
    return [part for part in sorted(planned.stage.trains) if planned.trained(part, last).key in read]


EARLY = 10
SAME_DEVICE, OTHER_DEVICE = 3e-4, 5e-2
MEDIAN = 1e-2
"""How far losses of the first ten steps may be apart, in parts of their term's mean, where the device has the same name
and where it has not.

Rounding grows from step to step, so that later ones say little one by one: those of all 50 steps may be apart by MEDIAN
in their median. Measured on three methods, 16 images a step, mini:dinov2-b -> mini:deit-s and mini:resnet50:

                                                        first ten steps   median    largest
    another number of threads                           3e-5              1e-3      8e-2 (resnet50)
    no vector instructions, which round pixels too      2e-2              4e-3      8e-2
    a learning rate of 1.1 times the recipe's           3e-2 to 3e-1      2e-2      1e-1
"""


@dataclass(frozen=True)
class StageVerifier:
    """Repeats the first steps of shipped stages with today's code. store: for images and for stages before them."""

    store: Path
    device: str
    progress: Progress

    def verify(self, shipped: ShippedStage, adopt: bool = False) -> str:
        """Return what was found, in words; a fault is an error that says the repair.

        adopt: a stage without a current key, whose first steps agree, gets the key of today's request.
        """
        card = shipped.card
        for number in range(len(card.sha256)):
            for part in card.parts:
                shipped.load(number, part)
        context = self._context(card, shipped.path.parent)
        plan = make_plan(context, _cell(context, card))
        planned = next((stage for stage in plan.stages if stage.common and stage.stage.name == card.stage), None)
        if planned is None:
            raise KdbenchError(
                f"{shipped.path} is stale: {card.cell.label} has no common stage '{card.stage}' today. Remove it."
            )
        early, median = deviation(card.summary.first_losses, _first_losses(context, plan, planned))
        allowed = SAME_DEVICE if card.summary.device == device_name(context.fabric.device) else OTHER_DEVICE
        what = (
            f"the first steps differ by {early:.1e} (allowed {allowed:g}), all {FIRST_STEPS} by {median:.1e} in their "
            f"median (allowed {MEDIAN:g})"
        )
        agrees, stale = early <= allowed and median <= MEDIAN, planned.key != shipped.path.name
        if not stale and agrees:
            return what
        reason = f"stale, since no current request has its key ({_changes(card, planned)}), and " if stale else ""
        if not agrees:
            raise KdbenchError(f"{shipped.path} is {reason or 'not what is computed today: '}{what}. {_again(card)}")
        if not adopt:
            raise KdbenchError(f"{shipped.path} is {reason}{what}. Give it today's key with `--adopt`.")
        return f"{what}; {_adopt(shipped, card, planned)}"

    def _context(self, card: ShippedCard, folder: Path) -> RunContext:
        spec = RunSpec.model_validate({
            "methods": (), "pairs": (), "benchmarks": (), "protocol": card.protocol, "budget": card.budget,
            "device": self.device, "results": self.store, "store": self.store,
        })  # fmt: skip
        return replace(make_context(spec, self.progress), store=Store(self.store, shipped=folder))


def _cell(context: RunContext, card: ShippedCard) -> Cell:
    benchmark, teacher = load_benchmark(card.cell.benchmark), find_model(card.cell.teacher)
    if card.cell.student is None:
        return context.make_cell(benchmark, teacher)
    plugin = load_method(card.cell.method).usable()
    config = make_config(plugin, card.options)
    return context.make_cell(benchmark, teacher, find_model(card.cell.student), plugin, config)


def _first_losses(context: RunContext, plan: Plan, planned: PlannedStage) -> dict[str, list[float]]:
    """Train a stage's first steps, after all stages before it, and return their losses."""
    before = finish_stages(context, plan, EventLog())
    for stage in plan.stages:
        if stage is planned:
            break
        next(before)
    job = make_job(context, plan, planned)
    with tempfile.TemporaryDirectory() as folder:
        begun = replace(
            job,
            batches=lambda start: islice(job.batches(start), FIRST_STEPS),
            snapshots=(),
            checkpoint_every=planned.steps,
        )
        return train(context.fabric, begun, StageFolder(Path(folder)), context.progress).first_losses


def deviation(stored: Mapping[str, list[float]], found: Mapping[str, list[float]]) -> tuple[float, float]:
    """Return how far two stages' losses are apart: the largest of the first ten steps, and the median of all steps.

    Both are in parts of a term's stored mean, and of the term where they are largest.
    """
    if {name: len(values) for name, values in stored.items()} != {name: len(values) for name, values in found.items()}:
        return math.inf, math.inf
    apart = [
        [abs(a - b) / _scale(values) for a, b in zip(values, found[name], strict=True)]
        for name, values in stored.items()
    ]
    return max(max(steps[:EARLY]) for steps in apart), max(map(statistics.median, apart))


def _scale(values: list[float]) -> float:
    """Return a term's mean size; a term that has not begun yet has none, and must then be zero again."""
    return sum(map(abs, values)) / len(values) or sys.float_info.min


def _changes(card: ShippedCard, planned: PlannedStage) -> str:
    """Name what is in another way in today's key."""
    ours, theirs = (
        {name: digest(part) for name, part in parts.items()} for parts in (planned.key_parts, card.key_parts)
    )
    changed = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    return f"changed: {', '.join(changed)}"


def _again(card: ShippedCard) -> str:
    pair = f"{card.cell.teacher}:{card.cell.student}"
    settings = "".join(f" --set {text}" for text in card.cell.variant.split(",") if "=" in text)
    return (
        "If that is meant, remove the folder and ship the stage again: kdbench models ship "
        f"--method {card.cell.method} --pair {pair} --protocol {card.protocol} --budget {card.budget}{settings}"
    )


def _adopt(shipped: ShippedStage, card: ShippedCard, planned: PlannedStage) -> str:
    """Give a stage today's key."""
    target = shipped.path.with_name(planned.key)
    if target.exists():
        raise KdbenchError(f"{shipped.path} cannot have today's key: {target} has it. Remove one of the two.")
    shipped.path.rename(target)
    ShippedStage(target).write_card(card.model_copy(update={"key_parts": planned.key_parts}))
    return f"adopted as {target.name} ({_changes(card, planned)})"
