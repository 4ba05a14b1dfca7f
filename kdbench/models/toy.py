"""The shipped toy models: half-precision weights, each with a card that says how it came to be.

torch is imported in the functions that need it: checks of records read cards alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from kdbench.errors import unknown
from kdbench.files import read_card, read_hashed
from kdbench.identity import digest
from kdbench.models.registry import TOY_MODELS, ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

    from kdbench.models.backbones import Encoder
    from kdbench.models.weights import Model

SHIPPED = Path(__file__).parent / "weights"


class ObjectiveScore(BaseModel):
    """mIoU in percent, by benchmark, of a decoder on the frozen encoder that one pretraining objective gave."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    objective: str
    source: dict[str, float]
    targets: dict[str, float]


class Card(BaseModel):
    """What a toy model is and how it was pretrained. Aliases are the names in the shipped files."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: str = Field(alias="role")
    family: str
    architecture: dict[str, Any]
    parameters: int
    data_source: str = Field(alias="world")
    collection: str
    images: int
    """Pictures in the collection."""
    objective: str
    teacher: str | None
    recipe: dict[str, Any]
    losses: dict[str, list[float]]
    seconds: float
    made_with: dict[str, Any]
    command: str
    bytes: int
    sha256: str
    ablation: tuple[ObjectiveScore, ...] = Field((), alias="ladder")
    """Of a foundation model: its objective (or its teacher's) and those tried before it, measured on the smallest."""

    @property
    def weights(self) -> str:
        """The weights in a record: the beginning of their hash."""
        return self.sha256[:16]


def toy_card(folder: Path, name: str) -> Card:
    """Read the card of a toy model; a missing or broken one is an error that says how to restore it."""
    return read_card(folder / f"{name}.json", Card, repair(folder, name))


def repair(folder: Path, name: str) -> str:
    """Say what to do where a toy model is missing or damaged."""
    return (
        "Restore it with `git checkout` or a new installation, or train it again: "
        f"kdbench models train {name} --output {folder}"
    )


@dataclass(frozen=True)
class ToyModel:
    """A toy model in a folder: NAME.safetensors and NAME.json, its card."""

    spec: ModelSpec
    folder: Path = SHIPPED

    @property
    def card(self) -> Card:
        """Return its card, read anew."""
        return toy_card(self.folder, self.spec.name)

    @property
    def path(self) -> Path:
        """The file of its weights."""
        return self.folder / f"{self.spec.name}.safetensors"

    def build(self) -> Encoder:
        """As Model.build."""
        from kdbench.models.backbones import build_toy

        return build_toy(self.spec)

    def key(self) -> str:
        """As Model.key."""
        return f"toy-{digest([self.card.sha256, self.spec.kind, self.spec.toy])}"

    def weights(self) -> str:
        """As Model.weights."""
        return self.card.weights

    def load(self) -> dict[str, Tensor]:
        """As Model.load, in single precision; the file's hash is compared with the card's."""
        import torch
        from safetensors.torch import load

        content = read_hashed(self.path, self.card.sha256, repair(self.folder, self.spec.name))
        return {key: t.float() if t.dtype == torch.float16 else t for key, t in load(content).items()}

    def origin(self) -> str:
        """As Model.origin."""
        return str(self.path) if self.path.is_file() else f"MISSING: {self.path}. {repair(self.folder, self.spec.name)}"

    def note(self, state: Mapping[str, Tensor]) -> str:
        """As Model.note: a toy model has the mask token that it was shipped with."""
        return ""


@dataclass(frozen=True)
class ToyModels:
    """The models of protocols mini and smoke: toy models of a folder, and what users registered."""

    folder: Path = SHIPPED

    def find(self, spec: ModelSpec) -> Model:
        """As ModelSource.find."""
        if spec.source is not None and spec.toy_protocols:
            return spec.source(spec, None)
        if not spec.toy:
            raise unknown("toy model", spec.name, TOY_MODELS, "With its real weights it runs under --protocol paper.")
        return ToyModel(spec, self.folder)
