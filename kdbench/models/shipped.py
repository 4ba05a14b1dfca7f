"""The mini zoo's weights as they are shipped: half-precision safetensors, each with a card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from kdbench.errors import KdbenchError, unknown
from kdbench.files import write_atomically
from kdbench.models.backbones import build_stand_in
from kdbench.models.zoo import ROLES

SHIPPED = Path(__file__).parent / "weights"


class Card(BaseModel):
    """What a stand-in is and how it came to be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: str
    family: str
    architecture: dict[str, Any]
    parameters: int
    world: str
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


@dataclass(frozen=True)
class Zoo:
    """A folder of stand-ins: NAME.safetensors and NAME.json."""

    folder: Path = SHIPPED

    def card(self, role: str) -> Card:
        """The card of a stand-in."""
        if role not in ROLES:
            raise unknown("model of the mini zoo", role, ROLES)
        path = self.folder / f"{role}.json"
        try:
            return Card.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise KdbenchError(f"{path} is missing. {_restore(role)}") from None
        except ValidationError as error:
            raise KdbenchError(f"{path} is not a model card: {error.errors()[0]['msg']}. {_restore(role)}") from None

    def load(self, role: str) -> dict[str, Tensor]:
        """The weights in single precision, their hash compared with the card's."""
        card, path = self.card(role), self.folder / f"{role}.safetensors"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise KdbenchError(f"{path} is missing. {_restore(role)}") from None
        found = hashlib.sha256(content).hexdigest()
        if found != card.sha256:
            raise KdbenchError(f"{path} is damaged: sha256 {found}, expected {card.sha256}. {_restore(role)}")
        return {name: tensor.float() for name, tensor in from_bytes(content).items()}

    def check(self, role: str) -> Card:
        """Raises where the stored weights are damaged or do not fit the architecture."""
        card, state = self.card(role), self.load(role)
        expected = {name: tensor.shape for name, tensor in build_stand_in(ROLES[role]).state_dict().items()}
        found = {name: tensor.shape for name, tensor in state.items()}
        wrong = sorted({name for name, _ in expected.items() ^ found.items()})
        if wrong:
            shown = ", ".join(f"{name} {tuple(found.get(name, ()))}" for name in wrong[:5])
            raise KdbenchError(f"{self.folder / role}.safetensors does not fit '{role}': {shown}. {_restore(role)}")
        return card

    def write(self, role: str, state: Mapping[str, Tensor], **facts: Any) -> Card:
        """Stores weights in half precision with their card."""
        content = to_bytes({name: tensor.to(torch.float16).contiguous() for name, tensor in state.items()})
        card = Card(
            role=role,
            family=ROLES[role].family,
            architecture={"kind": ROLES[role].kind, **ROLES[role].stand_in},
            parameters=sum(tensor.numel() for tensor in state.values()),
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            **facts,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / f"{role}.safetensors", content)
        write_atomically(self.folder / f"{role}.json", (json.dumps(card.model_dump(), indent=1) + "\n").encode())
        return card


def _restore(role: str) -> str:
    return f"Restore it with `git checkout` or a new installation, or train it again: kdbench models train {role}"
