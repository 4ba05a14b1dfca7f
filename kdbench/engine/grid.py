"""Many cells over one store: what is asked for, the reference cells of each pair, and what is done already."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.benchmark import Benchmark
from kdbench.data.datasets import ADAPTERS
from kdbench.data.sources import DataSources
from kdbench.data.subset import parse_fraction
from kdbench.engine.costs import cost_of
from kdbench.engine.distributed import check_shares, failure_of, make_fabric, processes
from kdbench.engine.event_log import EventLog
from kdbench.engine.memory import release_memory
from kdbench.engine.plan import Cell, Plan, RunContext, make_plan, strides
from kdbench.engine.preflight import all_stages, check_batches, check_together, models_of
from kdbench.engine.runner import CellRun, Outcome
from kdbench.engine.store import Store
from kdbench.engine.tracking import Trackers
from kdbench.errors import KdbenchError, unknown
from kdbench.files import save_atomically, write_atomically
from kdbench.method import MethodConfig
from kdbench.models.pretrained import Pretrained, Weights
from kdbench.models.registry import Pair, find_model, parse_pair
from kdbench.models.toy import ToyModels
from kdbench.names import domain_name, model_name
from kdbench.plugins import MethodPlugin, load_all, load_benchmark, load_method, method_names
from kdbench.progress import Progress, Silent
from kdbench.protocol import Protocol, find_protocol
from kdbench.records import SIDE_FILE, Record, Resolved, read_record, record_path
from kdbench.spec import RunSpec, assign_label_maps, assign_settings, make_config, variant
from kdbench.units import amount


@dataclass(frozen=True)
class Done:
    """A cell's record, and whether it was there before."""

    cell: Cell
    record: Record
    cached: bool


@dataclass(frozen=True)
class Chosen:
    """A method with the knobs and the name of its variant."""

    plugin: MethodPlugin
    config: MethodConfig
    variant: str


def make_context(spec: RunSpec, progress: Progress) -> RunContext:
    """The protocol, the worlds, the store and the device that all cells share."""
    if spec.label_maps and spec.data_root is None:
        raise KdbenchError("--label-map says how a data set is read: add --data-root DIR, or leave it out.")
    protocol = find_protocol(spec.protocol, spec.budget, assign_label_maps(spec.label_maps), spec.resampling)
    for dataset, table in protocol.label_maps.items():
        if dataset not in ADAPTERS:
            raise unknown("data set (in --label-map)", dataset, ADAPTERS)
        if all(table == next(iter(layout.tables), "") for layout in ADAPTERS[dataset].layouts):
            raise KdbenchError(f"--label-map {dataset}={table} is how {dataset} is read anyway: leave it out.")
    if protocol.native and spec.data_root is None:
        raise KdbenchError(
            f"protocol '{protocol.name}' runs on real images: add --data-root DIR, the folder that holds the data sets "
            "(`kdbench list datasets`). Without data sets there are the protocols mini and smoke."
        )
    store = Store(spec.store, spec.fresh)
    batches: dict[str, int] = {phase: recipe.batch for phase, recipe in protocol.recipes.items()}
    check_shares(batches, math.prod(processes(spec.devices)))
    fabric = make_fabric(spec.device, spec.devices, protocol.precision)
    data_sources = DataSources(protocol, store.renders, spec.data_root)
    progress = progress if fabric.is_global_zero else Silent()
    return RunContext(
        protocol, data_sources, store, fabric, progress, _weights(spec, protocol), _workers(spec), spec.compiled
    )


def _weights(spec: RunSpec, protocol: Protocol) -> Weights:
    if protocol.model_set == "pretrained":
        return Pretrained(spec.weights_dir)
    if spec.weights_dir is not None:
        raise KdbenchError(
            f"--weights-dir holds weights of real models, and protocol '{protocol.name}' runs small stand-ins. "
            "Add --protocol paper, or leave it out."
        )
    return ToyModels()


def _workers(spec: RunSpec) -> int:
    """As asked; else none for the built-in world, whose samples lie in memory, and the processors for files."""
    if spec.workers is not None:
        return spec.workers
    return 0 if spec.data_root is None else min(8, os.cpu_count() or 1)


def expand(spec: RunSpec, context: RunContext) -> list[Cell]:
    """Every cell of the request, reference cells first in each group; all names and values are checked here."""
    methods = _chosen(spec)
    pairs = [parse_pair(text) for text in spec.pairs]
    benchmarks = [load_benchmark(name) for name in spec.benchmarks]
    for benchmark in benchmarks:
        context.data_sources.check(benchmark)
    _check_label_maps(context.protocol, benchmarks)
    references = _references() if spec.references else []
    labels = parse_fraction(spec.label_fraction)
    cells: dict[Any, Cell] = {}
    for benchmark in benchmarks:
        for pair in pairs:
            for seed in spec.seeds:
                for cell in _group(context, benchmark, pair, seed, references, methods, spec.references):
                    cells.setdefault(_identity(cell), replace(cell, labels=labels))
    return list(cells.values())


