"""Run one cell: train its stages in order, evaluate what they leave, and return the record."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from kdbench.data.loading import training_batches
from kdbench.engine.costs import InferenceCost, inference_of, stage_flops
from kdbench.engine.distributed import Failure, all_failures, alone, explain_failures, failure_of, share
from kdbench.engine.environment import device_name, gpu_memory, host, peak_memory, revision, versions
from kdbench.engine.evaluation import deploy, deployment_source, evaluate_cell
from kdbench.engine.keys import weights_digest
from kdbench.engine.parts import Encode, compile_encoder, stage_models
from kdbench.engine.plan import Cell, Plan, PlannedStage, RunContext, make_plan, strides
from kdbench.engine.store import Origin
from kdbench.engine.tracking import EventLog
from kdbench.engine.trainer import LossModule, TrainingJob, train
from kdbench.errors import KdbenchError, describe
from kdbench.identity import digest
from kdbench.method import Stage
from kdbench.models.registry import Pair
from kdbench.names import model_name
from kdbench.records import Record, Resolved, Result, RunInfo, Spec, StageCounts, StageResult, StageSummary
from kdbench.types import Part


@dataclass(frozen=True)
class CellOutcome:
    """A cell's record. per_image: domain -> hits (N, 3, K). in_step: all processes can begin another cell."""

    record: Record
    per_image: Mapping[str, np.ndarray] = field(default_factory=dict)
    in_step: bool = True


@dataclass(frozen=True)
class FinishedStage:
    """A stage whose result can be read. origin: where it was before this run; None where this run has trained it."""

    planned: PlannedStage
    summary: StageSummary
    origin: Origin | None

    @property
    def name(self) -> str:
        """The stage's name in its method."""
        return self.planned.stage.name

    def result(self) -> StageResult:
        """Return what stands in the record."""
        return StageResult(
            name=self.name,
            phase=self.planned.stage.phase,
            key=self.planned.key,
            data={samples.domain: samples.data_source for samples in self.planned.sets},
            **self.summary.model_dump(include=set(StageCounts.model_fields)),
        )


def run_cell(
    context: RunContext,
    cell: Cell,
    passed: Mapping[str, Any] | None = None,
    event_log: EventLog | None = None,
    plan: Plan | None = None,
    until: str = "",
) -> CellOutcome:
    """Train and evaluate a cell; whatever goes wrong in it becomes a failed record.

    passed: the request, for the record. plan: the cell's, where it has been made already. until: the stage after which
    it ends, without a result.
    """
    started, clock = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), time.perf_counter()
    log, stages, inference = event_log or EventLog(), list[FinishedStage](), InferenceCost()
    result: Result | None = None
    per_image: Mapping[str, np.ndarray] = {}
    failure: Failure | None = None
    resolved = resolve(context, cell)
    try:
        plan = plan or make_plan(context, cell)
        resolved = resolve(context, cell, plan)
        log.open(resolved, started, revision())
        for stage in finish_stages(context, plan, log):
            stages.append(stage)
            if stage.name == until:
                break
        else:
            domains, per_image = evaluate_cell(context, plan, log)
            model = deploy(context, plan)
            inference = inference_of(context, model)
            result = Result(
                domains=domains,
                stages=[stage.result() for stage in stages],
                parameters=_parameters(plan, model),
                inference_flops=inference.flops,
            )
    except Exception as error:
        failure = failure_of(error, context.fabric.global_rank)
    everywhere = all_failures(context.fabric, failure)
    failed = everywhere is None or any(everywhere)
    in_step = everywhere is not None and len({found and found.trace for found in everywhere}) == 1
    record = Record(
        status="failed" if failed else "done" if result else "stopped",
        error=explain_failures(failure, everywhere, in_step) if failed else None,
        spec=Spec(passed=dict(passed or {}), resolved=resolved),
        result=None if failed else result,
        run=_run_info(context, started, time.perf_counter() - clock, stages, inference),
    )
    return CellOutcome(record, {} if failed else per_image, in_step or not failed)


def deployed(context: RunContext, cell: Cell) -> nn.Module:
    """Return the evaluated segmentor with its last weights; stages that the store lacks are trained."""
    plan = make_plan(context, cell)
    for _ in finish_stages(context, plan, EventLog()):
        pass
    return deploy(context, plan)


def cell_key(context: RunContext, plan: Plan) -> str:
    """Return a key that changes with anything that the cell's result depends on."""
    domains = context.data_sources.evaluated(plan.cell.benchmark)
    return digest([
        [stage.key for stage in plan.stages],
        [context.data_sources.val(domain).identity for domain in domains],
        deployment_source(plan),
        context.protocol.id,
    ])  # fmt: skip


