"""One cell as a plan: its networks, where every part's weights come from, and the key of every stage.

Nothing is trained here and no weights are read: a finished cell is recognised by its keys alone.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from lightning.fabric import Fabric
from torch import Tensor, nn

from kdbench.benchmark import Benchmark
from kdbench.data.domainset import DomainSet
from kdbench.data.sources import DataSources
from kdbench.data.subset import Subset
from kdbench.engine.keys import key_of, method_source, source_of, weights_digest
from kdbench.engine.parts import Networks, WeightSource, check_stages
from kdbench.engine.store import StageFolder, Store
from kdbench.method import FIT_TEACHER, Method, MethodConfig, Stage
from kdbench.models.geometry import Geometry
from kdbench.models.pretrained import Weights
from kdbench.models.registry import ModelSpec
from kdbench.models.segmentor import Segmentor, build_decoder, seeded
from kdbench.models.toy import ToyModels
from kdbench.plugins import MethodPlugin
from kdbench.progress import Progress
from kdbench.protocol import Protocol, Recipe
from kdbench.types import TEACHER, FeatureSpec, PairSpec, Part, Phase

DECODERS = frozenset({Part.TEACHER_DECODER, Part.STUDENT_DECODER})


@dataclass(frozen=True)
class Cell:
    """One run: what stands in one row of one board. student and method are None for the teacher's own row."""

    protocol: Protocol
    benchmark: Benchmark
    teacher: ModelSpec
    student: ModelSpec | None
    method: MethodPlugin | None
    config: MethodConfig
    variant: str
    seed: int
    labels: Fraction = Fraction(1)
    """The part of the labelled source images that has labels."""

    @property
    def name(self) -> str:
        """As progress shows it."""
        return f"{self.benchmark.name} · {self.label}"

    @property
    def label(self) -> str:
        """The method with its variant, as boards show it."""
        if self.method is None:
            return "teacher"
        return f"{self.method.name}[{self.variant}]" if self.variant else self.method.name


@dataclass(frozen=True)
class RunContext:
    """What all cells of a run share."""

    protocol: Protocol
    data_sources: DataSources
    store: Store
    fabric: Fabric
    progress: Progress
    models: Weights = field(default_factory=ToyModels)
    workers: int = 0
    """Processes that read training images ahead."""
    compiled: bool = False
    """Whether encoders train through torch.compile."""

    def geometry(self, recipe: Recipe, size: tuple[int, int]) -> Geometry | None:
        """What a recipe brings encoders to, for images of a size."""
        return None if recipe.patch is None else Geometry(recipe.patch, size, self.protocol.resampling)

    def bf16_parts(self, stage: Stage) -> frozenset[str]:
        """Return the parts that a stage holds in bfloat16: the frozen teacher's encoder under mixed precision.

        Not its decoder, which may choose single precision for some of its layers, as Mask2Former's does.
        """
        mixed = self.protocol.precision == "bf16-mixed"
        return (stage.parts & {Part.TEACHER_ENCODER}) - stage.trains if mixed else frozenset()


@dataclass(frozen=True)
class Planned:
    """A stage with everything that it reads: data, recipe, and the weights that its parts start from."""

    stage: Stage
    key: str
    inputs: Mapping[str, WeightSource]
    sets: tuple[DomainSet, ...]
    recipe: Recipe
    steps: int
    kept: tuple[int, ...]
    """The steps after which the stage keeps what it trains."""
    folder: StageFolder

    def origin(self, part: str, point: int) -> WeightSource:
        """A part that the stage trained, at one of its kept points."""
        return WeightSource(f"{self.key}/{point}/{part}", lambda: self.folder.load_point(point, part))


@dataclass(frozen=True)
class Plan:
    """A cell ready to run. final: where every part's weights come from once all stages are done."""

    cell: Cell
    networks: Networks
    stages: tuple[Planned, ...]
    final: Mapping[str, WeightSource]

    def before(self, step: Planned) -> int:
        """How many steps the stages before one take."""
        return sum(earlier.steps for earlier in itertools.takewhile(lambda stage: stage is not step, self.stages))

    def at(self, point: int) -> dict[str, WeightSource]:
        """The parts as they are when the last stage has reached a kept point."""
        last = self.stages[-1]
        return {**self.final, **{part: last.origin(part, point) for part in last.stage.trains}}


