"""What is looked at before the first cell of a run: weights, batches, data sets, test images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from kdbench.data.domainset import DomainSet
from kdbench.engine.distributed import check_smallest, gathered
from kdbench.engine.plan import Cell, RunContext, stage_sets, stages_of
from kdbench.errors import KdbenchError
from kdbench.identity import digest
from kdbench.method import Stage
from kdbench.models.registry import ModelSpec
from kdbench.progress import Progress
from kdbench.types import Phase


def models_of(cells: list[Cell]) -> list[ModelSpec]:
    """Every model of the run, once."""
    roles = (role for cell in cells for role in (cell.teacher, cell.student) if role)
    return list({role.name: role for role in roles}.values())


def _check(context: RunContext, cells: list[Cell]) -> None:
    """The quick looks first."""
    for role in models_of(cells):
        context.models.check(role.name)
    stages = list(all_stages(context, cells))
    check_batches(context, stages)
    check_sets(context, stages)
    if context.fabric.is_global_zero:
        check_tests(context, cells)


def check_together(context: RunContext, cells: list[Cell]) -> None:
    """All checks; what fails in one process ends all of them, because the others would wait for it."""
    mine: KdbenchError | None = None
    try:
        _check(context, cells)
    except KdbenchError as error:
        mine = error
    found = next(filter(None, gathered(context.fabric, str(mine) if mine else "")), "")
    if found:
        raise mine or KdbenchError(found)


def check_batches(context: RunContext, stages: Iterable[tuple[Cell, Stage]]) -> None:
    """Raises where a process would see fewer images at once than a loss needs: its term would be 0 in every step."""
    batches: dict[str, int] = {phase: recipe.batch for phase, recipe in context.protocol.recipes.items()}
    for cell, stage in stages:
        what = f"{cell.name}, stage '{stage.name}'"
        check_smallest(what, stage.smallest_batch, stage.phase, batches, context.fabric.world_size)


def check_sets(context: RunContext, stages: Iterable[tuple[Cell, Stage]]) -> None:
    """Opens every set that a stage of a cell reads: what a later stage misses would come up after hours of training."""
    opened: set[tuple[str, Phase]] = set()
    for cell, stage in stages:
        if (cell.benchmark.name, stage.phase) not in opened:
            opened.add((cell.benchmark.name, stage.phase))
            _open(context, cell, stage)


def all_stages(context: RunContext, cells: list[Cell]) -> Iterator[tuple[Cell, Stage]]:
    """Every cell with each of its stages, from networks without weights."""
    with torch.device("meta"):
        specs = {role.name: context.models.build(role).spec for role in models_of(cells)}
    for cell in cells:
        try:
            stages = stages_of(cell, specs)
        except Exception:  # whatever is wrong with the method is the cell's own failure when it runs
            continue
        yield from ((cell, stage) for stage in stages)


def _open(context: RunContext, cell: Cell, stage: Stage) -> None:
    try:
        for samples in stage_sets(context, cell, stage.phase):
            len(samples)
    except (KdbenchError, OSError) as error:
        raise KdbenchError(f"{cell.name}, stage '{stage.name}': {error}") from error


def check_tests(context: RunContext, cells: list[Cell]) -> None:
    """Reads every real test image once, before hours of training: a broken one would fail each cell at its end."""
    if context.data_sources.data_root is None:
        return
    for domain in dict.fromkeys(d for cell in cells for d in context.data_sources.evaluated(cell.benchmark)):
        samples = context.data_sources.val(domain)
        if context.store.is_noted("readable", digest(samples.identity)):
            continue
        broken = list(_unreadable(samples, context.progress))
        if broken:
            raise KdbenchError(
                f"{len(broken)} of the {len(samples)} test images of '{domain.name}' cannot be read: {broken[0]}"
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
