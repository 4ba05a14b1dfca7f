"""Plan a cell: its networks, where every part's weights come from, and the key of every stage.

Nothing is trained and no weights are read: a finished cell is recognised by its keys alone.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from lightning.fabric import Fabric
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from kdbench.benchmark import Benchmark
from kdbench.data.domainset import DomainSet, Subset
from kdbench.data.sources import DataSources
from kdbench.engine.keys import key_parts, method_source, source_of, weights_digest
from kdbench.engine.parts import Networks, WeightSource, check_stages
from kdbench.engine.store import StageFolder, Store
from kdbench.errors import KdbenchError
from kdbench.identity import digest
from kdbench.method import FIT_TEACHER, Method, MethodConfig, Stage
from kdbench.models.geometry import Geometry
from kdbench.models.registry import ModelSpec
from kdbench.models.segmentor import SegmentationModel, build_decoder, seeded
from kdbench.models.toy import ToyModels
from kdbench.models.weights import ModelSource
from kdbench.plugins import MethodPlugin
from kdbench.progress import Progress
from kdbench.protocol import Protocol, Recipe
from kdbench.records import CellId, StageResult
from kdbench.types import TEACHER, FeatureSpec, PairSpec, Part, Phase

DECODERS = frozenset({Part.TEACHER_DECODER, Part.STUDENT_DECODER})
COMMON_SEED = 0
"""The seed of every random draw in stages that are common to all seeds."""


@dataclass(frozen=True)
class Cell:
    """One run, with all that its stages compute with. student and method are None for the teacher's own row."""

    id: CellId
    benchmark: Benchmark
    teacher: ModelSpec
    student: ModelSpec | None = None
    method: MethodPlugin | None = None
    config: MethodConfig = field(default_factory=MethodConfig)
    stages_done: tuple[str, ...] = ()
    """Stages that the student's weights have been through before."""

    @property
    def seed(self) -> int:
        """The seed of every random draw outside of common phases."""
        return self.id.seed

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.benchmark.labels)


@dataclass(frozen=True)
class RunContext:
    """What all cells of a run share. workers: processes that read images ahead. compiled: through torch.compile."""

    protocol: Protocol
    data_sources: DataSources
    store: Store
    fabric: Fabric
    progress: Progress
    models: ModelSource = field(default_factory=ToyModels)
    workers: int = 0
    compiled: bool = False

    def make_cell(
        self,
        benchmark: Benchmark,
        teacher: ModelSpec,
        student: ModelSpec | None = None,
        method: MethodPlugin | None = None,
        config: MethodConfig | None = None,
        *,
        variant: str = "",
        seed: int = 0,
        label_fraction: Fraction = Fraction(1),
    ) -> Cell:
        """Name a cell of this run; without student and method the teacher's own row."""
        id = CellId(
            protocol_id=self.protocol.id,
            data_source=self.data_sources.data_source_of(benchmark),
            benchmark=benchmark.name,
            teacher=teacher.name,
            student=student.name if student else None,
            method=method.name if method else "teacher",
            variant=variant,
            seed=seed,
            label_fraction=str(label_fraction),
        )
        return Cell(id, benchmark, teacher, student, method, config or MethodConfig())

    def seed_of(self, cell: Cell, phase: Phase) -> int:
        """Return the seed of a phase's random draws: the cell's, unless the phase is common to all seeds."""
        return COMMON_SEED if phase in self.protocol.common else cell.seed

    def sharers(self, recipe: Recipe) -> int:
        """Return how many processes share a batch of a recipe."""
        return self.fabric.world_size if recipe.shared else 1

    def geometry(self, recipe: Recipe, size: tuple[int, int]) -> Geometry | None:
        """Return what a recipe brings encoders to, for images of a size."""
        return None if recipe.patch is None else Geometry(recipe.patch, size, self.protocol.resampling)

    def bf16_parts(self, stage: Stage) -> frozenset[str]:
        """Return what a stage holds in bfloat16: the frozen teacher's encoder, where products are rounded so anyway.

        Not its decoder, which may choose single precision for some of its layers, as Mask2Former's does.
        """
        mixed = self.protocol.precision == "bf16-mixed"
        return (stage.parts & {Part.TEACHER_ENCODER}) - stage.trains if mixed else frozenset()


