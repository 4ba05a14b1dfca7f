"""A cell's networks: loads weights, freezes what does not train, shows models to a loss, compiles encoders."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import KdbenchError
from kdbench.method import Method, Stage
from kdbench.models.backbones import Encoder
from kdbench.models.geometry import Geometry
from kdbench.models.segmentor import SegmentationModel
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


def cast_products(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights of a module's matrix products and convolutions; norms and buffers stay."""
    for layer in module.modules():
        if type(layer) in PRODUCTS:
            layer.to(dtype)


@dataclass(frozen=True)
class LoadedState:
    """What a part was loaded with: whose weights, adapted to which geometry, in bfloat16 or not."""

    key: str
    geometry: Geometry | None
    bf16: bool


@dataclass
class Networks:
    """A cell's networks. student and method are None in a teacher's own cell."""

    teacher: SegmentationModel
    student: SegmentationModel | None = None
    method: Method[Any] | None = None
    _loaded: dict[str, LoadedState] = field(default_factory=dict)

    def modules(self) -> dict[str, nn.Module]:
        """Return every part and every module of the method, by the name that stages use."""
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
        bf16_parts: frozenset[str] = frozenset(),
    ) -> None:
        """Load weights, reading only what is not there already, and adapt encoders to a geometry.

        bf16_parts: held in bfloat16 (PRODUCTS) until they are wanted in single precision again and read anew.
        """
        modules = self.modules()
        for name, source in sources.items():
            wanted = LoadedState(source.key, geometry if name in ENCODERS else None, name in bf16_parts)
            if self._loaded.get(name) == wanted:
                continue
            module = modules[name]
            cast_products(module, torch.float32)
            module.load_state_dict(dict(source.state()), strict=True)
            if isinstance(module, Encoder) and geometry is not None:
                module.adapt(geometry)
            if wanted.bf16:
                cast_products(module, torch.bfloat16)
            self._loaded[name] = wanted

    def place(self, device: torch.device) -> None:
        """Move all parts to a device, convolutional networks with the channels last where that is fast."""
        for module in self.modules().values():
            module.to(device)
        for segmentor in (self.teacher, self.student):
            if segmentor is not None and segmentor.spec.convolutional and device.type in CHANNELS_LAST:
                segmentor.to(memory_format=torch.channels_last)

    def forget(self, names: frozenset[str]) -> None:
        """Note that these parts no longer hold what was loaded, as after training."""
        for name in names:
            self._loaded.pop(name, None)

    def freeze_all_but(self, trains: frozenset[str]) -> dict[str, nn.Module]:
        """Put what trains into training mode, freeze all else in eval mode. Returns what trains."""
        modules = self.modules()
        for name, module in modules.items():
            module.requires_grad_(name in trains)
            module.train(name in trains)
        return {name: modules[name] for name in sorted(trains)}


def check_stages(method: Method[Any], stages: Sequence[Stage], networks: Networks) -> None:
    """Raise where a method's stages cannot be run, before anything is trained."""
    direct = [name for name, _ in (*method.named_parameters(recurse=False), *method.named_buffers(recurse=False))]
    who = type(method).__name__
    if isinstance(stages, Stage):
        raise KdbenchError(
            f"{who}: stages() returns one Stage. Return a tuple, which takes a comma: (self.joint_stage(),)."
        )
    if isinstance(method.unused_parameters, str):
        raise KdbenchError(
            f"{who}: unused_parameters is the text '{method.unused_parameters}'. Write a tuple, which takes a comma: "
            "('...',)."
        )
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


def _check_loss(method: Method[Any], stage: Stage) -> None:
    """Raise where a loss is neither the method's own nor a plain function: a stage's key could not cover its code."""
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


class _AskedBlocks(dict[int, Tensor]):
    """Block outputs by the number that they were asked by; reading another number is a KdbenchError."""

    def __missing__(self, block: int) -> Tensor:
        asked = ", ".join(map(str, self)) or "none"
        raise KdbenchError(
            f"features.blocks[{block}] was not asked for (asked for: {asked}). Add {block} to the `blocks` of the call "
            "of encode that made these features."
        )