def resolve(context: RunContext, cell: Cell, plan: Plan | None = None) -> Resolved:
    """Return what is run, as a record names it; a cell that cannot be planned has no key."""
    method, own = cell.method, cell.student.decoder if cell.student else ""
    built = plan.networks.method if plan is not None else None
    models = [model for model in (cell.teacher, cell.student) if model is not None and plan is not None]
    return Resolved(
        **vars(cell.id),
        protocol=context.protocol.name,
        decoder=context.protocol.decoder + (f" (student: {own})" if own else ""),
        title=cell.benchmark.title,
        classes=list(cell.benchmark.labels.classes),
        model_set=context.protocol.model_set,
        weights={model.name: context.models.find(model).weights() for model in models},
        family=Pair(cell.teacher, cell.student).family if cell.student else None,
        role=method.method.role if method else "teacher",
        options=cell.config.model_dump(mode="json"),
        footnote=built.footnote if built is not None else "",
        key=cell_key(context, plan) if plan is not None else "",
    )


def finish_stages(context: RunContext, plan: Plan, log: EventLog) -> Iterator[FinishedStage]:
    """Train the stages that the store lacks; yield every one as it is finished."""
    flops = _flops(context, plan)
    for stage in plan.stages:
        yield _finish_stage(context, plan, stage, flops.get(stage.stage.name), log)


def _flops(context: RunContext, plan: Plan) -> dict[str, int | None]:
    """Return the operations of every stage: from the store where it is stored, else counted."""
    fabric = context.fabric
    stored: dict[str, int | None] = {}
    if fabric.is_global_zero:
        summaries = {stage.stage.name: stage.folder.summary for stage in plan.stages}
        stored = {name: summary.flops for name, summary in summaries.items() if summary is not None}
    # One process looks, for all: a loss that is counted may wait for the other processes.
    stored = fabric.broadcast(stored)
    names = [stage.stage.name for stage in plan.stages]
    return stage_flops(context, plan, [name for name in names if name not in stored]) | stored


def _finish_stage(
    context: RunContext, plan: Plan, stage: PlannedStage, flops: int | None, log: EventLog
) -> FinishedStage:
    what, fabric = f"{plan.cell.id.name} · {stage.stage.name}", context.fabric
    with contextlib.ExitStack() as held:
        # Of several processes the first alone locks and writes; the others follow it from barrier to barrier.
        if fabric.is_global_zero:
            waiting = f"{what}: another run is at work on it; waiting"
            held.enter_context(stage.folder.locked(lambda: context.progress.note(waiting)))
            if context.store.stale(stage.key):
                stage.folder.clear()
        origin: Origin | None = fabric.broadcast(stage.folder.origin)
        if origin is not None:
            log.write({"event": origin, "stage": stage.stage.name, "steps": stage.steps})
        else:
            together = stage.recipe.shared or fabric.world_size == 1
            summary = (train_stage if together else _train_alone)(context, plan, stage, flops, log)
            if summary is not None and fabric.is_global_zero:
                stage.folder.finish(summary)
        fabric.barrier()
        found = stage.folder.summary
    if found is None:
        raise KdbenchError(f"{what}: {stage.folder.path} has vanished from the store. Run the same command again.")
    return FinishedStage(stage, found, origin)


def _train_alone(
    context: RunContext, plan: Plan, stage: PlannedStage, flops: int | None, log: EventLog
) -> StageSummary | None:
    """Train a stage in the first process while the others wait; what fails there fails in all of them alike."""
    summary, fault = None, ""
    if context.fabric.is_global_zero:
        one = replace(context, fabric=alone(context.fabric.device, context.protocol.precision))
        try:
            summary = train_stage(one, plan, stage, flops, log)
        except Exception as error:  # raised below, at the same place in every process
            fault = describe(error)
    fault = context.fabric.broadcast(fault)
    if fault:
        raise KdbenchError(fault)
    return summary