def make_plan(context: RunContext, cell: Cell) -> Plan:
    """Builds the networks and chains the stages' keys."""
    networks = _build(context, cell)
    stages = _stages(networks.method)
    if networks.method is not None:
        check_stages(networks.method, stages, networks)
    initial = _initial(context, cell, networks)
    sources, planned = dict(initial), []
    stretch = _stretch(context, cell, stages)
    for stage in stages:
        sources |= {name: initial[name] for name in stage.reset}
        sources |= {name: _as_built(networks, name) for name in stage.scratch}
        step = _plan_stage(context, cell, networks, stage, sources, stretch if stage.student_forwards else 1.0)
        planned.append(step)
        sources |= {part: step.origin(part, len(step.kept) - 1) for part in stage.trains}
    return Plan(cell, networks, tuple(planned), sources)


def stages_of(cell: Cell, specs: Mapping[str, FeatureSpec]) -> tuple[Stage, ...]:
    """The cell's stages, without its networks. specs: of the encoders, by the model's name."""
    if cell.student is None or cell.method is None:
        return _stages(None)
    pair = PairSpec(specs[cell.teacher.name], specs[cell.student.name], len(cell.benchmark.labels))
    return _stages(_method(cell.method, pair, cell))


def _stages(method: Method | None) -> tuple[Stage, ...]:
    return method.stages() if method is not None else (FIT_TEACHER,)


def stage_sets(context: RunContext, cell: Cell, phase: Phase) -> tuple[DomainSet, ...]:
    """A phase's data. A target is never among it; without labels all source images serve, however few are labelled."""
    if phase == Phase.PROXY:
        return (context.data_sources.proxy(cell.benchmark.proxy).without_labels(),)
    whole = [context.data_sources.train(domain) for domain in cell.benchmark.sources]
    if not phase.labelled:
        return tuple(samples.without_labels() for samples in whole)
    if cell.labels == 1:
        return tuple(whole)
    return tuple(Subset(samples, cell.labels, cell.seed) for samples in whole)


def _build(context: RunContext, cell: Cell) -> Networks:
    classes = len(cell.benchmark.labels)

    def segmentor(role: ModelSpec, encoder: Part, decoder: Part) -> Segmentor:
        body = seeded(lambda: context.models.build(role), cell.seed, encoder, role.name)

        def build_head() -> nn.Module:
            return body.own_decoder(classes) or build_decoder(context.protocol.decoder, body.spec, classes)

        return Segmentor(body, seeded(build_head, cell.seed, decoder))

    teacher = segmentor(cell.teacher, Part.TEACHER_ENCODER, Part.TEACHER_DECODER)
    if cell.student is None or cell.method is None:
        return Networks(teacher)
    student = segmentor(cell.student, Part.STUDENT_ENCODER, Part.STUDENT_DECODER)
    return Networks(teacher, student, _method(cell.method, PairSpec(teacher.spec, student.spec, classes), cell))


def _method(plugin: MethodPlugin, pair: PairSpec, cell: Cell) -> Method:
    method: Method = seeded(lambda: plugin.method(cell.config, pair), cell.seed, "method")
    return method


def _initial(context: RunContext, cell: Cell, networks: Networks) -> dict[str, WeightSource]:
    pretrained = {Part.TEACHER_ENCODER: cell.teacher, Part.STUDENT_ENCODER: cell.student}
    found: dict[str, WeightSource] = {}
    for name in networks.modules():
        role = pretrained.get(Part(name)) if name in set(Part) else None
        found[name] = _pretrained(context, role, name) if role is not None else _as_built(networks, name)
    return found


def _pretrained(context: RunContext, role: ModelSpec, part: str) -> WeightSource:
    def read() -> Mapping[str, Tensor]:
        state = context.models.load(role.name)
        # A teacher is never masked.
        if part == Part.STUDENT_ENCODER and (remark := context.models.remark(role, state)):
            context.progress.note(remark)
        return state

    return WeightSource(context.models.key(role), read)