class StageModel:
    """A segmentor as a stage's loss sees it: only the stage's parts, frozen encoders without graph, images counted.

    compiled: runs in the encoder's place.
    """

    def __init__(
        self,
        segmentor: SegmentationModel | None,
        stage: Stage,
        encoder: Part,
        decoder: Part,
        compiled: Encode | None = None,
    ) -> None:
        self._segmentor, self._stage = segmentor, stage
        self._encoder, self._decoder, self._compiled = encoder, decoder, compiled
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
            features = (network.encode if self._compiled is None else self._compiled)(image, mask, blocks)
        return replace(features, blocks=_AskedBlocks(features.blocks))

    def decode(self, features: Features) -> SegOutput:
        """As Segmentor.decode."""
        return self._network(self._decoder).decode(features)

    def __call__(self, image: Tensor) -> SegOutput:
        """Encode, then decode."""
        return self.decode(self.encode(image))

    def task_loss(self, output: SegOutput, label: Tensor | None) -> dict[str, Tensor]:
        """As Segmentor.task_loss; an error where the phase withholds labels."""
        if label is None:
            raise KdbenchError(
                f"stage '{self._stage.name}' reads labels, which its phase '{self._stage.phase}' withholds. Run it in "
                "Phase.TASK, or leave the task loss out."
            )
        return self._network(self._decoder).task_loss(output, label)

    def _network(self, part: Part) -> SegmentationModel:
        if self._segmentor is None or part not in self._stage.parts:
            raise KdbenchError(
                f"stage '{self._stage.name}' reads the {part}, which is not among its parts "
                f"({', '.join(sorted(self._stage.parts))}). Add it to the stage's `uses`."
            )
        return self._segmentor


def stage_models(
    networks: Networks, stage: Stage, compiled: Mapping[Part, Encode] | None = None
) -> tuple[StageModel, StageModel]:
    """Return student and teacher as the stage's loss sees them; compiled: encoders that torch has compiled."""

    def model(segmentor: SegmentationModel | None, encoder: Part, decoder: Part) -> StageModel:
        return StageModel(segmentor, stage, encoder, decoder, (compiled or {}).get(encoder))

    return (
        model(networks.student, Part.STUDENT_ENCODER, Part.STUDENT_DECODER),
        model(networks.teacher, Part.TEACHER_ENCODER, Part.TEACHER_DECODER),
    )


ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Relative tolerance between compiled and eager features. Fused kernels round elsewhere; a rounding is 2^-8 in bfloat16
and 2^-11 where CUDA convolves float32 in TF32, and some of them add up over the blocks."""


def compile_encoder(encoder: Encoder, name: str, size: tuple[int, int], precision: torch.dtype) -> Encode:
    """Compile an encoder in the mode that it is in; its state dict keeps its names.

    Raises where it cannot be compiled, or where its features of two random images (height, width), with or without
    hidden positions, are not the eager ones. There is no quiet return to the eager network: a stage's key, which is
    known before anything is compiled, says how the stage was computed.
    """
    # Else dropout would be drawn by other generators than the eager network's.
    compiled = torch.compile(encoder, options={"fallback_random": True})
    image, mask = _trial(encoder, size)
    for hidden in (None, mask):
        try:
            found = _feature_maps(compiled, encoder, image, hidden)
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise KdbenchError(f"{name} cannot be compiled here ({reason}). Run it without --compile.") from error
        for expected, got in zip(_feature_maps(encoder, encoder, image, hidden), found, strict=True):
            apart = ((got - expected).norm(dim=1).max() / expected.norm(dim=1).mean()).item()
            # A comparison that NaN does not pass.
            if not apart <= ROUNDING[precision]:
                raise KdbenchError(
                    f"compiling {name} changes its features{' of masked images' * (hidden is not None)} by up to "
                    f"{apart:.2g} of their length; {ROUNDING[precision]} is rounding. Run it without --compile."
                )
    return compiled


def _trial(encoder: Encoder, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return two random images and masks, one of which hides half of its grid; the number of images is left open."""
    generator = torch.Generator().manual_seed(0)
    grid = (-(-side // encoder.spec.final_stride) for side in size)
    mask = torch.rand(2, *grid, generator=generator) < 0.5
    mask[0] = False
    image, mask = (t.to(encoder.mean.device) for t in (torch.rand(2, 3, *size, generator=generator), mask))
    for tensor in (image, mask):
        # What is compared is then what trains: another batch size needs no other kernels.
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    return image, mask


def _feature_maps(run: Encode, encoder: Encoder, image: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Return all that decoders and losses read; the encoder's statistics are left as they were."""
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    torch.manual_seed(0)
    with torch.set_grad_enabled(encoder.training):
        features = run(image, mask)
    for name, buffer in encoder.named_buffers():
        buffer.copy_(before[name])
    return [map_.detach().float() for map_ in (*features.levels, features.final, features.pooled)]