def recorded_cell(recorded: Resolved, protocol: Protocol) -> Cell:
    """Return the cell that a record is of, under its protocol, with today's method and models."""
    plugin = load_method(recorded.method).usable() if recorded.student else None
    return Cell(
        protocol=protocol,
        benchmark=load_benchmark(recorded.benchmark),
        teacher=find_model(recorded.teacher),
        student=find_model(recorded.student) if recorded.student else None,
        method=plugin,
        config=make_config(plugin, recorded.options) if plugin else MethodConfig(),
        variant=recorded.variant,
        seed=recorded.seed,
        labels=parse_fraction(recorded.label_fraction),
    )


def _check_label_maps(protocol: Protocol, benchmarks: list[Benchmark]) -> None:
    """A table for a data set that is not read would change the protocol's id and nothing else."""
    read = {d.real.dataset for b in benchmarks for d in b.evaluated() if d.real}
    idle = sorted(set(protocol.label_maps) - read)
    if idle:
        raise KdbenchError(
            f"--label-map names {', '.join(idle)}, which no benchmark of this run reads. They read: "
            f"{', '.join(sorted(read))}."
        )


class OutOfStepError(KdbenchError):
    """Several processes cannot begin another cell; the request was right."""

    status = 1


def _check_label(spec: RunSpec, context: RunContext, cell: Cell) -> None:
    """Raises where the label of a variant stands for other knobs in the results: its row could not be made of both."""
    path = spec.results / record_path(CellRun(context, cell, {}).resolved())
    ours = cell.config.model_dump(mode="json")
    for other in sorted(path.parent.glob(f"{path.stem.rpartition('-s')[0]}-s*.json")):
        held = read_record(other).spec.resolved
        if held.variant != cell.variant:
            continue
        theirs = held.options
        # A knob that one of them does not know is younger than the record.
        differ = [name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]]
        if differ:
            found = ", ".join(f"{name}={theirs[name]}" for name in sorted(differ))
            raise KdbenchError(
                f"the label '{cell.variant}' of {cell.method.name if cell.method else 'teacher'} stands for {found} in "
                f"{other}. Give another one with --as, or compute with --fresh what had it before."
            )


def run_grid(spec: RunSpec, context: RunContext, cells: list[Cell]) -> Iterator[Done]:
    """Runs the cells in order; a failed one leaves its record and the others go on.

    Weights, data sets and test images are looked at before the first; what is missing or broken there is an error.
    """
    _check_places(spec)
    for cell in cells:
        if spec.label and cell.variant and not spec.fresh:
            _check_label(spec, context, cell)
    check_together(context, cells)
    with contextlib.closing(Trackers(spec.watch, spec.results, context.progress.note)) as trackers:
        for cell in cells:
            done = _run_cell(spec, context, cell, trackers)
            if not done.cached:
                release_memory()
            yield done


def _run_cell(spec: RunSpec, context: RunContext, cell: Cell, trackers: Trackers) -> Done:
    first = context.fabric.is_global_zero
    event_log = EventLog(spec.results, trackers, spec.fresh, context.progress.note) if first else EventLog()
    run = CellRun(context, cell, spec.passed(), event_log)
    path = spec.results / record_path(run.resolved())
    stored = context.fabric.broadcast(None if spec.fresh or not context.fabric.is_global_zero else _stored(path, run))
    if stored is not None:
        return Done(cell, stored, cached=True)
    began = time.time()
    outcome = run.run()
    if not outcome.in_step:
        # What fails first is the cause; the others fail because it has left.
        if not (path.is_file() and path.stat().st_mtime >= began):
            _write(path, outcome)
        event_log.close(outcome.record)
        raise OutOfStepError(f"{cell.name}: {outcome.record.error}")
    if context.fabric.is_global_zero:
        _write(path, outcome)
    event_log.close(outcome.record)
    context.fabric.barrier()
    return Done(cell, outcome.record, cached=False)