def _as_built(networks: Networks, name: str) -> WeightSource:
    """A part's seeded random weights, known by their content: whatever draws the same weights shares its stages."""
    module = networks.modules()[name]
    state = copy.deepcopy(module.state_dict())
    return WeightSource(weights_digest(module), lambda: state)


def _stretch(context: RunContext, cell: Cell, stages: tuple[Stage, ...]) -> float:
    """By what the lengths of the student's stages are multiplied: by nothing, or to the equal track's passes."""
    if context.protocol.budget == "published":
        return 1.0
    published = 0.0
    for stage in stages:
        recipe = context.protocol.recipes[stage.phase]
        images = sum(map(len, stage_sets(context, cell, stage.phase))) if recipe.epochs else 0
        published += recipe.length(images) * stage.budget * recipe.batch * stage.student_forwards
    return context.protocol.student_forwards / published if published else 1.0


def _plan_stage(
    context: RunContext,
    cell: Cell,
    networks: Networks,
    stage: Stage,
    sources: Mapping[str, WeightSource],
    stretch: float,
) -> Planned:
    bound = networks.method is not None and getattr(stage.loss, "__self__", None) is networks.method
    own = {name for name, _ in networks.method.named_children()} if networks.method is not None and bound else set()
    parts = stage.parts | own | stage.own_modules
    inputs = {name: sources[name] for name in sorted(parts) if name in sources}
    recipe = context.protocol.recipes[stage.phase]
    sets = stage_sets(context, cell, stage.phase)
    images = sum(map(len, sets)) if recipe.epochs else 0
    steps = max(1, round(recipe.length(images) * stage.budget * stretch))
    recipe = recipe.model_copy(update={"warmup": round(recipe.warmup * stretch)}) if stretch != 1 else recipe
    keep = context.protocol.snapshots if stage.phase.labelled else (1.0,)
    key = key_of(
        context.fabric.device,
        context.protocol.precision,
        seed=cell.seed,
        phase=stage.phase,
        trains=sorted(stage.trains),
        inputs={name: origin.key for name, origin in inputs.items()},
        loss=[getattr(stage.loss, "__qualname__", ""), source_of(stage.loss)],
        method=method_source(networks.method) if networks.method is not None and bound else None,
        config=cell.config.model_dump(mode="json") if bound else None,
        recipe=recipe.model_dump(mode="json", exclude_defaults=True),
        resampling=context.protocol.resampling if recipe.patch is not None else None,
        steps=steps,
        keep=keep,
        data=[[samples.domain, samples.identity] for samples in sets],
        classes=len(cell.benchmark.labels) if stage.phase.labelled or stage.parts & DECODERS else None,
        decoder=context.protocol.decoder if stage.parts & DECODERS else None,
        # Masks and batch statistics are drawn within a process.
        processes=context.fabric.world_size,
        bf16_parts=sorted(context.bf16_parts(stage)),
        compiled=context.compiled,
    )
    kept = tuple(max(1, round(steps * share)) for share in keep)
    return Planned(stage, key, inputs, sets, recipe, steps, kept, context.store.stage(key))


def strides(networks: Networks, stage: Stage) -> dict[str, list[int]]:
    """Pixels between the positions of the maps of each encoder in play, as it stands now: fine to coarse, each once."""
    sides = (("teacher", Part.TEACHER_ENCODER, networks.teacher), ("student", Part.STUDENT_ENCODER, networks.student))
    return {
        side: sorted({*network.spec.strides, network.spec.final_stride})
        for side, part, network in sides
        if network is not None and part in stage.parts
    }


def deployed_parts(plan: Plan) -> frozenset[str]:
    """The parts that the evaluated segmentor may read."""
    if plan.networks.method is None:
        return frozenset(TEACHER)
    if type(plan.networks.method).deploy is Method.deploy:
        return frozenset({Part.STUDENT_ENCODER, Part.STUDENT_DECODER})
    return frozenset(plan.networks.modules())
