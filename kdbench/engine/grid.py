"""Run many cells over one store: what is asked for and each pair's reference cells; what is done is skipped."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric.utilities.data import suggested_max_num_workers

from kdbench.benchmark import Benchmark
from kdbench.data.datasets import ADAPTERS
from kdbench.data.sources import DataSources
from kdbench.engine.distributed import check_shares, launched, make_fabric, processes
from kdbench.engine.memory import release_memory
from kdbench.engine.plan import Cell, Plan, RunContext, make_plan
from kdbench.engine.preflight import all_stages, check_together
from kdbench.engine.runner import CellOutcome, cell_key, run_cell
from kdbench.engine.store import Store
from kdbench.engine.tracking import EventLog
from kdbench.errors import KdbenchError, unknown
from kdbench.files import save_atomically, write_atomically
from kdbench.method import MethodConfig
from kdbench.models.registry import Pair, find_model, parse_pair
from kdbench.models.toy import ToyModels
from kdbench.models.weights import GivenWeights, ModelSource, PretrainedModels, checksum
from kdbench.plugins import MethodPlugin, as_passed, load_all, load_benchmark, load_method, method_names
from kdbench.progress import Progress, Silent
from kdbench.protocol import Protocol, find_protocol
from kdbench.records import SIDE_FILE, Record, Resolved, read_record, starts_from_file
from kdbench.spec import RunSpec, assign_settings, make_config, variant


class OutOfStepError(KdbenchError):
    """Several processes cannot begin another cell; the request was right."""

    status = 1


@dataclass(frozen=True)
class Done:
    """A cell's record. cached: it was there before."""

    cell: Cell
    record: Record
    cached: bool


MethodVariant = tuple[MethodPlugin | None, MethodConfig, str]
"""A method with its options and the variant's name; None for the teacher's own row."""


def make_context(spec: RunSpec, progress: Progress) -> RunContext:
    """Return the protocol, data sources, store and device that all cells share."""
    if spec.label_maps and spec.data_root is None:
        raise KdbenchError("--label-map says how a data set is read: add --data-root DIR, or leave it out.")
    protocol = find_protocol(spec.protocol, spec.budget, spec.label_maps, spec.resampling, spec.steps_scale)
    for dataset, table in protocol.label_maps.items():
        if dataset not in ADAPTERS:
            raise unknown("data set", dataset, ADAPTERS, where="in --label-map")
        if all(table == next(iter(layout.tables), "") for layout in ADAPTERS[dataset].layouts):
            raise KdbenchError(f"--label-map {dataset}={table} is how {dataset} is read anyway: leave it out.")
    _check_data_root(protocol, spec.data_root)
    store = Store(spec.store, spec.fresh)
    check_shares(protocol.shared_batches, math.prod(processes(spec.devices)))
    fabric = make_fabric(spec.device, spec.devices, protocol.precision)
    data_sources = DataSources(protocol, store.renders, spec.data_root)
    progress = progress if fabric.is_global_zero else Silent()
    return RunContext(
        protocol, data_sources, store, fabric, progress, _models(spec, protocol), _workers(spec), spec.compiled
    )


def _check_data_root(protocol: Protocol, data_root: Path | None) -> None:
    """Raise before a device is opened, which prints its own lines."""
    if protocol.native and data_root is None:
        raise KdbenchError(
            f"protocol '{protocol.name}' runs on real images: add --data-root DIR, the folder that holds the data sets "
            "(`kdbench list datasets`). Without data sets there are the protocols mini and smoke."
        )
    if data_root is not None and not data_root.is_dir():
        raise KdbenchError(f"--data-root {data_root} is not a folder.")


def _models(spec: RunSpec, protocol: Protocol) -> ModelSource:
    if protocol.model_set == "pretrained":
        return PretrainedModels(spec.weights_dir)
    if spec.weights_dir is not None:
        raise KdbenchError(
            f"--weights-dir holds weights of real models, and protocol '{protocol.name}' runs toy models. "
            "Add --protocol paper, or leave it out."
        )
    return ToyModels()


