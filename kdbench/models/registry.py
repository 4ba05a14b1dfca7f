"""The one place for model names: kdbench's own, the pairs of the papers, and models that users register.

No torch here: the command line reads it before anything is computed.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kdbench.errors import KdbenchError, describe, unknown

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdbench.models.weights import Model
    from kdbench.types import FeatureSpec

Family = Literal["foundation", "local"]
Kind = Literal["vit", "eva", "resnet", "pvt", ""]
TIMM = "timm/"
"""Before the name of any network of timm."""
ENTRY_POINTS = "kdbench.models"
"""The group in which installed packages announce models."""


@dataclass(frozen=True)
class ModelSpec:
    """A model by the name that papers give it.

    Args:
        name: as typed in a pair.
        family: "foundation" models can teach, "local" ones cannot.
        kind, toy: architecture and size of its toy model; empty where it has none.
        network, weights: names of the real network and its pretrained weights in timm (MiT: in transformers' hub).
        file: the name under which its authors publish the weights, where timm does not know it.
        masked: the authors' file has a mask token, learnt by pretraining on hidden patches.
        decoder: the decoder that it brings in place of the protocol's, in words for captions; empty as a rule.
        source: makes the Model of a registered one, from this spec and the folder of --weights-dir.
        toy_protocols: a registered model also runs under protocols of toy models, as it is.
    """

    name: str
    family: Family
    kind: Kind = ""
    toy: dict[str, Any] = field(default_factory=dict)
    network: str = ""
    weights: str = ""
    file: str = ""
    masked: bool = False
    decoder: str = ""
    source: Callable[[ModelSpec, Path | None], Model] | None = None
    toy_protocols: bool = False


def _vit(width: int) -> dict[str, Any]:
    return {"embed_dim": width, "depth": 6, "num_heads": width // 32}


def _conv_vit(width: int, **more: Any) -> dict[str, Any]:
    return {"embedding": "convolutions", **_vit(width), **more}


def _eva(width: int) -> dict[str, Any]:
    return _conv_vit(width, mlp_ratio=8 / 3, swiglu_mlp=True, use_rot_pos_emb=True)


LAYER_SCALE = {"init_values": 1.0}
TOY_MODELS: dict[str, tuple[Kind, dict[str, Any]]] = {
    "dinov2-s": ("vit", _conv_vit(96, **LAYER_SCALE)),
    "dinov2-b": ("vit", _conv_vit(128, **LAYER_SCALE)),
    "dinov2-l": ("vit", _conv_vit(160, **LAYER_SCALE)),
    "eva02-s": ("eva", _eva(64)),
    "eva02-b": ("eva", _eva(96)),
    "eva02-l": ("eva", _eva(128)),
    "deit-s": ("vit", _conv_vit(96)),
    "deit-b": ("vit", _conv_vit(128)),
    "dino-s": ("vit", _vit(64)),
    "dino-b": ("vit", _vit(96)),
    "resnet18": ("resnet", {"block": "basic", "layers": (1, 1, 1, 1), "channels": (24, 32, 64, 96)}),
    "resnet50": ("resnet", {"block": "bottleneck", "layers": (2, 2, 2, 2), "channels": (16, 24, 40, 64)}),
    "mit-b0": ("pvt", {"embed_dims": (24, 48, 80), "depths": (1, 1, 2), "num_heads": (1, 2, 4)}),
}
"""The toy models of mini and smoke: kind and size, by the name of the model that each stands for."""

_SIZES = {"s": "small", "b": "base", "l": "large", "g": "giant"}
_FOUNDATION = {
    **{f"dinov2-{k}": f"vit_{size}_patch14_dinov2.lvd142m" for k, size in _SIZES.items()},
    **{f"dinov2-{k}-reg": f"vit_{size}_patch14_reg4_dinov2.lvd142m" for k, size in _SIZES.items()},
    **{f"dinov3-{k}": f"vit_{_SIZES[k]}_patch16_dinov3.lvd1689m" for k in "sbl"},
    "eva02-s": "eva02_small_patch14_224.mim_in22k",
    "eva02-b": "eva02_base_patch14_224.mim_in22k",
    "eva02-l": "eva02_large_patch14_224.mim_m38m",
    "clip-b": "vit_base_patch16_clip_quickgelu_224.openai",
    "clip-l": "vit_large_patch14_clip_quickgelu_224.openai",
    "sam-b": "samvit_base_patch16.sa1b",
    "sam-l": "samvit_large_patch16.sa1b",
}
_LOCAL = {
    "deit-s": "deit_small_patch16_224",
    "deit-b": "deit_base_patch16_224",
    "deit-s-plain": "deit_small_patch16_224.fb_in1k",
    "deit-b-plain": "deit_base_patch16_224.fb_in1k",
    "dino-s": "vit_small_patch16_224.dino",
    "dino-b": "vit_base_patch16_224.dino",
    "resnet18": "resnet18.tv_in1k",
    "resnet50": "resnet50.tv_in1k",
    "resnet101": "resnet101.tv_in1k",
    **{f"mit-b{k}": f"nvidia/mit-b{k}" for k in range(6)},
    "convnext-t": "convnext_tiny.fb_in1k",
    "mobilenetv3-l": "mobilenetv3_large_100.ra_in1k",
}
# GKD's students start from DeiT's distilled weights, in a network without the token that they were distilled through.
_WEIGHTS = {
    "deit-s": "deit_small_distilled_patch16_224.fb_in1k",
    "deit-b": "deit_base_distilled_patch16_224.fb_in1k",
}


# Of the others, timm knows the file names.
_FILES = {
    "dinov3-s": "dinov3_vits16_pretrain_lvd1689m-08c60483.pth",
    "dinov3-b": "dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth",
    "dinov3-l": "dinov3_vitl16_pretrain_lvd1689m-8aa4cbdd.pth",
    "eva02-s": "eva02_S_pt_in21k_p14.pt",
    "eva02-b": "eva02_B_pt_in21k_p14.pt",
    "eva02-l": "eva02_L_pt_m38m_p14.pt",
}

_MASKED = ("dinov2-", "dinov3-", "eva02-")


def _spec(name: str, family: Family, network: str) -> ModelSpec:
    nothing: tuple[Kind, dict[str, Any]] = ("", {})
    kind, size = TOY_MODELS.get(name, nothing)
    weights, file = _WEIGHTS.get(name, network), _FILES.get(name, "")
    return ModelSpec(name, family, kind, size, network, weights, file, masked=name.startswith(_MASKED))


MODELS = {name: _spec(name, "foundation", network) for name, network in _FOUNDATION.items()} | {
    name: _spec(name, "local", network) for name, network in _LOCAL.items()
}


REGISTERED: dict[str, ModelSpec] = {}


def register_model(
    name: str,
    build: Callable[[], nn.Module],
    *,
    family: Family = "local",
    weights: Path | str | Callable[[], Mapping[str, Tensor]] | None = None,
    key: str = "",
    decoder: Callable[[FeatureSpec, int], nn.Module] | None = None,
) -> ModelSpec:
    """Make a network of your own known by a name, for pairs such as `dinov2-b:NAME` under every protocol.

    Registering a name again replaces it. It holds in this process; an installed package announces `build` as an entry
    point of the group `kdbench.models` instead, under the model's name.

    Args:
        name: what stands in a pair; no name of kdbench's own, no `:` and no `,`.
        build: returns the network. A plain module takes images (B, 3, H, W) in ImageNet's normalisation and returns
            its feature maps (B, C, h, w), a list or dict from fine to coarse; kdbench measures channels and strides.
            Return a kdbench.models.backbones.Encoder to decide more: class token, blocks, masks, normalisation.
        family: "foundation" lets it teach.
        weights: the module's pretrained weights: a file (.safetensors, or .pth, of which tensors alone are read), or a
            function that returns a state dict. None: those that `build` returns.
        key: identifies network and weights in the keys of stored stages, e.g. "v1"; raise it when either changes.
            Without one, the weights' content and the file that defines `build` identify them.
        decoder: builds the model's own decoder from its FeatureSpec and the number of classes, in place of the
            protocol's: a module with forward(Features) -> SegOutput and loss(SegOutput, label) -> dict[str, Tensor].
    """
    if name in MODELS or name.startswith(TIMM):
        raise KdbenchError(f"'{name}' is a model of kdbench's own. Register yours under another name.")
    if not name or any(character in ":," or character.isspace() for character in name):
        raise KdbenchError(f"'{name}' cannot stand in a pair. Choose a name without ':', ',' and spaces.")
    if not callable(build):
        raise KdbenchError(f"model '{name}': {build!r} builds nothing. Give a function that returns the network.")

    @functools.cache
    def model() -> Model:
        from kdbench.models.weights import RegisteredModel  # torch

        return RegisteredModel(name, build, weights, key, decoder)

    words = "its own" if decoder is not None else ""
    spec = ModelSpec(name, family, network=name, decoder=words, source=lambda *_: model(), toy_protocols=True)
    REGISTERED[name] = spec
    return spec


def find_model(name: str, where: str = "") -> ModelSpec:
    """Return a model by its name, a registered one's or kdbench's own; `timm/NAME` is any network of timm.

    An unknown name is an error that lists those that exist, with the nearest.
    """
    if name in MODELS:
        return MODELS[name]
    if name in REGISTERED:
        return REGISTERED[name]
    if name.startswith(TIMM):
        return ModelSpec(name, "local", network=(network := name.removeprefix(TIMM)), weights=network)
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        if name == point.name or (point.name.endswith("/") and name.startswith(point.name)):
            return _announced(point, name)
    yours = "Yours: kdbench.register_model, or an entry point of kdbench.models."
    raise unknown("model", name, model_names(), yours, where)


def _announced(point: importlib.metadata.EntryPoint, name: str) -> ModelSpec:
    """Load an entry point: a builder, or a ModelSpec that is registered; for a prefix, a function from name to spec."""
    try:
        loaded = point.load()
        found = loaded(name) if point.name.endswith("/") else loaded
    except KdbenchError:
        raise
    except Exception as error:  # a plug-in's own code
        raise KdbenchError(f"model '{name}' (entry point {point.value}) cannot be used: {describe(error)}") from error
    return found if isinstance(found, ModelSpec) else register_model(name, found)


def model_names() -> Iterator[str]:
    """Yield every name that can be typed; a prefix stands with its slash."""
    yield from MODELS
    yield from REGISTERED
    yield from (point.name for point in importlib.metadata.entry_points(group=ENTRY_POINTS))


@dataclass(frozen=True)
class Pair:
    """teacher:student. F2F where the student is a foundation model too, F2L where it is a local one."""

    teacher: ModelSpec
    student: ModelSpec

    @property
    def name(self) -> str:
        """As typed on the command line."""
        return f"{self.teacher.name}:{self.student.name}"

    @property
    def family(self) -> str:
        """F2F or F2L."""
        return "F2F" if self.student.family == "foundation" else "F2L"


def parse_pair(text: str) -> Pair:
    """Parse `teacher:student`; the teacher has to be a foundation model."""
    teacher, colon, student = text.partition(":")
    if not (teacher and colon and student):
        raise KdbenchError(f"'{text}' is not a pair. Write teacher:student, e.g. dinov2-l:resnet50.")
    pair = Pair(*(find_model(name, f"in pair '{text}'") for name in (teacher, student)))
    # Nothing is known of a network that is named by hand: it may be a foundation model.
    if pair.teacher.family != "foundation" and not teacher.startswith(TIMM):
        known = {**MODELS, **REGISTERED}
        teachers = ", ".join(name for name, spec in known.items() if spec.family == "foundation")
        raise KdbenchError(f"'{teacher}' in pair '{text}' is a local model and cannot teach. Teachers: {teachers}.")
    return pair


PAPER_PAIRS = (
    "dinov2-b:deit-s", "dinov2-l:deit-b", "dinov2-b:dino-s", "dinov2-l:dino-b", "dinov2-b:dinov2-s",
    "dinov2-l:dinov2-b", "eva02-b:eva02-s", "eva02-l:eva02-b",
)  # fmt: skip
CNN_PAIRS = ("dinov2-b:resnet18", "dinov2-l:resnet50", "dinov2-b:mit-b0")
NAMED_PAIRS = (*PAPER_PAIRS, *CNN_PAIRS)