@dataclass(frozen=True)
class PlannedStage:
    """A stage with everything that it reads.

    snapshots: the steps after which it keeps what it trains. common: its phase is common to all seeds. key_parts: what
    the key hashes; nothing where the key comes from a record.
    """

    stage: Stage
    key: str
    inputs: Mapping[str, WeightSource]
    sets: tuple[DomainSet, ...]
    recipe: Recipe
    steps: int
    snapshots: tuple[int, ...]
    folder: StageFolder
    common: bool = False
    key_parts: Mapping[str, Any] = field(default_factory=dict)

    def trained(self, part: str, snapshot: int) -> WeightSource:
        """Return a part that the stage trained, as one of its snapshots has it."""
        return WeightSource(f"{self.key}/{snapshot}/{part}", lambda: self.folder.load_snapshot(snapshot, part))


@dataclass(frozen=True)
class Plan:
    """A cell ready to run. final: where every part's weights come from once all stages are done."""

    cell: Cell
    networks: Networks
    stages: tuple[PlannedStage, ...]
    final: Mapping[str, WeightSource]

    def steps_before(self, stage: PlannedStage) -> int:
        """Return how many steps the stages before one take."""
        return sum(earlier.steps for earlier in itertools.takewhile(lambda each: each is not stage, self.stages))

    def at(self, snapshot: int) -> dict[str, WeightSource]:
        """Return all parts at a snapshot of the last stage."""
        last = self.stages[-1]
        return {**self.final, **{part: last.trained(part, snapshot) for part in last.stage.trains}}


def make_plan(context: RunContext, cell: Cell) -> Plan:
    """Build the networks and chain the stages' keys."""
    networks, stages = networks_and_stages(context, cell)
    factor = _step_factor(context, cell, stages)

    def plan_stage(stage: Stage, sources: Mapping[str, WeightSource]) -> PlannedStage:
        own = (factor if stage.student_forwards else 1.0) * context.protocol.steps_scale
        return _plan_stage(context, cell, networks.method, stage, sources, own)

    return _chain(context, cell, networks, stages, plan_stage)


def recorded_plan(context: RunContext, cell: Cell, results: Sequence[StageResult]) -> Plan:
    """Return the plan of a finished cell with the keys and steps of its record; no data set is opened."""
    networks, stages = networks_and_stages(context, cell)
    recorded = {result.name: result for result in results}
    if list(recorded) != [stage.name for stage in stages]:
        raise KdbenchError(
            f"the record of {cell.id.label} has the stages {', '.join(recorded)}, and the method has today "
            f"{', '.join(stage.name for stage in stages)}. Run the cell again."
        )

    def plan_stage(stage: Stage, sources: Mapping[str, WeightSource]) -> PlannedStage:
        result, recipe = recorded[stage.name], context.protocol.recipes[stage.phase]
        snapshots = _snapshots(context.protocol, stage, result.steps)
        folder = context.store.stage(result.key)
        common = stage.phase in context.protocol.common
        return PlannedStage(stage, result.key, {}, (), recipe, result.steps, snapshots, folder, common)

    return _chain(context, cell, networks, stages, plan_stage)


def networks_and_stages(context: RunContext, cell: Cell) -> tuple[Networks, tuple[Stage, ...]]:
    """Build a cell's networks with their seeded random weights, and check its stages."""
    networks = _build(context, cell, cell.seed)
    if networks.method is None:
        return networks, (FIT_TEACHER,)
    stages = networks.method.stages()
    check_stages(networks.method, stages, networks)
    return networks, _to_do(cell, stages)


