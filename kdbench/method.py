"""What a method is. This is the one file that an author of a method reads.

A method is a list of stages, and a stage is a value: which phase of the protocol it runs in, which parts it trains and
which loss it minimises. The engine loops, steps, freezes, caches and evaluates; a method returns named losses and
never steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from kdbench.errors import KdbenchError
from kdbench.losses import same_grid
from kdbench.types import ENCODERS, STUDENT, TEACHER, Batch, Features, PairSpec, Part, Phase, Segmentor

Loss = Callable[[Batch, Segmentor, Segmentor], dict[str, Tensor]]
"""(batch, student, teacher) -> named scalar losses, already weighted; the engine minimises their sum."""


class MethodConfig(BaseModel):
    """A method's settings. Defaults are the published values; each knob's description names their source."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    unread: ClassVar[tuple[tuple[Mapping[str, Any], tuple[str, ...]], ...]] = ()
    """Settings, and the knobs that are not read where all of them hold. Off its default, such a knob is refused there:
    else a variant would have a row of its own with the numbers of another."""

    @model_validator(mode="after")
    def _all_read(self) -> Self:
        for settings, names in self.unread:
            if all(getattr(self, name) == value for name, value in settings.items()):
                for name in names:
                    self._refuse_unread(name, settings)
        return self

    def _refuse_unread(self, name: str, settings: Mapping[str, Any]) -> None:
        value = getattr(self, name)
        if value != type(self).model_fields[name].default:
            where = " and ".join(f"{other}={setting}" for other, setting in settings.items())
            context = {"name": name, "value": str(value), "where": where, "others": " or ".join(settings)}
            raise PydanticCustomError(
                "unread", "{name}={value} is not read where {where}; leave it out, or set {others} otherwise", context
            )


def knob(
    default: Any,
    source: str,
    *,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
) -> Any:
    """A knob with its default, the source of that default, and the limits that bad input is held to."""
    return Field(default, description=source, gt=gt, ge=ge, lt=lt, le=le)


@dataclass(frozen=True)
class Stage:
    """One step of a method.

    name: unique in the method; stands in the record. phase: picks the protocol's data, steps and optimiser.
    trains: parts, or names of the method's own sub-modules; all else is frozen and in eval mode, as a whole.
    loss: what is minimised. uses: the parts that the loss reads besides those it trains; by default all four where the
    phase is labelled and both encoders where it is not. A narrower set lets the engine share the stage between runs.
    reset: what is put back to its initial (pretrained) weights first; scratch: to random ones. budget: times the
    phase's steps. passes: how often an image goes through the student in a step, which is what the equal track counts.
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

    @property
    def parts(self) -> frozenset[Part]:
        """Every network part in play, trained or read."""
        read = self.uses if self.uses is not None else (STUDENT | TEACHER if self.phase.labelled else ENCODERS)
        return read | {Part(name) for name in self.trains if name in set(Part)}

    @property
    def smallest_batch(self) -> int:
        """Images that its loss needs at once: what the method says of its own losses, 1 for a plain function."""
        return int(getattr(getattr(self.loss, "__self__", None), "smallest_batch", 1))

    @property
    def own_modules(self) -> frozenset[str]:
        """The method's own sub-modules that the stage trains."""
        return self.trains - set(Part)