def _check_places(spec: RunSpec) -> None:
    """Raises before anything is computed where its result could not be written."""
    for option, folder in (("--results", spec.results), ("--store", spec.store)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise KdbenchError(
                f"{option} {folder} cannot be written: {error.strerror}. Name another folder."
            ) from error


def describe(context: RunContext, cells: list[Cell]) -> Iterator[str]:
    """What would run: the models, and every cell's stages, which are stored or shared, and what the rest costs."""
    check_batches(context, all_stages(context, cells))
    for role in models_of(cells):
        yield f"{model_name(role.name, context.protocol.model_set)}: weights from {context.models.origin(role)}"
    seen: set[str] = set()
    total = 0
    for cell in cells:
        roles = [cell.teacher] + ([cell.student] if cell.student else [])
        pair = " -> ".join(model_name(role.name, context.protocol.model_set) for role in roles)
        yield f"{cell.name}  {pair}  seed {cell.seed}"
        try:
            total += yield from _describe_stages(context, make_plan(context, cell), seen)
        except Exception as error:  # a plug-in's own code
            raise KdbenchError(f"{cell.name} cannot run: {failure_of(error, 0).text}") from error
    yield f"together {amount(total, 'FLOP')}"


def _describe_stages(context: RunContext, plan: Plan, seen: set[str]) -> Generator[str, None, int]:
    """Returns the operations of what is to do."""
    total, sharers = 0, context.fabric.world_size
    for step in plan.stages:
        state = "shared" if step.key in seen else "stored" if step.folder.done else "to do"
        seen.add(step.key)
        data = ", ".join(f"{domain_name(s.domain, s.data_source)} ({len(s)} images)" for s in step.sets)
        size = f"{step.steps} steps of {step.recipe.batch}"
        size += f" ({step.recipe.batch // sharers} a process)" if sharers > 1 else ""
        trains = ", ".join(sorted(step.stage.trains))
        yield f"  {step.stage.name:<12} {state:<7} {size:<18} trains {trains}; on {data}"
        if state == "to do":
            cost = cost_of(context, plan, step)
            whole = cost.total_flops(step)
            total += whole
            yield (
                f"{'':<22}{cost.trained / 1e6:.2f} of {cost.parameters / 1e6:.2f} M parameters learn; "
                f"{amount(cost.flops, 'FLOP')} an image, {amount(whole, 'FLOP')} in all; about "
                f"{amount(cost.memory, 'B')} for a batch"
            )
            # The count has brought the encoders to the stage's geometry.
            yield from _resizing(strides(plan.networks, step.stage))
    return total


def _resizing(strides: dict[str, list[int]]) -> Iterator[str]:
    """A line where the encoders' maps differ in size. Which of them is resized, the loss alone knows."""
    if len(set(map(tuple, strides.values()))) > 1:
        sides = " and ".join(f"the {side}'s {', '.join(map(str, each))}" for side, each in strides.items())
        yield f"{'':<22}strides of the maps: {sides}; a loss that compares positions resizes (see the method's page)"


def _chosen(spec: RunSpec) -> list[Chosen]:
    plugins = [load_method(name).usable() for name in spec.methods]
    names = [plugin.name for plugin in plugins]
    if len(set(names)) != len(names):
        raise KdbenchError(f"a method is asked for twice: {', '.join(names)}.")
    settings = assign_settings(spec.settings, names)
    if spec.label and not any(settings.values()):
        raise KdbenchError(f"--as {spec.label}: a label names what --set changes, and nothing is set.")
    chosen = []
    for plugin in plugins:
        config = make_config(plugin, settings[plugin.name])
        label = spec.label if settings[plugin.name] or len(plugins) == 1 else ""
        chosen.append(Chosen(plugin, config, variant(config, label)))
    return chosen


def _references() -> list[Chosen]:
    """Every undistilled method with its defaults; a broken plug-in is no reference."""
    plugins, _ = load_all(method_names(), load_method)
    return [Chosen(p, make_config(p, {}), "") for p in plugins.values() if p.method.role == "undistilled"]


def _group(
    context: RunContext,
    benchmark: Benchmark,
    pair: Pair,
    seed: int,
    references: list[Chosen],
    methods: list[Chosen],
    teacher: bool,
) -> Iterator[Cell]:
    if teacher:
        yield Cell(context.protocol, benchmark, pair.teacher, None, None, MethodConfig(), "", seed)
    for chosen in (*references, *methods):
        yield Cell(
            context.protocol, benchmark, pair.teacher, pair.student, chosen.plugin, chosen.config, chosen.variant, seed
        )


def _identity(cell: Cell) -> tuple[Any, ...]:
    return (
        cell.benchmark.name,
        cell.teacher.name,
        cell.student.name if cell.student else None,
        cell.method.name if cell.method else None,
        cell.variant,
        cell.seed,
    )


def _stored(path: Path, run: CellRun) -> Record | None:
    """The cell's record, if it is there, done and made from exactly this."""
    if not path.is_file():
        return None
    try:
        record, key = read_record(path), run.prepare()
    except Exception:  # whatever is wrong comes up again, with its message, when the cell runs
        return None
    return record if record.status == "done" and record.spec.resolved.key == key else None


def _write(path: Path, outcome: Outcome) -> None:
    if outcome.per_image:
        counts = partial(np.savez_compressed, **outcome.per_image)  # type: ignore[arg-type]
        save_atomically(path.with_name(path.stem + SIDE_FILE), counts)
    write_atomically(path, outcome.record.to_json().encode())
