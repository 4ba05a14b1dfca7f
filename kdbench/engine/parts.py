"""What trains and what does not: a cell's parts by name, where and how their weights lie, how a loss sees them."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kdbench.errors import KdbenchError
from kdbench.method import Method, Stage
from kdbench.models.backbones import Encoder
from kdbench.models.geometry import Geometry
from kdbench.models.segmentor import Segmentor
from kdbench.types import ENCODERS, Features, FeatureSpec, Part, SegOutput


@dataclass(frozen=True)
class WeightSource:
    """Where a part's weights come from: a content key, and how to read them once somebody needs them."""

    key: str
    state: Callable[[], Mapping[str, Tensor]]


PRODUCTS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
"""Layers whose weights autocast rounds to bfloat16 in every call, so that holding them so changes nothing. Exactly
these classes: a subclass may compute with its weights before it multiplies by them."""
CHANNELS_LAST = ("cpu", "cuda")
"""Devices on which convolutional networks are faster with the channels last."""


def hold_products(module: nn.Module, dtype: torch.dtype) -> None:
    """Keeps the weights of a module's matrix products and convolutions in a precision; norms and buffers stay."""
    for layer in module.modules():
        if type(layer) in PRODUCTS:
            layer.to(dtype)


@dataclass(frozen=True)
class Held:
    """What a part holds: whose weights, brought to which geometry, in bfloat16 or not."""

    key: str
    geometry: Geometry | None
    halved: bool


@dataclass
class Networks:
    """A cell's networks. student and method are None in a teacher's own cell."""

    teacher: Segmentor
    student: Segmentor | None = None
    method: Method | None = None
    _held: dict[str, Held] = field(default_factory=dict)

    def modules(self) -> dict[str, nn.Module]:
        """Every part and every module of the method, by the name that stages use."""
        found: dict[str, nn.Module] = {
            Part.TEACHER_ENCODER: self.teacher.encoder,
            Part.TEACHER_DECODER: self.teacher.decoder,
        }
        if self.student is not None:
            found |= {Part.STUDENT_ENCODER: self.student.encoder, Part.STUDENT_DECODER: self.student.decoder}
        if self.method is not None:
            found |= dict(self.method.named_children())
        return found

    def load(
        self,
        sources: Mapping[str, WeightSource],
        geometry: Geometry | None = None,
        halved: frozenset[str] = frozenset(),
    ) -> None:
        """Puts weights in place, reading only what is not there already, and brings encoders to a geometry.

        halved: the parts that are held in bfloat16 (PRODUCTS), until they are wanted whole again and read anew.
        """
        modules = self.modules()
        for name, origin in sources.items():
            held = Held(origin.key, geometry if name in ENCODERS else None, name in halved)
            if self._held.get(name) == held:
                continue
            module = modules[name]
            hold_products(module, torch.float32)
            module.load_state_dict(dict(origin.state()), strict=True)
            if isinstance(module, Encoder) and geometry is not None:
                module.adapt(geometry)
            if held.halved:
                hold_products(module, torch.bfloat16)
            self._held[name] = held

    def place(self, device: torch.device) -> None:
        """Moves all parts to a device, the weights of convolutional networks in the order that is fast there."""
        for module in self.modules().values():
            module.to(device)
        for segmentor in (self.teacher, self.student):
            if segmentor is not None and segmentor.spec.convolutional and device.type in CHANNELS_LAST:
                segmentor.to(memory_format=torch.channels_last)

    def forget(self, names: frozenset[str]) -> None:
        """After training: what these parts hold is no longer what was loaded."""
        for name in names:
            self._held.pop(name, None)

    def freeze_all_but(self, trains: frozenset[str]) -> dict[str, nn.Module]:
        """Gradients and training mode for what trains; all else frozen and in eval mode. Returns what trains."""
        modules = self.modules()
        for name, module in modules.items():
            module.requires_grad_(name in trains)
            module.train(name in trains)
        return {name: modules[name] for name in sorted(trains)}


