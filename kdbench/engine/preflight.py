"""Preflight checks of weights, batch sizes, data sets and test images; and what a dry run prints."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from kdbench.data.domainset import DomainSet
from kdbench.engine.costs import cost_of
from kdbench.engine.distributed import check_smallest, failure_of, gathered
from kdbench.engine.estimates import ATTAINED, StageTime, matrix_rate, time_of
from kdbench.engine.plan import Cell, Plan, RunContext, make_plan, stage_sets, stages_of, strides
from kdbench.errors import KdbenchError
from kdbench.identity import digest
from kdbench.method import Stage
from kdbench.models.registry import ModelSpec
from kdbench.names import amount, domain_name, model_name
from kdbench.progress import Progress
from kdbench.types import Phase


def check_together(context: RunContext, cells: list[Cell]) -> None:
    """Run all checks; what fails in one process ends all of them, because the others would wait for it."""
    mine: KdbenchError | None = None
    try:
        check(context, cells)
    except KdbenchError as error:
        mine = error
    found = next(filter(None, gathered(context.fabric, str(mine) if mine else "")), "")
    if found:
        raise mine or KdbenchError(found)


def check(context: RunContext, cells: list[Cell]) -> None:
    """Run all checks in this process, the quick ones first."""
    for model in _models(cells):
        context.models.find(model).load()
    stages = list(all_stages(context, cells))
    check_batches(context, stages)
    check_sets(context, stages)
    if context.fabric.is_global_zero:
        _check_test_images(context, cells)


def check_batches(context: RunContext, stages: Iterable[tuple[Cell, Stage]]) -> None:
    """Raise where a process would see fewer images at once than a loss needs: its term would be 0 in every step."""
    protocol = context.protocol
    for cell, stage in stages:
        what, recipe = f"{cell.id.name}, stage '{stage.name}'", protocol.recipes[stage.phase]
        count = context.sharers(recipe)
        check_smallest(what, stage.smallest_batch, recipe.batch, protocol.shared_batches if count > 1 else {}, count)


def check_sets(context: RunContext, stages: Iterable[tuple[Cell, Stage]]) -> None:
    """Open every set that a stage reads: what a later stage lacks would come up after hours of training."""
    opened: set[tuple[str, Phase]] = set()
    for cell, stage in stages:
        if (cell.id.benchmark, stage.phase) in opened:
            continue
        opened.add((cell.id.benchmark, stage.phase))
        try:
            for samples in stage_sets(context, cell, stage.phase):
                len(samples)
        except (KdbenchError, OSError) as error:
            raise KdbenchError(f"{cell.id.name}, stage '{stage.name}': {error}") from error


def all_stages(context: RunContext, cells: list[Cell]) -> Iterator[tuple[Cell, Stage]]:
    """Yield every cell with each of its stages, from networks without weights."""
    with torch.device("meta"):
        specs = {model.name: context.models.find(model).build().spec for model in _models(cells)}
    for cell in cells:
        try:
            stages = stages_of(cell, specs)
        except Exception:  # whatever is wrong with the method is the cell's own failure when it runs
            continue
        yield from ((cell, stage) for stage in stages)


def _models(cells: list[Cell]) -> list[ModelSpec]:
    models = (model for cell in cells for model in (cell.teacher, cell.student) if model)
    return list({(model.name, model.source): model for model in models}.values())


def _check_test_images(context: RunContext, cells: list[Cell]) -> None:
    """Read every real test image once, before hours of training: a broken one would fail each cell at its end."""
    if context.data_sources.data_root is None:
        return
    for domain in dict.fromkeys(d for cell in cells for d in context.data_sources.evaluated(cell.benchmark)):
        samples = context.data_sources.val(domain)
        if context.store.is_noted("readable", digest(samples.identity)):
            continue
        unreadable = list(_unreadable(samples, context.progress))
        if unreadable:
            raise KdbenchError(
                f"{len(unreadable)} of the {len(samples)} test images of '{domain.name}' cannot be read: "
                f"{unreadable[0]}"
            )
        context.store.note("readable", digest(samples.identity))


def _unreadable(samples: DomainSet, progress: Progress) -> Iterator[KdbenchError]:
    def read(index: int) -> KdbenchError | None:
        try:
            samples.read(index)
        except KdbenchError as error:
            return error
        return None

    progress.begin(f"reading the test images of {samples.domain}", len(samples))
    try:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for done, error in enumerate(pool.map(read, range(len(samples))), 1):
                if error is not None:
                    yield error
                progress.advance(done, {})
    finally:
        progress.end()


def describe(context: RunContext, cells: list[Cell]) -> Iterator[str]:
    """Yield a dry run's lines: the models, each cell's stages, which are stored or shared, and what the rest costs."""
    check_batches(context, all_stages(context, cells))
    model_set = context.protocol.model_set
    for model in _models(cells):
        yield f"{model_name(model.name, model_set)}: weights from {context.models.find(model).origin()}"
    seen: set[str] = set()
    total, times = 0, list[StageTime]()
    rate = matrix_rate(context.fabric, context.protocol.precision) if context.data_sources.data_root else 0.0
    for cell in cells:
        pair = " -> ".join(model_name(model.name, model_set) for model in (cell.teacher, cell.student) if model)
        yield f"{cell.id.name}  {pair}  seed {cell.seed}"
        try:
            total += yield from _describe_stages(context, make_plan(context, cell), seen, rate, times)
        except Exception as error:  # a plug-in's own code
            raise KdbenchError(f"{cell.id.name} cannot run: {failure_of(error, 0).text}") from error
    yield f"together {amount(total, 'FLOP')}"
    if times:
        yield from _describe_time(context, times, rate)


def _describe_time(context: RunContext, times: list[StageTime], rate: float) -> Iterator[str]:
    """Yield how long all stages take, and what to do where reading decides."""
    hours, reading = sum(each.whole for each in times) / 3600, sum(each.reading for each in times) / 3600
    yield (
        f"together about {hours:.1f} h of training, evaluation not counted: reading {reading:.1f} h with "
        f"{context.workers} workers, computing {sum(each.computing for each in times) / 3600:.1f} h at "
        f"{ATTAINED:.0%} of the {amount(rate, 'FLOP/s')} that this device reaches in matrix products"
    )
    if any(each.reading > each.computing for each in times):
        yield (
            "Where reading takes longer than computing: more --workers, or pixels that are decoded once "
            "(`kdbench data prepare DATASET --pack`)"
        )


def _describe_stages(
    context: RunContext, plan: Plan, seen: set[str], rate: float, times: list[StageTime]
) -> Generator[str, None, int]:
    """Return the operations of what is to do. rate: the device's, where times are estimated; they are added."""
    total = 0
    for step in plan.stages:
        held = None if context.store.fresh else step.folder.origin
        state = "shared" if step.key in seen else held or "to do"
        seen.add(step.key)
        data = ", ".join(f"{domain_name(s.domain, s.data_source)} ({len(s)} images)" for s in step.sets)
        size = f"{step.steps} steps of {step.recipe.batch}"
        sharers = context.sharers(step.recipe)
        size += f" ({step.recipe.batch // sharers} a process)" if sharers > 1 else ""
        trains = ", ".join(sorted(step.stage.trains))
        yield f"  {step.stage.name:<12} {state:<7} {size:<18} trains {trains}; on {data}"
        if state == "to do":
            cost = cost_of(context, plan.networks, step)
            whole = cost.total_flops(step)
            total += whole
            yield (
                f"{'':<22}{cost.trained / 1e6:.2f} of {cost.parameters / 1e6:.2f} M parameters learn; "
                f"{amount(cost.flops, 'FLOP')} an image, {amount(whole, 'FLOP')} in all; about "
                f"{amount(cost.memory, 'B')} for a batch"
            )
            if rate:
                taken = time_of(context, step, whole, rate)
                times.append(taken)
                yield (
                    f"{'':<22}about {taken.whole / 3600:.2g} h: reading {taken.reading / 3600:.2g} h "
                    f"({amount(taken.view, 's')} a view), computing {taken.computing / 3600:.2g} h"
                )
            # cost_of has brought the encoders to the stage's geometry.
            yield from _resizing(strides(plan.networks, step.stage))
    return total


def _resizing(strides: dict[str, list[int]]) -> Iterator[str]:
    """Yield a line where the encoders' maps differ in size. Which of them is resized, the loss alone knows."""
    if len(set(map(tuple, strides.values()))) > 1:
        sides = " and ".join(f"the {side}'s {', '.join(map(str, each))}" for side, each in strides.items())
        yield f"{'':<22}strides of the maps: {sides}; a loss that compares positions resizes (see the method's page)"
