"""Tests a trained cell: every kept point on every domain, each count taken once and kept in the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from kdbench.benchmark import Domain
from kdbench.data.domainset import DomainSet
from kdbench.engine.distributed import gather_interleaved
from kdbench.engine.event_log import EventLog
from kdbench.engine.keys import key_of, method_source
from kdbench.engine.plan import Cell, Plan, RunContext, deployed_parts
from kdbench.engine.sliding_window import evaluate
from kdbench.method import Method
from kdbench.metrics import hits
from kdbench.records import DomainResult


@dataclass(frozen=True)
class DomainTest:
    """What a cell deploys, against the validation splits of its benchmark; its stages have to be done."""

    context: RunContext
    cell: Cell
    plan: Plan

    @property
    def domains(self) -> list[Domain]:
        """Targets and sources that have labelled validation images."""
        return self.context.data_sources.evaluated(self.cell.benchmark)

    def run(self, event_log: EventLog) -> tuple[list[DomainResult], dict[str, np.ndarray]]:
        """The results by domain, and of the last point the counts by image: domain -> (N, 3, K)."""
        domains, last = self.domains, self.plan.stages[-1]
        results, per_image = [], {}
        self.context.progress.begin(f"{self.cell.name} · testing", len(domains))
        try:
            for done, domain in enumerate(domains, 1):
                result, counts = self._domain(domain)
                results.append(result)
                event_log.validation(result, last.stage.name, last.kept, self.plan.before(last))
                per_image[domain.name] = counts
                self.context.progress.advance(done, {})
        finally:
            self.context.progress.end()
        return results, per_image

    def deploy(self, point: int = -1) -> nn.Module:
        """The segmentor that is tested, with the weights of a kept point (the last, where none is named)."""
        networks, points = self.plan.networks, range(len(self.plan.stages[-1].kept))
        sources = self.plan.at(points[point])
        geometry = self.context.geometry(self.plan.stages[-1].recipe, self.context.protocol.evaluation.window)
        networks.load({name: sources[name] for name in deployed_parts(self.plan)}, geometry)
        networks.freeze_all_but(frozenset())
        networks.place(self.context.fabric.device)
        if networks.method is None or networks.student is None:
            model: nn.Module = networks.teacher
        else:
            model = networks.method.deploy(networks.student, networks.teacher)
        placed: nn.Module = self.context.fabric.to_device(model)
        return placed.eval()

    def deploy_code(self) -> Any:
        """What a method's own way to deploy depends on; None for the student as it is."""
        method = self.plan.networks.method
        if method is None or type(method).deploy is Method.deploy:
            return None
        return [method_source(method), self.cell.config.model_dump(mode="json")]

    def _domain(self, domain: Domain) -> tuple[DomainResult, np.ndarray]:
        samples = self.context.data_sources.val(domain)
        classes = len(self.cell.benchmark.labels)
        *earlier, last = [self._counts(domain, samples, point) for point in range(len(self.plan.stages[-1].kept))]
        result = DomainResult(
            domain=domain.name,
            role="target" if domain in self.cell.benchmark.targets else "source",
            data_source=samples.data_source,
            images=len(samples),
            confusion=last.sum(0),
            earlier=np.array([hits(counts.sum(0))[:2] for counts in earlier]).reshape(-1, 2, classes),
        )
        return result, hits(last)

    def _counts(self, domain: Domain, samples: DomainSet, point: int) -> np.ndarray:
        context, plan = self.context, self.plan
        classes = len(self.cell.benchmark.labels)
        sources = plan.at(point)
        key = key_of(
            context.fabric.device,
            context.protocol.precision,
            parts={name: sources[name].key for name in sorted(deployed_parts(plan))},
            deployed_by=self.deploy_code(),
            domain=domain.name,
            data=samples.identity,
            evaluation=context.protocol.evaluation.model_dump(),
            resampling=context.protocol.resampling,
            decoder=context.protocol.decoder,
            classes=classes,
        )
        # One process looks, for all: with a file that appears between two looks they would wait for each other.
        zero = context.fabric.is_global_zero
        counts: np.ndarray | None = context.fabric.broadcast(context.store.evaluation(key) if zero else None)
        if counts is None:
            counts = self._count(samples, classes, point)
            if zero:
                context.store.keep_evaluation(key, counts)
        return counts

    def _count(self, samples: DomainSet, classes: int, point: int) -> np.ndarray:
        context = self.context
        mine = range(context.fabric.global_rank, len(samples), context.fabric.world_size)
        with context.fabric.autocast():
            model, device = self.deploy(point), context.fabric.device
            counts = evaluate(model, samples, classes, context.protocol.evaluation, device, context.workers, mine)
        return gather_interleaved(context.fabric, counts)
