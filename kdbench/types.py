"""Every shape that crosses a border between models, methods and the engine, defined once.

Letters: B batch, H and W image size, K classes, C channels, (h, w) a feature grid. torch is imported for type
checkers alone, so that programs which only name phases and parts start without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

IGNORE = 255
"""The label of pixels that count neither in a loss nor in a metric."""


class Part(StrEnum):
    """What can train or be frozen; a method's own modules are named by their attribute instead."""

    TEACHER_ENCODER = "teacher.encoder"
    TEACHER_DECODER = "teacher.decoder"
    STUDENT_ENCODER = "student.encoder"
    STUDENT_DECODER = "student.decoder"


STUDENT = frozenset({Part.STUDENT_ENCODER, Part.STUDENT_DECODER})
TEACHER = frozenset({Part.TEACHER_ENCODER, Part.TEACHER_DECODER})
ENCODERS = frozenset({Part.TEACHER_ENCODER, Part.STUDENT_ENCODER})


class Phase(StrEnum):
    """What the protocol decides for a stage: its data, its budget and its optimiser."""

    FIT_TEACHER = "fit_teacher"
    PROXY = "proxy"
    SOURCE = "source"
    TASK = "task"

    @property
    def labelled(self) -> bool:
        """Whether the phase hands out labels; the others distil without."""
        return self in (Phase.FIT_TEACHER, Phase.TASK)


@dataclass
class Batch:
    """One step's samples.

    image: (B, 3, H, W) float in [0, 1]. label: (B, H, W) int64, 255 = ignore; None where the phase withholds labels.
    domain, index: the samples' identity, B names and (B,) int64. progress: 0 to 1 through the stage, for warm-ups.
    """

    image: Tensor
    label: Tensor | None
    domain: Sequence[str]
    index: Tensor
    progress: float = 0.0

    def micro_batches(self, count: int) -> list[Batch]:
        """Split into `count` consecutive batches of nearly one size."""
        edges = [len(self.index) * number // count for number in range(count + 1)]
        return [
            Batch(
                self.image[a:b], None if self.label is None else self.label[a:b], self.domain[a:b], self.index[a:b],
                self.progress,
            )
            for a, b in pairwise(edges)
        ]  # fmt: skip

    def pin_memory(self) -> Batch:
        """What a data loader calls to speed up the way to a GPU."""
        self.image = self.image.pin_memory()
        self.label = None if self.label is None else self.label.pin_memory()
        return self


@dataclass(frozen=True)
class Features:
    """What an encoder gives.

    levels: maps (B, C_l, H/s_l, W/s_l) that decoders read. final: (B, C, h, w), the last map after the last norm.
    pooled: (B, C), the class token, or the mean of final where the model has none. blocks: the extra block outputs that
    were asked for, (B, C_i, h_i, w_i) before the network's last norm, by the number that they were asked by.
    """

    levels: tuple[Tensor, ...]
    final: Tensor
    pooled: Tensor
    blocks: dict[int, Tensor]


@dataclass(frozen=True)
class SegOutput:
    """features, logits (B, K, h, w) at the decoder's resolution, and extra, which only the decoder understands.

    scores: gives what is averaged where windows overlap, (B, K, H, W) at a window's size (H, W); None where that is the
    logits, resized.
    """

    features: Features
    logits: Tensor
    extra: Any = None
    scores: Callable[[tuple[int, int]], Tensor] | None = None


@dataclass(frozen=True)
class FeatureSpec:
    """The static shape of an encoder's features; strides are in pixels of the input.

    convolutional: its maps come from convolutions, channels first. batch_norms: it has batch norms, so that images in
    one batch give other features, while it trains, than in two. blocks: channels of every block that it can be asked
    for; of a network in resolution steps, these are its steps.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    final_channels: int
    final_stride: int
    class_token: bool
    convolutional: bool = False
    batch_norms: bool = False
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True)
class PairSpec:
    """What a method learns of the networks before it meets them: enough to size its adapters."""

    teacher: FeatureSpec
    student: FeatureSpec
    classes: int

    @property
    def final_channels(self) -> tuple[int, int]:
        """Channels of the last maps: the student's, the teacher's."""
        return self.student.final_channels, self.teacher.final_channels

    @property
    def level_channels(self) -> list[tuple[int, int]]:
        """Channels of the levels side by side (student, teacher), shallow to deep; see losses.matched_levels."""
        return list(zip(reversed(self.student.channels), reversed(self.teacher.channels), strict=False))[::-1]


class Segmentor(Protocol):
    """An encoder with a decoder, as methods see it (built in kdbench.models)."""

    @property
    def spec(self) -> FeatureSpec:
        """The shape of the encoder's features."""

    def encode(self, image: Tensor, mask: Tensor | None = None, blocks: Sequence[int] = ()) -> Features:
        """Features of an image (B, 3, H, W) in [0, 1]; mask (B, h, w) bool on the model's own grid, True = hidden.

        blocks: numbers of further block outputs, 0 the first and -1 the last; one that is not there is a KdbenchError.
        """

    def decode(self, features: Features) -> SegOutput:
        """Class logits from features; differentiable in the features even where the decoder is frozen."""

    def __call__(self, image: Tensor) -> SegOutput:
        """Encode, then decode."""

    def task_loss(self, output: SegOutput, label: Tensor | None) -> dict[str, Tensor]:
        """The decoder's own supervised loss for labels (B, H, W); methods never choose it."""