def check_stages(method: Method, stages: Sequence[Stage], networks: Networks) -> None:
    """Raises where a method's stages cannot be run, before anything is trained."""
    direct = [name for name, _ in (*method.named_parameters(recurse=False), *method.named_buffers(recurse=False))]
    who = type(method).__name__
    if isinstance(stages, Stage):
        raise KdbenchError(f"{who}: stages() returns one Stage. Return a tuple, which takes a comma: (self.joint(),).")
    if isinstance(method.dead, str):
        raise KdbenchError(f"{who}: dead is the text '{method.dead}'. Write a tuple, which takes a comma: ('...',).")
    if direct:
        raise KdbenchError(f"{who} holds {', '.join(direct)} directly. Put parameters and buffers into a sub-module.")
    if len({stage.name for stage in stages}) != len(stages) or not stages:
        raise KdbenchError(f"{who}: a method needs stages with distinct names, got {[stage.name for stage in stages]}.")
    known = networks.modules()
    for stage in stages:
        _check_loss(method, stage)
        wrong = sorted((stage.trains | stage.reset | stage.scratch) - set(known))
        if wrong or not stage.trains:
            raise KdbenchError(
                f"{who}, stage '{stage.name}': {'unknown parts ' + ', '.join(wrong) if wrong else 'nothing trains'}. "
                f"Known: {', '.join(known)}."
            )


def _check_loss(method: Method, stage: Stage) -> None:
    """A stage's key covers the code and the knobs of a loss that is the method's own or a plain function, no others."""
    owner = getattr(stage.loss, "__self__", None)
    name = getattr(stage.loss, "__qualname__", "")
    plain = inspect.isfunction(stage.loss) and "<" not in name
    if owner is not method and not plain:
        raise KdbenchError(
            f"{type(method).__name__}, stage '{stage.name}': its loss is {name or stage.loss!r}. Give a method of the "
            "class (loss=self.loss) or a function of a module: what a closure holds cannot be part of the stage's key."
        )


Encode = Callable[..., Features]
"""As Segmentor.encode."""


class View:
    """A segmentor as a stage's loss sees it: only the parts in play, frozen encoders without graph, images counted.

    compiled: what runs in the encoder's place.
    """

    def __init__(
        self, segmentor: Segmentor | None, stage: Stage, encoder: Part, decoder: Part, compiled: Encode | None = None
    ) -> None:
        self._segmentor = segmentor
        self._stage = stage
        self._encoder, self._decoder = encoder, decoder
        self._compiled = compiled
        self.images = 0

    @property
    def spec(self) -> FeatureSpec:
        """The shape of the encoder's features."""
        return self._network(self._encoder).spec

    def encode(self, image: Tensor, mask: Tensor | None = None, blocks: Sequence[int] = ()) -> Features:
        """As Segmentor.encode. A frozen encoder runs under no_grad: inference tensors would break attention on them."""
        network = self._network(self._encoder)
        self.images += len(image)
        with contextlib.nullcontext() if self._encoder in self._stage.trains else torch.no_grad():
            return (network.encode if self._compiled is None else self._compiled)(image, mask, blocks)

    def decode(self, features: Features) -> SegOutput:
        """As Segmentor.decode."""
        return self._network(self._decoder).decode(features)

    def __call__(self, image: Tensor) -> SegOutput:
        """Encode, then decode."""
        return self.decode(self.encode(image))

    def task_loss(self, output: SegOutput, label: Tensor) -> dict[str, Tensor]:
        """As Segmentor.task_loss."""
        return self._network(self._decoder).task_loss(output, label)

    def _network(self, part: Part) -> Segmentor:
        if self._segmentor is None or part not in self._stage.parts:
            raise KdbenchError(
                f"stage '{self._stage.name}' reads the {part}, which is not among its parts "
                f"({', '.join(sorted(self._stage.parts))}). Add it to the stage's `uses`."
            )
        return self._segmentor


def views(networks: Networks, stage: Stage, compiled: Mapping[Part, Encode] | None = None) -> tuple[View, View]:
    """The student's and the teacher's view for a stage; compiled: encoders that torch has compiled."""

    def view(segmentor: Segmentor | None, encoder: Part, decoder: Part) -> View:
        return View(segmentor, stage, encoder, decoder, (compiled or {}).get(encoder))

    return (
        view(networks.student, Part.STUDENT_ENCODER, Part.STUDENT_DECODER),
        view(networks.teacher, Part.TEACHER_ENCODER, Part.TEACHER_DECODER),
    )