def teacher_task_loss(batch: Batch, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
    """The teacher's own supervised loss, for fitting its decoder on a frozen encoder."""
    assert batch.label is not None
    return teacher.task_loss(teacher(batch.image), batch.label)


def task_loss(batch: Batch, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
    """The student's own supervised loss, without any distillation."""
    assert batch.label is not None
    return student.task_loss(student(batch.image), batch.label)


FIT_TEACHER = Stage(
    "fit_teacher",
    Phase.FIT_TEACHER,
    trains=frozenset({Part.TEACHER_DECODER}),
    uses=frozenset({Part.TEACHER_ENCODER}),
    loss=teacher_task_loss,
    student_forwards=0.0,
)
"""The frozen teacher's decoder on the labelled source: what a method needs first when it reads the teacher's logits."""


class PresetConfig(MethodConfig):
    """Settings of a method whose published numbers come from a combination."""

    recipe: Literal["bare", "paper"] = knob(
        "bare", "bare: this method's own term; paper: with the companions of its published numbers, no adversarial term"
    )


class Method(nn.Module):
    """How a student learns from a teacher. The first line of a subclass's docstring is its idea, shown in lists; its
    paragraphs "Formula:", "Deviations:" and "Compared:" stand on the method's page (docs/methods.md).

    Sub-modules are the method's adapters (projectors, heads, memories): trained where a stage's `trains` names them,
    dropped at deployment. Parameters and buffers live in sub-modules, never directly on the method.
    """

    paper: ClassVar[str] = ""
    role: ClassVar[Literal["distilled", "undistilled"]] = "distilled"
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    requires: ClassVar[str] = ""
    """An optional package that the method is built on."""
    smallest_batch: int = 1
    """Images that its losses need at once. With fewer on a process, or in a piece that memory holds, they would say
    nothing: a run is refused instead."""
    dead: ClassVar[tuple[str, ...]] = ()
    """Patterns (fnmatch) of parameters that a stage trains and no gradient reaches, e.g. because the published method
    carries them along: `head.query.*`, `student.encoder.*.bias`. All others get one, as kdbench.conformance checks."""
    footnote: str = ""
    """What a reader of a board must know of this pair, e.g. an extension beyond the paper; printed as a footnote."""

    def __init__(self, config: Any, pair: PairSpec) -> None:
        super().__init__()
        self.config = config
        self.pair = pair

    def stages(self) -> tuple[Stage, ...]:
        """Fit the teacher's decoder, then one joint stage on the labelled source."""
        return (FIT_TEACHER, self.joint())

    def joint(self, uses: frozenset[Part] | None = None) -> Stage:
        """Student and adapters together on the labelled source, under `loss`."""
        own = frozenset(name for name, module in self.named_children() if module.state_dict())
        return Stage("joint", Phase.TASK, trains=STUDENT | own, uses=uses, loss=self.loss)

    def loss(self, batch: Batch, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
        """The joint stage's named losses, the task loss among them."""
        raise NotImplementedError(f"{type(self).__name__} defines neither loss() nor stages()")

    def deploy(self, student: nn.Module, teacher: nn.Module) -> nn.Module:
        """The segmentor that is evaluated, counted and exported; a method that keeps a projector returns a wrapper."""
        return student


def check_terms(terms: Any) -> dict[str, Tensor]:
    """What a loss has returned; anything but named scalar tensors is an error that says so."""
    if not isinstance(terms, Mapping) or not terms:
        what = "no terms" if isinstance(terms, Mapping) else f"a {type(terms).__name__}"
        raise KdbenchError(f"a loss returned {what}; return a dict of named scalar tensors.")
    for name, value in terms.items():
        if not isinstance(value, Tensor):
            raise KdbenchError(f"loss '{name}' is a {type(value).__name__}; return a scalar tensor.")
        if value.ndim:
            raise KdbenchError(f"loss '{name}' has shape {tuple(value.shape)}, not a scalar; take its mean or its sum.")
    return dict(terms)


def joined(losses: Mapping[str, Tensor], terms: Any) -> dict[str, Tensor]:
    """Losses with further terms; a name that both have would leave out a loss without a word."""
    if not isinstance(terms, Mapping):
        raise KdbenchError(f"terms() returns a {type(terms).__name__}; return a dict of named scalar tensors.")
    repeated = sorted(losses.keys() & terms.keys())
    if repeated:
        raise KdbenchError(f"terms() names a loss '{repeated[0]}', which the loss has already. Give it another name.")
    return {**losses, **terms}


class LogitMethod(Method):
    """A method that compares the class logits of labelled source images, beside the task loss."""

    def loss(self, batch: Batch, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
        output = student(batch.image)
        assert batch.label is not None
        ours, theirs = same_grid(output.logits, teacher(batch.image).logits)
        return joined(student.task_loss(output, batch.label), self.terms(batch, ours, theirs))

    def terms(self, batch: Batch, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Named losses, already weighted, of logits (B, K, h, w) on one grid."""
        raise NotImplementedError(f"{type(self).__name__} does not define terms()")


class FeatureMethod(Method):
    """A method that compares the features of labelled source images, beside the task loss.

    The teacher's decoder is fitted and read only where companions on the logits are switched on.
    """

    companions: ClassVar[Mapping[str, Callable[[Tensor, Tensor], Tensor]]] = {}
    """What `recipe = "paper"` adds: name -> weighted loss of student's and teacher's logits on one grid."""
    blocks: tuple[int, ...] = ()
    """Blocks of both encoders that `terms` reads besides levels and final: 0 is the first, -1 the last. In networks
    without blocks these are the resolution steps; a number that an encoder does not have is an error."""

    @property
    def accompanied(self) -> bool:
        """Whether the companions are switched on."""
        return bool(self.companions) and self.config.recipe == "paper"

    def stages(self) -> tuple[Stage, ...]:
        if self.accompanied:
            return (FIT_TEACHER, self.joint())
        return (self.joint(uses=STUDENT | {Part.TEACHER_ENCODER}),)

    def loss(self, batch: Batch, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
        output = student.decode(student.encode(batch.image, blocks=self.blocks))
        theirs = teacher.encode(batch.image, blocks=self.blocks)
        assert batch.label is not None
        terms = joined(student.task_loss(output, batch.label), self.terms(batch, output.features, theirs))
        if self.accompanied:
            logits = same_grid(output.logits, teacher.decode(theirs).logits)
            terms = joined(terms, {name: companion(*logits) for name, companion in self.companions.items()})
        return terms

    def terms(self, batch: Batch, student: Features, teacher: Features) -> dict[str, Tensor]:
        """Named losses, already weighted."""
        raise NotImplementedError(f"{type(self).__name__} does not define terms()")
