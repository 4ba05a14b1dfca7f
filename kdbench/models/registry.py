"""The one place for model names: every role, its family, and the small stand-in that plays it where no weights are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from kdbench.errors import KdbenchError, unknown

Family = Literal["foundation", "local"]
Kind = Literal["vit", "eva", "resnet", "pvt", ""]
TIMM, DETECTRON2 = "timm/", "detectron2/"
"""What a name begins with that is no role's: a network of timm's, a config of detectron2's."""


@dataclass(frozen=True)
class ModelSpec:
    """A model by the name that papers give it.

    kind, stand_in: the architecture's kind and the small size of the mini zoo; empty where it has no stand-in.
    network, weights: names of the real one and of its pretrained weights in timm (MiT: in transformers' hub). file: the
    name under which its authors publish the weights, where timm does not tell it. masked: whether that file has the
    mask token of a pretraining on hidden patches. decoder: the one that it brings in place of the protocol's, in words.
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

    @property
    def of_detectron2(self) -> bool:
        """Whether it is a config of detectron2's."""
        return self.name.startswith(DETECTRON2)


def _vit(width: int, **more: Any) -> dict[str, Any]:
    return {"embed_dim": width, "depth": 6, "num_heads": width // 32, **more}


def _eva(width: int) -> dict[str, Any]:
    return _vit(width, mlp_ratio=8 / 3, swiglu_mlp=True, use_rot_pos_emb=True)


LAYER_SCALE = {"init_values": 1.0}
TOY_MODELS: dict[str, tuple[Kind, dict[str, Any]]] = {
    "dinov2-s": ("vit", _vit(64, **LAYER_SCALE)),
    "dinov2-b": ("vit", _vit(96, **LAYER_SCALE)),
    "dinov2-l": ("vit", _vit(128, **LAYER_SCALE)),
    "eva02-s": ("eva", _eva(64)),
    "eva02-b": ("eva", _eva(96)),
    "eva02-l": ("eva", _eva(128)),
    "deit-s": ("vit", _vit(64)),
    "deit-b": ("vit", _vit(96)),
    "dino-s": ("vit", _vit(64)),
    "dino-b": ("vit", _vit(96)),
    "resnet18": ("resnet", {"block": "basic", "layers": (1, 1, 1, 1), "channels": (24, 32, 64, 96)}),
    "resnet50": ("resnet", {"block": "bottleneck", "layers": (2, 2, 2, 2), "channels": (16, 24, 40, 64)}),
    "mit-b0": ("pvt", {"embed_dims": (24, 48, 80), "depths": (1, 1, 2), "num_heads": (1, 2, 4)}),
}
"""The mini zoo: which roles have a small stand-in, of what kind and size."""


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


# Of the others, timm knows the names.
_FILES = {
    "dinov3-s": "dinov3_vits16_pretrain_lvd1689m-08c60483.pth",
    "dinov3-b": "dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth",
    "dinov3-l": "dinov3_vitl16_pretrain_lvd1689m-8aa4cbdd.pth",
    "eva02-s": "eva02_S_pt_in21k_p14.pt",
    "eva02-b": "eva02_B_pt_in21k_p14.pt",
    "eva02-l": "eva02_L_pt_m38m_p14.pt",
}

_MASKED = ("dinov2-", "dinov3-", "eva02-")


def _role(name: str, family: Family, network: str) -> ModelSpec:
    nothing: tuple[Kind, dict[str, Any]] = ("", {})
    kind, size = TOY_MODELS.get(name, nothing)
    weights, file = _WEIGHTS.get(name, network), _FILES.get(name, "")
    return ModelSpec(name, family, kind, size, network, weights, file, masked=name.startswith(_MASKED))


MODELS = {name: _role(name, "foundation", network) for name, network in _FOUNDATION.items()} | {
    name: _role(name, "local", network) for name, network in _LOCAL.items()
}


def find_model(name: str, where: str = "model") -> ModelSpec:
    """A role by its name, any network of timm as `timm/NAME`, or a student as `detectron2/CONFIG`.

    An unknown one is an error that lists the roles.
    """
    if name.startswith(TIMM):
        return ModelSpec(name, "local", network=(network := name.removeprefix(TIMM)), weights=network)
    if name.startswith(DETECTRON2):
        return ModelSpec(name, "local", network=name.removeprefix(DETECTRON2), decoder="its config's head")
    if name not in MODELS:
        raise unknown(where, name, MODELS)
    return MODELS[name]


@dataclass(frozen=True)
class Pair:
    """teacher:student by role. F2F where the student is a foundation model too, F2L where it is a local one."""

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
    """`teacher:student`; the teacher has to be a foundation model."""
    teacher, colon, student = text.partition(":")
    if not (teacher and colon and student):
        raise KdbenchError(f"'{text}' is not a pair. Write teacher:student, e.g. dinov2-l:resnet50.")
    pair = Pair(*(find_model(name, f"model (in pair '{text}')") for name in (teacher, student)))
    # Nothing is known of a network that is named by hand: it may be a foundation model.
    if pair.teacher.family != "foundation" and not teacher.startswith(TIMM):
        teachers = ", ".join(name for name, role in MODELS.items() if role.family == "foundation")
        raise KdbenchError(f"'{teacher}' in pair '{text}' is a local model and cannot teach. Teachers: {teachers}.")
    return pair


PAPER_PAIRS = (
    "dinov2-b:deit-s", "dinov2-l:deit-b", "dinov2-b:dino-s", "dinov2-l:dino-b", "dinov2-b:dinov2-s",
    "dinov2-l:dinov2-b", "eva02-b:eva02-s", "eva02-l:eva02-b",
)  # fmt: skip
CNN_PAIRS = ("dinov2-b:resnet18", "dinov2-l:resnet50", "dinov2-b:mit-b0")
NAMED_PAIRS = (*PAPER_PAIRS, *CNN_PAIRS)
