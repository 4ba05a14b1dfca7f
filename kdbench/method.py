"""What a method is. This is the one file that an author of a method reads.

A method is a list of stages, and a stage is a value: which phase of the protocol it runs in, which parts it trains and
which loss it minimises. The engine loops, steps, freezes, caches and evaluates; a method returns named losses and
never steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from kdbench.errors import KdbenchError
from kdbench.losses import same_grid
from kdbench.types import ENCODERS, STUDENT, TEACHER, Batch, Features, PairSpec, Part, Phase, Segmentor

Loss = Callable[[Batch, Segmentor, Segmentor], dict[str, Tensor]]
"""(batch, student, teacher) -> named scalar losses, already weighted; the engine minimises their sum."""


class MethodConfig(BaseModel):
    """A method's options: `weight: float = Field(1.0, ge=0, description="what it is. Source: paper, equation")`.

    Defaults are the published values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


class PresetConfig(MethodConfig):
    """Options of a method whose published numbers were obtained together with other losses."""

    preset: Literal["plain", "published"] = Field(
        "plain",
        description="plain: this method's own loss alone; published: with the auxiliary losses of its published "
        "numbers, without adversarial ones",
    )


ConfigT = TypeVar("ConfigT", bound=MethodConfig)


@dataclass(frozen=True)
class Stage:
    """One step of a method.

    Args:
        name: Unique in the method; stands in the record.
        phase: Picks the protocol's data, steps and optimiser.
        trains: Parts, or names of the method's own sub-modules. All else is frozen and in eval mode, as a whole.
        loss: What is minimised: a method of the class (`self.loss`) or a function of a module.
        uses: Parts that the loss reads besides those it trains. By default all four where the phase is labelled and
            both encoders where it is not; a smaller set lets the engine share the stage between runs.
        reset: What is put back first: a network to its pretrained weights, a module of the method to random ones.
        scratch: What is put to random weights first.
        budget: Factor on the phase's steps.
        student_forwards: How often an image passes through the student in a step; the equal budget counts these.
        ignores: Options that change nothing in it: runs that differ in these alone share the stage.
    """

    name: str
    phase: Phase
    trains: frozenset[str]
    loss: Loss
    uses: frozenset[Part] | None = None
    reset: frozenset[str] = frozenset()
    scratch: frozenset[str] = frozenset()
    budget: float = 1.0
    student_forwards: float = 1.0
    ignores: frozenset[str] = frozenset()

    @property
    def parts(self) -> frozenset[Part]:
        """Every network part that the stage trains or reads."""
        read = self.uses if self.uses is not None else (STUDENT | TEACHER if self.phase.labelled else ENCODERS)
        return read | {Part(name) for name in self.trains if name in set(Part)}

    @property
    def smallest_batch(self) -> int:
        """Images that the loss needs at once: its method's `smallest_batch`, 1 for a plain function."""
        return int(getattr(getattr(self.loss, "__self__", None), "smallest_batch", 1))

    @property
    def own_modules(self) -> frozenset[str]:
        """The method's own sub-modules that the stage trains."""
        return self.trains - set(Part)