def _to_do(cell: Cell, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """Return the stages that the student's weights have not been through; those done have to be the first."""
    done, names = cell.stages_done, [stage.name for stage in stages]
    if sorted(names[: len(done)]) != sorted(done) or len(done) == len(names):
        raise KdbenchError(
            f"--stages-done {','.join(done)}: {cell.id.method} has the stages {', '.join(names)}. Name some of the "
            "first ones, and not all."
        )
    return stages[len(done) :]


def _chain(
    context: RunContext,
    cell: Cell,
    networks: Networks,
    stages: tuple[Stage, ...],
    plan_stage: Callable[[Stage, Mapping[str, WeightSource]], PlannedStage],
) -> Plan:
    """Plan the stages in order; each starts from the weights that those before it leave."""
    common = own = _Weights(context, cell, networks, cell.seed)
    if any(stage.phase in context.protocol.common for stage in stages):
        drawn = networks if cell.seed == COMMON_SEED else _build(context, cell, COMMON_SEED)
        common = _CommonWeights(context, cell, drawn, COMMON_SEED)
    planned = []
    for stage in stages:
        for weights in (own, common):
            weights.put_back(stage)
        step = plan_stage(stage, (common if stage.phase in context.protocol.common else own).sources)
        planned.append(step)
        for weights in (own, common):
            weights.sources |= {part: step.trained(part, len(step.snapshots) - 1) for part in stage.trains}
    return Plan(cell, networks, tuple(planned), own.sources)


class _Weights:
    """Where the parts' weights come from, one stage after the other."""

    def __init__(self, context: RunContext, cell: Cell, networks: Networks, seed: int) -> None:
        self._context, self._cell, self._networks, self._seed = context, cell, networks, seed
        self._initial = {name: self._first(name) for name in networks.modules()}
        self.sources = dict(self._initial)

    def put_back(self, stage: Stage) -> None:
        """Put back what a stage resets or begins from random weights."""
        self.sources |= {name: self._reset(name, stage) for name in stage.reset}
        self.sources |= {name: self._as_built(name) for name in stage.scratch}

    def _first(self, name: str) -> WeightSource:
        """Return a part's weights before any stage: an encoder's pretrained ones, else the seeded random ones."""
        cell, context = self._cell, self._context
        spec = {Part.TEACHER_ENCODER.value: cell.teacher, Part.STUDENT_ENCODER.value: cell.student}.get(name)
        return self._as_built(name) if spec is None else _pretrained(context, spec, name)

    def _reset(self, name: str, stage: Stage) -> WeightSource:
        """Return a network's weights before any stage; of a method's module random ones that are the stage's own.

        The ones that it had first would know, where the seed is the common one, what a stage common to all seeds began
        with: that seed's encoder has been trained towards them.
        """
        method, cell = self._networks.method, self._cell
        if name in set(Part) or method is None or cell.method is None:
            return self._initial[name]
        drawn = _method(cell.method, method.pair, cell.config, self._seed, stage.phase)
        module = dict(drawn.named_children())[name]
        state = module.state_dict()
        return WeightSource(f"{self._drawn(name, module)} for {stage.phase}", lambda: state)

    def _as_built(self, name: str) -> WeightSource:
        module = self._networks.modules()[name]
        state = copy.deepcopy(module.state_dict())
        return WeightSource(self._drawn(name, module), lambda: state)

    def _drawn(self, name: str, module: nn.Module) -> str:
        """Key random weights by content: whatever draws the same weights shares its stages."""
        return weights_digest(module)


class _CommonWeights(_Weights):
    """The same for stages that are common to all seeds, where random weights are keyed by what draws them.

    Their last bit may be another on another processor, where a shipped stage still has to be found.
    """

    def _drawn(self, name: str, module: nn.Module) -> str:
        cell, method = self._cell, self._networks.method
        shapes = [[key, str(tensor.dtype), list(tensor.shape)] for key, tensor in module.state_dict().items()]
        model = cell.teacher if name in TEACHER else cell.student
        if method is None or name in set(Part):
            return digest([name, model and model.name, shapes])
        ignored = [stage.ignores for stage in method.stages() if name in stage.trains]
        config = _dumped(cell.config, frozenset.intersection(*ignored) if ignored else frozenset())
        return digest([name, method_source(method), config, self._classes, shapes])

    @functools.cached_property
    def _classes(self) -> int | None:
        """The number of classes if the method's weights depend on it: if another number draws others."""
        method, cell = self._networks.method, self._cell
        assert method is not None
        assert cell.method is not None
        pair = method.pair
        other = _method(cell.method, replace(pair, classes=pair.classes + 1), cell.config, COMMON_SEED)
        built, again = ({n: weights_digest(m) for n, m in each.named_children()} for each in (method, other))
        return pair.classes if built != again else None


def stages_of(cell: Cell, specs: Mapping[str, FeatureSpec]) -> tuple[Stage, ...]:
    """Return the cell's stages without building its networks. specs: of the encoders, by the model's name."""
    if cell.student is None or cell.method is None:
        return (FIT_TEACHER,)
    pair = PairSpec(specs[cell.teacher.name], specs[cell.student.name], cell.classes)
    return _to_do(cell, _method(cell.method, pair, cell.config, cell.seed).stages())


def stage_sets(context: RunContext, cell: Cell, phase: Phase) -> tuple[DomainSet, ...]:
    """Return a phase's data, never a target. Phases without labels use all source images, however few are labelled."""
    if phase == Phase.PROXY:
        return (context.data_sources.proxy(cell.benchmark.proxy).without_labels(),)
    whole = [context.data_sources.train(domain) for domain in cell.benchmark.sources]
    if not phase.labelled:
        return tuple(samples.without_labels() for samples in whole)
    fraction = Fraction(cell.id.label_fraction)
    seed = context.seed_of(cell, phase)
    return tuple(whole if fraction == 1 else (Subset(samples, fraction, seed) for samples in whole))


def _build(context: RunContext, cell: Cell, seed: int) -> Networks:
    def segmentor(model: ModelSpec, encoder: Part, decoder: Part) -> SegmentationModel:
        body = seeded(lambda: context.models.find(model).build(), seed, encoder, model.name)
        if model.name in context.protocol.imagenet_colours:
            body.normalise_as(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)

        def build_head() -> nn.Module:
            return body.own_decoder(cell.classes) or build_decoder(context.protocol.decoder, body.spec, cell.classes)

        return SegmentationModel(body, seeded(build_head, seed, decoder))

    teacher = segmentor(cell.teacher, Part.TEACHER_ENCODER, Part.TEACHER_DECODER)
    if cell.student is None or cell.method is None:
        return Networks(teacher)
    student = segmentor(cell.student, Part.STUDENT_ENCODER, Part.STUDENT_DECODER)
    pair = PairSpec(teacher.spec, student.spec, cell.classes)
    return Networks(teacher, student, _method(cell.method, pair, cell.config, seed))


def _method(plugin: MethodPlugin, pair: PairSpec, config: MethodConfig, seed: int, *purpose: str) -> Method[Any]:
    """Build a method with random weights. purpose: what they are for, where that is not the first stage."""
    method: Method[Any] = seeded(lambda: plugin.method(config, pair), seed, "method", *purpose)
    return method


def _pretrained(context: RunContext, spec: ModelSpec, name: str) -> WeightSource:
    """Return an encoder's pretrained weights."""
    model = context.models.find(spec)

    def read() -> Mapping[str, Tensor]:
        state = model.load()
        # A teacher is never masked.
        if name == Part.STUDENT_ENCODER and (note := model.note(state)):
            context.progress.note(note)
        return state

    colours = ", ImageNet's colours" if spec.name in context.protocol.imagenet_colours else ""
    return WeightSource(model.key() + colours, read)


def _step_factor(context: RunContext, cell: Cell, stages: tuple[Stage, ...]) -> float:
    """Return the factor on the steps of the student's stages; 1 unless budgets are equal."""
    if context.protocol.budget == "published":
        return 1.0
    published = 0.0
    for stage in stages:
        recipe = context.protocol.recipes[stage.phase]
        length = _length(recipe, stage_sets(context, cell, stage.phase) if recipe.epochs else ())
        published += length * stage.budget * recipe.batch * stage.student_forwards
    return context.protocol.student_forwards / published if published else 1.0


def _length(recipe: Recipe, sets: Iterable[DomainSet]) -> int:
    """Return a recipe's steps. The sets are measured only where it counts in epochs: that may read their files."""
    return recipe.length(sum(map(len, sets)) if recipe.epochs else 0)


def _plan_stage(
    context: RunContext,
    cell: Cell,
    method: Method[Any] | None,
    stage: Stage,
    sources: Mapping[str, WeightSource],
    factor: float,
) -> PlannedStage:
    protocol = context.protocol
    # The method, where the loss is its own: the loss may then use all of its modules and options.
    owner = method if method is not None and getattr(stage.loss, "__self__", None) is method else None
    own = {name for name, _ in owner.named_children()} if owner is not None else set()
    inputs = {name: sources[name] for name in sorted(stage.parts | stage.own_modules | own) if name in sources}
    recipe, sets = protocol.recipes[stage.phase], stage_sets(context, cell, stage.phase)
    steps = max(1, round(_length(recipe, sets) * stage.budget * factor))
    recipe = recipe.model_copy(update={"warmup": round(recipe.warmup * factor)}) if factor != 1 else recipe
    common = stage.phase in protocol.common
    parts = key_parts(
        # A common stage is one for all devices; where it was computed stands in its summary.
        None if common else context.fabric.device,
        protocol.precision,
        seed=context.seed_of(cell, stage.phase),
        phase=stage.phase,
        trains=sorted(stage.trains),
        inputs={name: source.key for name, source in inputs.items()},
        loss=[getattr(stage.loss, "__qualname__", ""), source_of(stage.loss)],
        method=method_source(owner) if owner is not None else None,
        config=_dumped(cell.config, stage.ignores) if owner is not None else None,
        recipe=recipe.model_dump(mode="json", exclude_defaults=True),
        resampling=protocol.resampling if recipe.patch is not None else None,
        steps=steps,
        snapshots=_shares(protocol, stage),
        data=[[samples.domain, samples.identity] for samples in sets],
        classes=cell.classes if stage.phase.labelled or stage.parts & DECODERS else None,
        decoder=protocol.decoder if stage.parts & DECODERS else None,
        # Masks and batch statistics are drawn within a process.
        processes=context.sharers(recipe),
        bf16_parts=sorted(context.bf16_parts(stage)),
        **({"result": "half precision"} if common else {"compiled": context.compiled}),
    )
    key, snapshots = digest(parts), _snapshots(protocol, stage, steps)
    folder = context.store.stage(key)
    return PlannedStage(stage, key, inputs, sets, recipe, steps, snapshots, folder, common, parts)


def _dumped(config: MethodConfig, ignored: frozenset[str]) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=set(ignored))


def _shares(protocol: Protocol, stage: Stage) -> tuple[float, ...]:
    return protocol.snapshots if stage.phase.labelled else (1.0,)


def _snapshots(protocol: Protocol, stage: Stage, steps: int) -> tuple[int, ...]:
    return tuple(max(1, round(steps * share)) for share in _shares(protocol, stage))


def strides(networks: Networks, stage: Stage) -> dict[str, list[int]]:
    """Return the strides of each encoder's maps in a stage, in pixels as the encoder stands now, fine to coarse."""
    sides = (("teacher", Part.TEACHER_ENCODER, networks.teacher), ("student", Part.STUDENT_ENCODER, networks.student))
    return {
        side: sorted({*network.spec.strides, network.spec.final_stride})
        for side, part, network in sides
        if network is not None and part in stage.parts
    }
