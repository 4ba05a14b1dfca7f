"""Runs one cell: its stages in order, what is stored skipped, then the evaluation; returns the record."""

from __future__ import annotations

import contextlib
import datetime
import platform
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from kdbench.data.loading import training_batches
from kdbench.engine.costs import InferenceCost, PeakMemory, inference_of, stage_flops
from kdbench.engine.distributed import Failure, all_failures, explain_failures, failure_of, share
from kdbench.engine.environment import host, peak_memory
from kdbench.engine.evaluation import DomainTest
from kdbench.engine.event_log import EventLog
from kdbench.engine.keys import ENGINE_VERSION, environment, weights_digest
from kdbench.engine.parts import Encode, compile_encoder, stage_models
from kdbench.engine.plan import Cell, Plan, Planned, RunContext, make_plan, strides
from kdbench.engine.revision import revision
from kdbench.engine.trainer import LossModule, TrainingJob, train
from kdbench.errors import KdbenchError
from kdbench.identity import digest
from kdbench.models.registry import Pair
from kdbench.names import model_name
from kdbench.records import Record, Resolved, Result, RunInfo, Spec, StageResult
from kdbench.types import Part

WAITING = "another run is at work on it; waiting"


@dataclass
class Outcome:
    """A cell's record with the per-image counts of its last point: domain -> (N, 3, K)."""

    record: Record
    per_image: dict[str, np.ndarray]
    in_step: bool = True
    """Whether all processes have come to the same end, so that another cell can begin."""


