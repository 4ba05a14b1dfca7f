"""The one place for model names: every role, its family, and the small stand-in that plays it where no weights are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from kdbench.errors import KdbenchError, unknown

Family = Literal["foundation", "local"]


@dataclass(frozen=True)
class Role:
    """A model by the name that papers give it. stand_in: the architecture's kind and the small size of the mini zoo."""

    name: str
    family: Family
    kind: Literal["vit", "eva", "resnet", "pvt"]
    stand_in: dict[str, Any] = field(default_factory=dict)


def _vit(width: int, **more: Any) -> dict[str, Any]:
    return {"embed_dim": width, "depth": 6, "num_heads": width // 32, **more}


def _eva(width: int) -> dict[str, Any]:
    return _vit(width, mlp_ratio=8 / 3, swiglu_mlp=True, use_rot_pos_emb=True)


LAYER_SCALE = {"init_values": 1.0}
ROLES = {
    role.name: role
    for role in (
        Role("dinov2-s", "foundation", "vit", _vit(64, **LAYER_SCALE)),
        Role("dinov2-b", "foundation", "vit", _vit(96, **LAYER_SCALE)),
        Role("dinov2-l", "foundation", "vit", _vit(128, **LAYER_SCALE)),
        Role("eva02-s", "foundation", "eva", _eva(64)),
        Role("eva02-b", "foundation", "eva", _eva(96)),
        Role("eva02-l", "foundation", "eva", _eva(128)),
        Role("deit-s", "local", "vit", _vit(64)),
        Role("deit-b", "local", "vit", _vit(96)),
        Role("dino-s", "local", "vit", _vit(64)),
        Role("dino-b", "local", "vit", _vit(96)),
        Role("resnet18", "local", "resnet", {"block": "basic", "layers": (1, 1, 1, 1), "channels": (24, 32, 64, 96)}),
        Role(
            "resnet50", "local", "resnet", {"block": "bottleneck", "layers": (2, 2, 2, 2), "channels": (16, 24, 40, 64)}
        ),
        Role("mit-b0", "local", "pvt", {"embed_dims": (24, 48, 80), "depths": (1, 1, 2), "num_heads": (1, 2, 4)}),
    )
}


@dataclass(frozen=True)
class Pair:
    """teacher:student by role. F2F where the student is a foundation model too, F2L where it is a local one."""

    teacher: Role
    student: Role

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
    for name in (teacher, student):
        if name not in ROLES:
            raise unknown(f"model (in pair '{text}')", name, ROLES)
    pair = Pair(ROLES[teacher], ROLES[student])
    if pair.teacher.family != "foundation":
        teachers = ", ".join(name for name, role in ROLES.items() if role.family == "foundation")
        raise KdbenchError(f"'{teacher}' in pair '{text}' is a local model and cannot teach. Teachers: {teachers}.")
    return pair


PAPER_PAIRS = (
    "dinov2-b:deit-s", "dinov2-l:deit-b", "dinov2-b:dino-s", "dinov2-l:dino-b", "dinov2-b:dinov2-s",
    "dinov2-l:dinov2-b", "eva02-b:eva02-s", "eva02-l:eva02-b",
)  # fmt: skip
CNN_PAIRS = ("dinov2-b:resnet18", "dinov2-l:resnet50", "dinov2-b:mit-b0")
NAMED_PAIRS = (*PAPER_PAIRS, *CNN_PAIRS)