def _workers(spec: RunSpec) -> int:
    """As asked; else none for synthetic data, whose samples lie in memory, and this process's cores for files."""
    if spec.workers is not None:
        return spec.workers
    if spec.data_root is None:
        return 0
    each = processes(spec.devices)[0]
    if task := int(os.environ.get("SLURM_CPUS_PER_TASK", 0)):
        return task if launched() else max(1, task // each)
    return int(suggested_max_num_workers(each))


def expand(spec: RunSpec, context: RunContext) -> list[Cell]:
    """Return every cell of the request, reference cells first in each group; all names and values are checked here."""
    methods = [(row, False) for row in (_references() if spec.references else ())]
    methods += [(row, True) for row in _requested(spec)]
    pairs = [parse_pair(text) for text in spec.pairs]
    benchmarks = [load_benchmark(name) for name in spec.benchmarks]
    for benchmark in benchmarks:
        context.data_sources.check(benchmark)
    _check_label_maps(context.protocol, benchmarks)
    if spec.stages_done and spec.student_from is None:
        raise KdbenchError("--stages-done says what weights have been through: name their file with --student-from.")

    def cell(benchmark: Benchmark, pair: Pair, seed: int, row: MethodVariant, requested: bool) -> Cell:
        plugin, config, name = row
        made = context.make_cell(
            benchmark,
            pair.teacher,
            pair.student if plugin else None,
            plugin,
            config,
            variant=name,
            seed=seed,
            label_fraction=spec.label_fraction,
        )
        given = spec.student_from if requested else None
        return made if given is None else _started(context.models, made, given, spec.stages_done)

    cells = [
        cell(benchmark, pair, seed, row, requested)
        for benchmark, pair, seed, (row, requested) in itertools.product(benchmarks, pairs, spec.seeds, methods)
    ]
    # Of equal cells the first.
    return list({each.id: each for each in reversed(cells)}.values())[::-1]


def _started(models: ModelSource, cell: Cell, path: Path, done: tuple[str, ...]) -> Cell:
    """Return a cell whose student starts from the weights of a file, which its variant says."""
    if not path.is_file():
        raise KdbenchError(f"--student-from {path} is no file.")
    assert cell.student is not None
    student = replace(cell.student, source=GivenWeights(models.find(cell.student), path), toy_protocols=True)
    words = [cell.id.variant, f"from={checksum(path)[:8]}", f"done={'+'.join(done)}" if done else ""]
    return replace(cell, id=replace(cell.id, variant=",".join(filter(None, words))), student=student, stages_done=done)


def recorded_cell(recorded: Resolved, passed: Mapping[str, Any], models: ModelSource) -> Cell:
    """Return the cell that a record is of, under its recorded identity, with today's method, benchmark and models.

    passed: the record's request, which has the paths of files that were named there.
    """
    plugin = load_method(recorded.method).usable() if recorded.student else None
    cell = Cell(
        recorded.id,
        load_benchmark(as_passed(recorded.benchmark, passed.get("benchmarks", ()))),
        find_model(recorded.teacher),
        find_model(recorded.student) if recorded.student else None,
        plugin,
        make_config(plugin, recorded.options) if plugin else MethodConfig(),
    )
    if not starts_from_file(recorded):
        return cell
    started = _started(models, cell, Path(passed["student_from"]), tuple(passed["stages_done"]))
    if not started.id.variant.endswith(recorded.variant.partition("from=")[2]):
        raise KdbenchError(
            f"{passed['student_from']} is not the file that the record of {recorded.id.label} started from."
        )
    return replace(started, id=recorded.id)


def _requested(spec: RunSpec) -> list[MethodVariant]:
    plugins = [load_method(name).usable() for name in spec.methods]
    names = [plugin.name for plugin in plugins]
    if len(set(names)) != len(names):
        raise KdbenchError(f"a method is asked for twice: {', '.join(names)}.")
    settings = assign_settings(spec.settings, names)
    if spec.label and not any(settings.values()):
        raise KdbenchError(f"--as {spec.label}: a label names what --set changes, and nothing is set.")
    rows: list[MethodVariant] = []
    for plugin in plugins:
        config = make_config(plugin, settings[plugin.name])
        label = spec.label if settings[plugin.name] or len(plugins) == 1 else ""
        rows.append((plugin, config, variant(config, label)))
    return rows


def _references() -> list[MethodVariant]:
    """Return the teacher and every undistilled method with its defaults; a broken plug-in is no reference."""
    plugins, _ = load_all(method_names(), load_method)
    undistilled = [plugin for plugin in plugins.values() if plugin.method.role == "undistilled"]
    return [(None, MethodConfig(), ""), *((plugin, make_config(plugin, {}), "") for plugin in undistilled)]


def _check_label_maps(protocol: Protocol, benchmarks: list[Benchmark]) -> None:
    """A table for a data set that is not read would change the protocol's id and nothing else."""
    read = {d.real.dataset for b in benchmarks for d in b.evaluated() if d.real}
    idle = sorted(set(protocol.label_maps) - read)
    if idle:
        raise KdbenchError(
            f"--label-map names {', '.join(idle)}, which no benchmark of this run reads. They read: "
            f"{', '.join(sorted(read))}."
        )


def run_grid(spec: RunSpec, context: RunContext, cells: list[Cell]) -> Iterator[Done]:
    """Run the cells in order; a failed one leaves its record and the others go on.

    Weights, data sets and test images are checked before the first; what is missing or broken there raises.
    """
    _check_folders(spec)
    for cell in cells:
        if spec.label and cell.id.variant and not spec.fresh:
            _check_label(spec, cell)
    if spec.until:
        cells = _with_stage(context, cells, spec.until)
    check_together(context, cells)
    first, note = context.fabric.is_global_zero, context.progress.note
    with contextlib.closing(EventLog(spec.results, spec.watch, spec.fresh, note) if first else EventLog()) as event_log:
        for cell in cells:
            done = _run_or_skip(spec, context, cell, event_log)
            if not done.cached:
                release_memory()
            yield done


def _with_stage(context: RunContext, cells: list[Cell], name: str) -> list[Cell]:
    """Return the cells that have a stage of that name."""
    stages = list(all_stages(context, cells))
    found = [cell for cell, stage in stages if stage.name == name]
    if not found:
        raise unknown("stage", name, {stage.name for _, stage in stages}, where="in --until")
    return found


def _check_folders(spec: RunSpec) -> None:
    """Raise before anything is computed where its result could not be written."""
    for option, folder in (("--results", spec.results), ("--store", spec.store)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise KdbenchError(
                f"{option} {folder} cannot be written: {error.strerror}. Name another folder."
            ) from error


def _check_label(spec: RunSpec, cell: Cell) -> None:
    """Raise where a variant's label stands for other options in the results: one row cannot be made of both."""
    ours = cell.config.model_dump(mode="json")
    for path in sorted(spec.results.glob(cell.id.paths_of_all_seeds)):
        stored = read_record(path).spec.resolved
        if replace(stored.id, seed=cell.seed) != cell.id:
            continue
        # An option that one of them does not know is younger than the record.
        theirs = stored.options
        differ = [name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]]
        if differ:
            found = ", ".join(f"{name}={theirs[name]}" for name in sorted(differ))
            raise KdbenchError(
                f"the label '{cell.id.variant}' of {cell.id.method} stands for {found} in {path}. Give another one "
                "with --as, or compute with --fresh what had it before."
            )


def _run_or_skip(spec: RunSpec, context: RunContext, cell: Cell, event_log: EventLog) -> Done:
    first = context.fabric.is_global_zero
    path, plan = spec.results / cell.id.path, None
    stored: Record | None = None
    if first and not spec.fresh and not spec.until:
        stored, plan = _stored(context, cell, path)
    stored = context.fabric.broadcast(stored)
    if stored is not None:
        return Done(cell, stored, cached=True)
    began = time.time()
    outcome = run_cell(context, cell, spec.passed(), event_log, plan, spec.until)
    writes = first
    if not outcome.in_step:
        # What fails first is the cause; the others fail because it has left.
        writes = not (path.is_file() and path.stat().st_mtime >= began)
    if writes and not spec.until:
        _write(path, outcome)
    event_log.finish(outcome.record)
    if not outcome.in_step:
        raise OutOfStepError(f"{cell.id.name}: {outcome.record.error}")
    context.fabric.barrier()
    return Done(cell, outcome.record, cached=False)


def _stored(context: RunContext, cell: Cell, path: Path) -> tuple[Record | None, Plan | None]:
    """Return the cell's record if it is there, done and made from exactly this; and the plan, where one was made."""
    if not path.is_file():
        return None, None
    record = _read_or_set_aside(path, context.progress)
    if record is None:
        return None, None
    try:
        plan = make_plan(context, cell)
        key = cell_key(context, plan)
    except Exception:  # whatever is wrong comes up again, with its message, when the cell runs
        return None, None
    return (record if record.status == "done" and record.spec.resolved.key == key else None), plan


def _read_or_set_aside(path: Path, progress: Progress) -> Record | None:
    """Read a record; one that cannot be read is kept beside as NAME.broken, which a note says."""
    try:
        return read_record(path)
    except KdbenchError:
        aside = path.with_name(f"{path.name}.broken")
        path.replace(aside)
        progress.note(f"{path} cannot be read as a record: it is kept as {aside.name}, and its cell runs again.")
        return None


def _write(path: Path, outcome: CellOutcome) -> None:
    if outcome.per_image:
        counts = partial(np.savez_compressed, **outcome.per_image)  # type: ignore[arg-type]
        save_atomically(path.with_name(path.stem + SIDE_FILE), counts)
    write_atomically(path, outcome.record.to_json().encode())
