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
from kdbench.data.sources import Worlds
from kdbench.data.subset import Subset
from kdbench.engine.keys import key_of, method_source, source_of, weights_digest
from kdbench.engine.parts import Networks, Origin, check_stages
from kdbench.engine.store import StageFolder, Store
from kdbench.method import FIT_TEACHER, Knobs, Method, Stage
from kdbench.models.geometry import Geometry
from kdbench.models.pretrained import Weights
from kdbench.models.registry import Role
from kdbench.models.segmentor import Segmentor, build_decoder, seeded
from kdbench.models.toy import Zoo
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
    teacher: Role
    student: Role | None
    method: MethodPlugin | None
    knobs: Knobs
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
class Lab:
    """What all cells of a run share."""

    protocol: Protocol
    worlds: Worlds
    store: Store
    fabric: Fabric
    progress: Progress
    zoo: Weights = field(default_factory=Zoo)
    workers: int = 0
    """Processes that read training images ahead."""
    compiled: bool = False
    """Whether encoders train through torch.compile."""

    def geometry(self, recipe: Recipe, size: tuple[int, int]) -> Geometry | None:
        """What a recipe brings encoders to, for images of a size."""
        return None if recipe.patch is None else Geometry(recipe.patch, size, self.protocol.resampling)

    def halved(self, stage: Stage) -> frozenset[str]:
        """What a stage holds in bfloat16: the frozen teacher's encoder, where products are rounded so anyway.

        Not its decoder, which may choose single precision for some of its layers, as Mask2Former's does.
        """
        mixed = self.protocol.precision == "bf16-mixed"
        return (stage.parts & {Part.TEACHER_ENCODER}) - stage.trains if mixed else frozenset()


@dataclass(frozen=True)
class Planned:
    """A stage with everything that it reads: data, recipe, and the weights that its parts start from."""

    stage: Stage
    key: str
    inputs: Mapping[str, Origin]
    sets: tuple[DomainSet, ...]
    recipe: Recipe
    steps: int
    kept: tuple[int, ...]
    """The steps after which the stage keeps what it trains."""
    folder: StageFolder

    def origin(self, part: str, point: int) -> Origin:
        """A part that the stage trained, at one of its kept points."""
        return Origin(f"{self.key}/{point}/{part}", lambda: self.folder.load_point(point, part))


@dataclass(frozen=True)
class Plan:
    """A cell ready to run. final: where every part's weights come from once all stages are done."""

    cell: Cell
    networks: Networks
    stages: tuple[Planned, ...]
    final: Mapping[str, Origin]

    def before(self, step: Planned) -> int:
        """How many steps the stages before one take."""
        return sum(earlier.steps for earlier in itertools.takewhile(lambda stage: stage is not step, self.stages))

    def at(self, point: int) -> dict[str, Origin]:
        """The parts as they are when the last stage has reached a kept point."""
        last = self.stages[-1]
        return {**self.final, **{part: last.origin(part, point) for part in last.stage.trains}}


def make_plan(lab: Lab, cell: Cell) -> Plan:
    """Builds the networks and chains the stages' keys."""
    networks = _build(lab, cell)
    stages = _stages(networks.method)
    if networks.method is not None:
        check_stages(networks.method, stages, networks)
    initial = _initial(lab, cell, networks)
    origins, planned = dict(initial), []
    stretch = _stretch(lab, cell, stages)
    for stage in stages:
        origins |= {name: initial[name] for name in stage.reset}
        origins |= {name: _as_built(networks, name) for name in stage.scratch}
        step = _plan_stage(lab, cell, networks, stage, origins, stretch if stage.passes else 1.0)
        planned.append(step)
        origins |= {part: step.origin(part, len(step.kept) - 1) for part in stage.trains}
    return Plan(cell, networks, tuple(planned), origins)


def stages_of(cell: Cell, specs: Mapping[str, FeatureSpec]) -> tuple[Stage, ...]:
    """The cell's stages, without its networks. specs: of the encoders, by the model's name."""
    if cell.student is None or cell.method is None:
        return _stages(None)
    pair = PairSpec(specs[cell.teacher.name], specs[cell.student.name], len(cell.benchmark.labels))
    return _stages(_method(cell.method, pair, cell))


def _stages(method: Method | None) -> tuple[Stage, ...]:
    return method.stages() if method is not None else (FIT_TEACHER,)


def stage_sets(lab: Lab, cell: Cell, phase: Phase) -> tuple[DomainSet, ...]:
    """A phase's data. A target is never among it; without labels all source images serve, however few are labelled."""
    if phase == Phase.PROXY:
        return (lab.worlds.proxy(cell.benchmark.proxy).without_labels(),)
    whole = [lab.worlds.train(domain) for domain in cell.benchmark.sources]
    if not phase.labelled:
        return tuple(samples.without_labels() for samples in whole)
    if cell.labels == 1:
        return tuple(whole)
    return tuple(Subset(samples, cell.labels, cell.seed) for samples in whole)