def teacher_task_loss(batch: Batch, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
    """The teacher's own supervised loss, for fitting its decoder on a frozen encoder."""
    return teacher.task_loss(teacher(batch.image), batch.label)


def task_loss(batch: Batch, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
    """The student's own supervised loss, without any distillation."""
    return student.task_loss(student(batch.image), batch.label)


FIT_TEACHER = Stage(
    "fit_teacher",
    Phase.FIT_TEACHER,
    trains=frozenset({Part.TEACHER_DECODER}),
    uses=frozenset({Part.TEACHER_ENCODER}),
    loss=teacher_task_loss,
    student_forwards=0.0,
)
"""Fits the frozen teacher's decoder on the labelled source: what a method needs first when it reads teacher logits."""


def task_stage(freeze_encoder: bool = False) -> Stage:
    """The student alone learns the task on the labelled source, with its encoder frozen or fine-tuned."""
    trains = frozenset({Part.STUDENT_DECODER}) if freeze_encoder else STUDENT
    return Stage("task", Phase.TASK, trains=trains, uses=STUDENT, loss=task_loss)


class Method(nn.Module, Generic[ConfigT]):
    """How a student learns from a teacher: `class Mine(Method[MineConfig])`.

    By default the teacher's decoder is fitted, then one joint stage minimises `loss` on the labelled source. The first
    line of a subclass's docstring is its idea, shown in lists; its sections "Formula:", "Deviations:" and "Compared:"
    stand on the method's page (docs/methods.md).

    `LogitMethod` hands `terms` the logits, `FeatureMethod` the features; to use both, override `loss` here and return
    `student.task_loss(...)` among the terms.

    Sub-modules are the method's own (projectors, heads, memories): trained where a stage's `trains` names them, dropped
    at deployment. Parameters and buffers live in sub-modules, never directly on the method.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    """The class of its options, found from `Method[...]`."""
    paper: ClassVar[str] = ""
    role: ClassVar[Literal["distilled", "undistilled"]] = "distilled"
    requires: ClassVar[str] = ""
    """An optional package that the method is built on."""
    reads_teacher_logits: bool = True
    """Whether the joint stage reads the teacher's logits, so that the teacher's decoder is fitted first."""
    smallest_batch: int = 1
    """Images that its losses compare with each other. A run that gives a process or a micro-batch fewer is refused."""
    unused_parameters: ClassVar[tuple[str, ...]] = ()
    """Patterns (fnmatch) of parameters that a stage trains and no gradient reaches, such as those that the published
    method carries along: `head.query.*`. All others get one, as kdbench.conformance checks."""
    footnote: str = ""
    """What a reader of a board must know of this pair, such as an extension beyond the paper."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for base in cls.__dict__.get("__orig_bases__", ()):
            for argument in get_args(base):
                if not isinstance(argument, TypeVar):
                    cls.Config = argument

    def __init__(self, config: ConfigT, pair: PairSpec) -> None:
        super().__init__()
        self.config = config
        self.pair = pair

    @property
    def own_modules(self) -> frozenset[str]:
        """Names of its sub-modules that hold parameters or buffers."""
        return frozenset(name for name, module in self.named_children() if module.state_dict())

    def stages(self) -> tuple[Stage, ...]:
        """Its stages in order."""
        return (FIT_TEACHER, self.joint_stage()) if self.reads_teacher_logits else (self.joint_stage(),)

    def joint_stage(self) -> Stage:
        """Student and the method's own modules learn together on the labelled source, under `loss`."""
        uses = None if self.reads_teacher_logits else STUDENT | {Part.TEACHER_ENCODER}
        return Stage("joint", Phase.TASK, trains=STUDENT | self.own_modules, uses=uses, loss=self.loss)

    def loss(self, batch: Batch, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
        """The joint stage's named losses, the task loss among them."""
        raise NotImplementedError(f"{type(self).__name__} defines neither loss() nor stages()")

    def deploy(self, student: nn.Module, teacher: nn.Module) -> nn.Module:
        """The segmentor that is evaluated, counted and exported; a method that keeps a projector returns a wrapper."""
        return student


def check_terms(terms: Any) -> dict[str, Tensor]:
    """Return the terms of a loss; anything but named scalar tensors is an error that says so."""
    if not isinstance(terms, Mapping) or not terms:
        what = "no terms" if isinstance(terms, Mapping) else f"a {type(terms).__name__}"
        raise KdbenchError(f"a loss returned {what}; return a dict of named scalar tensors.")
    for name, value in terms.items():
        if not isinstance(value, Tensor):
            raise KdbenchError(f"loss '{name}' is a {type(value).__name__}; return a scalar tensor.")
        if value.ndim:
            raise KdbenchError(f"loss '{name}' has shape {tuple(value.shape)}, not a scalar; take its mean or its sum.")
    return dict(terms)


def merge_terms(losses: Mapping[str, Tensor], terms: Any) -> dict[str, Tensor]:
    """Add terms to losses; a name that both have is an error, since one of the two would be lost."""
    if not isinstance(terms, Mapping):
        raise KdbenchError(f"terms() returns a {type(terms).__name__}; return a dict of named scalar tensors.")
    repeated = sorted(losses.keys() & terms.keys())
    if repeated:
        raise KdbenchError(f"terms() names a loss '{repeated[0]}', which the loss has already. Give it another name.")
    return {**losses, **terms}


class LogitMethod(Method[ConfigT]):
    """A method that compares the class logits of labelled source images, beside the task loss."""

    def loss(self, batch: Batch, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
        output = student(batch.image)
        logits = same_grid(output.logits, teacher(batch.image).logits)
        return merge_terms(student.task_loss(output, batch.label), self.terms(batch, *logits))

    def terms(self, batch: Batch, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Named losses, already weighted, of logits (B, K, h, w) on one grid."""
        raise NotImplementedError(f"{type(self).__name__} does not define terms()")


class FeatureMethod(Method[ConfigT]):
    """A method that compares the features of labelled source images, beside the task loss."""

    auxiliary_losses: ClassVar[Mapping[str, Callable[[Tensor, Tensor], Tensor]]] = {}
    """What `preset=published` adds (see PresetConfig): name -> weighted loss of student and teacher logits on one
    grid."""
    blocks: tuple[int, ...] = ()
    """Blocks of both encoders that `terms` reads besides levels and final: 0 is the first, -1 the last. In networks
    without blocks these are the resolution steps; a number that an encoder does not have is an error."""

    def __init__(self, config: ConfigT, pair: PairSpec) -> None:
        super().__init__(config, pair)
        self.reads_teacher_logits = isinstance(config, PresetConfig) and config.preset == "published"

    def loss(self, batch: Batch, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
        output = student.decode(student.encode(batch.image, blocks=self.blocks))
        theirs = teacher.encode(batch.image, blocks=self.blocks)
        terms = merge_terms(student.task_loss(output, batch.label), self.terms(batch, output.features, theirs))
        if self.reads_teacher_logits:
            logits = same_grid(output.logits, teacher.decode(theirs).logits)
            terms = merge_terms(terms, {name: loss(*logits) for name, loss in self.auxiliary_losses.items()})
        return terms

    def terms(self, batch: Batch, student: Features, teacher: Features) -> dict[str, Tensor]:
        """Named losses, already weighted."""
        raise NotImplementedError(f"{type(self).__name__} does not define terms()")


class RepresentationMethod(Method[ConfigT]):
    """A method that passes on the teacher's representation without labels, before the student learns the task.

    Its `loss` trains the student's encoder on the proxy set, then on the source's images with the method's own modules
    drawn anew. Then the student alone learns the task.
    """

    student_forwards: float = 1.0
    """How often `loss` sends an image through the student."""
    freezes_encoder: bool = False
    """Whether the task trains the decoder alone."""
    proxy: bool = True
    """Whether the proxy stage runs."""
    single_stage: bool = False
    """Whether `joint_loss` distils beside the task on the source, in one stage in place of all."""
    task_options: ClassVar[frozenset[str]] = frozenset()
    """Options that only the task's stage depends on."""

    def stages(self) -> tuple[Stage, ...]:
        own, forwards = self.own_modules, self.student_forwards
        if self.single_stage:
            uses = STUDENT | {Part.TEACHER_ENCODER}
            return (Stage("joint", Phase.TASK, STUDENT | own, self.joint_loss, uses, student_forwards=forwards),)
        learns, ignores = own | {Part.STUDENT_ENCODER}, self.task_options
        proxy = Stage("proxy", Phase.PROXY, learns, self.loss, student_forwards=forwards, ignores=ignores)
        source = replace(proxy, name="source", phase=Phase.SOURCE, reset=own)
        task = task_stage(self.freezes_encoder)
        return (proxy, source, task) if self.proxy else (source, task)

    def joint_loss(self, batch: Batch, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
        """The task's loss and the method's, from the same passes through the student; what a single stage minimises."""
        raise NotImplementedError(f"{type(self).__name__} does not define joint_loss()")