class CellRun:
    """One cell from its plan to its record."""

    def __init__(
        self, context: RunContext, cell: Cell, passed: dict[str, Any], event_log: EventLog | None = None
    ) -> None:
        self._context, self._cell, self._passed = context, cell, passed
        self._event_log = event_log or EventLog()
        self._started = time.perf_counter()
        self._began = datetime.datetime.now(datetime.UTC)
        self._seconds: dict[str, float] = {}
        self._memory: dict[str, float] = {}
        self._flops: dict[str, int | None] = {}
        self._inference = InferenceCost()
        self._cached: list[str] = []
        self._key, self._footnote = "", ""
        self._weights: dict[str, str] = {}

    @cached_property
    def plan(self) -> Plan:
        """The cell's networks and stages."""
        return make_plan(self._context, self._cell)

    @cached_property
    def test(self) -> DomainTest:
        """The test of what the stages leave."""
        return DomainTest(self._context, self._cell, self.plan)

    def prepare(self) -> str:
        """Plans the cell; returns its key, which changes with anything that its result depends on."""
        method = self.plan.networks.method
        self._footnote = method.footnote if method is not None else ""
        models = (self._cell.teacher, self._cell.student)
        self._weights = {role.name: self._context.models.weights(role) for role in models if role is not None}
        self._key = digest([
            [step.key for step in self.plan.stages],
            [samples.identity for samples in map(self._context.data_sources.val, self.test.domains)],
            self.test.deploy_code(),
            self._context.protocol.id,
            ENGINE_VERSION,
        ])  # fmt: skip
        return self._key

    def run(self) -> Outcome:
        """Trains and evaluates; whatever goes wrong in the cell becomes a failed record."""
        failure: Failure | None = None
        try:
            outcome = self._run()
        except Exception as error:
            failure = failure_of(error, self._context.fabric.global_rank)
        everywhere = all_failures(self._context.fabric, failure)
        if everywhere is not None and not any(everywhere):
            return outcome
        in_step = everywhere is not None and len({found and found.trace for found in everywhere}) == 1
        return Outcome(self._record("failed", error=explain_failures(failure, everywhere, in_step)), {}, in_step)

    def _run(self) -> Outcome:
        self.prepare()
        self._event_log.open(self.resolved(), self._began.isoformat(timespec="seconds"), revision())
        self._flops = self._operations()
        stages = [self._run_stage(step) for step in self.plan.stages]
        domains, per_image = self.test.run(self._event_log)
        self._inference = inference_of(self._context, self.test.deploy())
        result = Result(
            domains=domains, stages=stages, parameters=self._parameters(), inference_flops=self._inference.flops
        )
        return Outcome(self._record("done", result=result), per_image)

    def deployed(self) -> nn.Module:
        """The evaluated segmentor with the weights of the last point; stages that the store lacks are trained."""
        self._flops = self._operations()
        for step in self.plan.stages:
            self._run_stage(step)
        return self.test.deploy()

    def _operations(self) -> dict[str, int | None]:
        """Operations of every stage: as kept with those that are stored, counted for the rest."""

        def kept() -> dict[str, int | None]:
            done = (step for step in self.plan.stages if step.folder.done)
            held = {step.stage.name: step.folder.summary() for step in done}
            return {name: summary["flops"] for name, summary in held.items() if "flops" in summary}

        # One process looks, for all: a loss that is counted may wait for the other processes.
        fabric = self._context.fabric
        known: dict[str, int | None] = fabric.broadcast(kept() if fabric.is_global_zero else {})
        names = [step.stage.name for step in self.plan.stages]
        return stage_flops(self._context, self._cell, [name for name in names if name not in known]) | known

    def _run_stage(self, step: Planned) -> StageResult:
        what = f"{self._cell.name} · {step.stage.name}"
        fabric = self._context.fabric
        with contextlib.ExitStack() as held:
            # Of several processes the first alone locks and writes; the others follow it from barrier to barrier.
            if fabric.is_global_zero:
                held.enter_context(step.folder.locked(lambda: self._context.progress.note(f"{what}: {WAITING}")))
                if self._context.store.stale(step.key):
                    step.folder.clear()
            if fabric.broadcast(step.folder.done):
                self._cached.append(step.stage.name)
                self._event_log.stored(step.stage.name, step.steps)
            else:
                summary = self._train(step, what)
                if fabric.is_global_zero:
                    step.folder.finish(summary)
            fabric.barrier()
            summary = step.folder.summary()
        self._seconds[step.stage.name] = round(summary["seconds"], 2)
        if summary.get("memory_mb"):
            self._memory[step.stage.name] = summary["memory_mb"]
        return StageResult(
            name=step.stage.name,
            phase=step.stage.phase,
            key=step.key,
            data={samples.domain: samples.data_source for samples in step.sets},
            steps=summary["steps"],
            images=summary["images"],
            student_forwards=summary["student_forwards"],
            skipped_files=summary["skipped_files"],
            flops=self._flops.get(step.stage.name),
            micro_batches=summary["micro_batches"],
            strides=summary["strides"],
            losses=summary["losses"],
        )

    def _train(self, step: Planned, what: str) -> dict[str, Any]:
        networks, stage = self.plan.networks, step.stage
        size = step.recipe.size(self._context.protocol.image_size)
        networks.load(step.inputs, self._context.geometry(step.recipe, size), self._context.bf16_parts(stage))
        seen = strides(networks, stage)
        trained = networks.freeze_all_but(stage.trains)
        before = {name: weights_digest(module) for name, module in trained.items()}
        networks.forget(stage.trains)
        networks.place(self._context.fabric.device)
        student, teacher = stage_models(networks, stage, self._compiled(step, size))
        seed, context = self._cell.seed, self._context
        skipped: list[str] = []
        job = TrainingJob(
            what=what,
            module=LossModule(trained, lambda batch: stage.loss(batch, student, teacher)),
            recipe=step.recipe,
            steps=step.steps,
            batches=lambda start: training_batches(
                step.sets, step.recipe, step.steps, size, seed, stage.phase, start,
                workers=context.workers, device=context.fabric.device, skipped=skipped,
                share=share(context.fabric, step.recipe.batch),
            ),
            randomness=(seed, stage.phase),
            snapshots=step.kept,
            checkpoint_every=self._context.protocol.checkpoint_every,
            epoch=step.recipe.epoch(sum(map(len, step.sets))),
            smallest_batch=stage.smallest_batch,
            student_forwards=lambda: student.images * context.fabric.world_size,
            skipped=skipped,
            most_skipped=context.protocol.most_broken,
        )  # fmt: skip
        peak = PeakMemory(context.fabric.device)
        heard = self._event_log.stage(stage.name, self.plan.before(step), context.progress)
        summary = train(self._context.fabric, job, step.folder, heard)
        summary |= {"memory_mb": peak.megabytes, "flops": self._flops.get(stage.name), "strides": seen}
        idle = [
            name for name, module in trained.items() if module.state_dict() and weights_digest(module) == before[name]
        ]
        if idle:
            raise KdbenchError(
                f"stage '{stage.name}' trains {', '.join(idle)}, but nothing in it moved: its loss does not reach it. "
                "Add the term that does (the task loss, for a decoder) or take it out of `trains`."
            )
        return summary

    def _compiled(self, step: Planned, size: tuple[int, int]) -> dict[Part, Encode]:
        """The stage's encoders as torch compiles them, where that was asked for."""
        context, cell, networks = self._context, self._cell, self.plan.networks
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
                    segmentor.encoder, model_name(role.name, context.protocol.model_set), size, precision
                )
                for part, segmentor, role in sides
                if segmentor is not None and role is not None and part in step.stage.parts
            }

    def _parameters(self) -> dict[str, int]:
        networks = self.plan.networks
        model = self.test.deploy()
        counts = {
            "deployed": model,
            "teacher": networks.teacher,
            "student": networks.student,
            "method": networks.method,
        }
        return {name: sum(p.numel() for p in m.parameters()) for name, m in counts.items() if m is not None}

    def resolved(self) -> Resolved:
        """What is run, in the words of a record."""
        cell, context = self._cell, self._context
        method = cell.method
        own = cell.student.decoder if cell.student else ""
        return Resolved(
            protocol=context.protocol.name,
            protocol_id=context.protocol.id,
            decoder=context.protocol.decoder + (f" (student: {own})" if own else ""),
            data_source=context.data_sources.data_source_of(cell.benchmark),
            benchmark=cell.benchmark.name,
            title=cell.benchmark.title,
            classes=list(cell.benchmark.labels.classes),
            teacher=cell.teacher.name,
            student=cell.student.name if cell.student else None,
            model_set=context.protocol.model_set,
            weights=self._weights,
            family=Pair(cell.teacher, cell.student).family if cell.student else None,
            method=method.name if method else "teacher",
            role=method.method.role if method else "teacher",
            options=cell.config.model_dump(mode="json"),
            variant=cell.variant,
            seed=cell.seed,
            label_fraction=str(cell.labels),
            footnote=self._footnote,
            key=self._key,
        )

    def _record(self, status: Any, result: Result | None = None, error: str | None = None) -> Record:
        device, precision = self._context.fabric.device, self._context.protocol.precision
        return Record(
            status=status,
            error=error,
            spec=Spec(passed=self._passed, resolved=self.resolved()),
            result=result,
            run=RunInfo(
                started=self._began.isoformat(timespec="seconds"),
                seconds=round(time.perf_counter() - self._started, 2),
                stage_seconds=self._seconds,
                stage_memory_mb=self._memory,
                latency_ms=self._inference.latency_ms,
                cached=self._cached,
                peak_memory_mb=max([peak_memory(device), *self._memory.values()]),
                host=host(),
                versions={name: str(value) for name, value in environment(device, precision).items()}
                | {"python": platform.python_version()},
                revision=revision(),
            ),
        )