def _build(lab: Lab, cell: Cell) -> Networks:
    classes = len(cell.benchmark.labels)

    def segmentor(role: Role, encoder: Part, decoder: Part) -> Segmentor:
        body = seeded(lambda: lab.zoo.build(role), cell.seed, encoder, role.name)

        def build_head() -> nn.Module:
            return body.own_decoder(classes) or build_decoder(lab.protocol.decoder, body.spec, classes)

        return Segmentor(body, seeded(build_head, cell.seed, decoder))

    teacher = segmentor(cell.teacher, Part.TEACHER_ENCODER, Part.TEACHER_DECODER)
    if cell.student is None or cell.method is None:
        return Networks(teacher)
    student = segmentor(cell.student, Part.STUDENT_ENCODER, Part.STUDENT_DECODER)
    return Networks(teacher, student, _method(cell.method, PairSpec(teacher.spec, student.spec, classes), cell))


def _method(plugin: MethodPlugin, pair: PairSpec, cell: Cell) -> Method:
    method: Method = seeded(lambda: plugin.method(cell.knobs, pair), cell.seed, "method")
    return method


def _initial(lab: Lab, cell: Cell, networks: Networks) -> dict[str, Origin]:
    pretrained = {Part.TEACHER_ENCODER: cell.teacher, Part.STUDENT_ENCODER: cell.student}
    found: dict[str, Origin] = {}
    for name in networks.modules():
        role = pretrained.get(Part(name)) if name in set(Part) else None
        found[name] = _pretrained(lab, role, name) if role is not None else _as_built(networks, name)
    return found


def _pretrained(lab: Lab, role: Role, part: str) -> Origin:
    def read() -> Mapping[str, Tensor]:
        state = lab.zoo.load(role.name)
        # A teacher is never masked.
        if part == Part.STUDENT_ENCODER and (remark := lab.zoo.remark(role, state)):
            lab.progress.note(remark)
        return state

    return Origin(lab.zoo.key(role), read)


def _as_built(networks: Networks, name: str) -> Origin:
    """A part's seeded random weights, known by their content: whatever draws the same weights shares its stages."""
    module = networks.modules()[name]
    state = copy.deepcopy(module.state_dict())
    return Origin(weights_digest(module), lambda: state)


def _stretch(lab: Lab, cell: Cell, stages: tuple[Stage, ...]) -> float:
    """By what the lengths of the student's stages are multiplied: by nothing, or to the equal track's passes."""
    if lab.protocol.track == "paper":
        return 1.0
    published = 0.0
    for stage in stages:
        recipe = lab.protocol.recipes[stage.phase]
        images = sum(map(len, stage_sets(lab, cell, stage.phase))) if recipe.epochs else 0
        published += recipe.length(images) * stage.budget * recipe.batch * stage.passes
    return lab.protocol.passes / published if published else 1.0


def _plan_stage(
    lab: Lab, cell: Cell, networks: Networks, stage: Stage, origins: Mapping[str, Origin], stretch: float
) -> Planned:
    bound = networks.method is not None and getattr(stage.loss, "__self__", None) is networks.method
    own = {name for name, _ in networks.method.named_children()} if networks.method is not None and bound else set()
    parts = stage.parts | own | stage.own_modules
    inputs = {name: origins[name] for name in sorted(parts) if name in origins}
    recipe = lab.protocol.recipes[stage.phase]
    sets = stage_sets(lab, cell, stage.phase)
    images = sum(map(len, sets)) if recipe.epochs else 0
    steps = max(1, round(recipe.length(images) * stage.budget * stretch))
    recipe = recipe.model_copy(update={"warmup": round(recipe.warmup * stretch)}) if stretch != 1 else recipe
    keep = lab.protocol.keep if stage.phase.labelled else (1.0,)
    key = key_of(
        lab.fabric.device,
        lab.protocol.precision,
        seed=cell.seed,
        phase=stage.phase,
        trains=sorted(stage.trains),
        inputs={name: origin.key for name, origin in inputs.items()},
        loss=[getattr(stage.loss, "__qualname__", ""), source_of(stage.loss)],
        method=method_source(networks.method) if networks.method is not None and bound else None,
        knobs=cell.knobs.model_dump(mode="json") if bound else None,
        recipe=recipe.model_dump(mode="json", exclude_defaults=True),
        resampling=lab.protocol.resampling if recipe.patch is not None else None,
        steps=steps,
        keep=keep,
        data=[[samples.domain, samples.identity] for samples in sets],
        classes=len(cell.benchmark.labels) if stage.phase.labelled or stage.parts & DECODERS else None,
        decoder=lab.protocol.decoder if stage.parts & DECODERS else None,
        # Masks and batch statistics are drawn within a process.
        processes=lab.fabric.world_size,
        halved=sorted(lab.halved(stage)),
        compiled=lab.compiled,
    )
    kept = tuple(max(1, round(steps * share)) for share in keep)
    return Planned(stage, key, inputs, sets, recipe, steps, kept, lab.store.stage(key))


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