def train_stage(
    context: RunContext, plan: Plan, planned: PlannedStage, flops: int | None, log: EventLog
) -> StageSummary:
    """Train a stage to its end; a part that does not move raises KdbenchError."""
    stage, fabric, job = planned.stage, context.fabric, make_job(context, plan, planned)
    trained = job.module.parts()
    before = {name: weights_digest(module) for name, module in trained.items()}
    if fabric.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(fabric.device)
    summary = train(fabric, job, planned.folder, log.stage(stage.name, plan.steps_before(planned), context.progress))
    idle = [name for name, module in trained.items() if module.state_dict() and weights_digest(module) == before[name]]
    if idle:
        raise KdbenchError(
            f"stage '{stage.name}' trains {', '.join(idle)}, but nothing in it moved: its loss does not reach it. "
            "Add the term that does (the task loss, for a decoder) or take it out of `trains`."
        )
    return summary.model_copy(
        update={
            "flops": flops,
            "strides": strides(plan.networks, stage),
            "memory_mb": gpu_memory(fabric.device),
            "device": device_name(fabric.device),
            "versions": versions(fabric.device, context.protocol.precision),
            "revision": revision(),
        }
    )


def make_job(context: RunContext, plan: Plan, planned: PlannedStage) -> TrainingJob:
    """Load what a stage starts from, freeze what it does not train, and return its training."""
    networks, stage, fabric = plan.networks, planned.stage, context.fabric
    seed, size = context.seed_of(plan.cell, stage.phase), planned.recipe.size(context.protocol.image_size)
    networks.load(planned.inputs, context.geometry(planned.recipe, size), context.bf16_parts(stage))
    trained = networks.freeze_all_but(stage.trains)
    networks.forget(stage.trains)
    networks.place(fabric.device)
    student, teacher = stage_models(networks, stage, _compiled_encoders(context, plan, stage, size))
    skipped: list[str] = []
    return TrainingJob(
        what=f"{plan.cell.id.name} · {stage.name}",
        module=LossModule(trained, lambda batch: stage.loss(batch, student, teacher)),
        recipe=planned.recipe,
        steps=planned.steps,
        batches=lambda start: training_batches(
            planned.sets, planned.recipe, planned.steps, size, seed, stage.phase, start,
            workers=context.workers, device=fabric.device, skipped=skipped, share=share(fabric, planned.recipe.batch),
        ),
        randomness=(seed, stage.phase),
        snapshots=planned.snapshots,
        checkpoint_every=context.protocol.checkpoint_every,
        epoch=planned.recipe.epoch(sum(map(len, planned.sets))),
        smallest_batch=stage.smallest_batch,
        student_forwards=lambda: student.images * fabric.world_size,
        skipped=skipped,
        most_skipped=context.protocol.most_skipped,
        half=planned.common,
    )  # fmt: skip


def _compiled_encoders(context: RunContext, plan: Plan, stage: Stage, size: tuple[int, int]) -> dict[Part, Encode]:
    """Return the stage's encoders as torch compiles them, where that was asked for."""
    cell, networks = plan.cell, plan.networks
    if not context.compiled:
        return {}
    # Kernels of earlier stages count against a limit beyond which torch would run these eagerly without a word.
    torch.compiler.reset()
    sides = (
        (Part.TEACHER_ENCODER, networks.teacher, cell.teacher),
        (Part.STUDENT_ENCODER, networks.student, cell.student),
    )
    precision = torch.float32 if context.protocol.precision == "32-true" else torch.bfloat16
    with context.fabric.autocast():
        return {
            part: compile_encoder(
                segmentor.encoder, model_name(model.name, context.protocol.model_set), size, precision
            )
            for part, segmentor, model in sides
            if segmentor is not None and model is not None and part in stage.parts
        }


def _parameters(plan: Plan, model: nn.Module) -> dict[str, int]:
    networks = plan.networks
    counted = {"deployed": model, "teacher": networks.teacher, "student": networks.student, "method": networks.method}
    return {name: sum(p.numel() for p in m.parameters()) for name, m in counted.items() if m is not None}


def _run_info(
    context: RunContext, started: str, seconds: float, stages: Sequence[FinishedStage], inference: InferenceCost
) -> RunInfo:
    device = context.fabric.device
    memory = {stage.name: stage.summary.memory_mb for stage in stages if stage.summary.memory_mb}
    return RunInfo(
        started=started,
        seconds=round(seconds, 2),
        stage_seconds={stage.name: round(stage.summary.seconds, 2) for stage in stages},
        stage_memory_mb=memory,
        stage_devices={stage.name: stage.summary.device for stage in stages if stage.planned.common},
        latency_ms=inference.latency_ms,
        cached=[stage.name for stage in stages if stage.origin is not None],
        shipped=[stage.name for stage in stages if stage.origin == "shipped"],
        peak_memory_mb=max([peak_memory(device), *memory.values()]),
        host=host(),
        versions=versions(device, context.protocol.precision),
        revision=revision(),
    )
