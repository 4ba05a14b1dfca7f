"""The mini zoo's weights as they are shipped: half-precision safetensors, each with a card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
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
from kdbench.identity import digest
from kdbench.models.backbones import REAL, Encoder, build_stand_in
from kdbench.models.zoo import ROLES, STAND_INS, Role

SHIPPED = Path(__file__).parent / "weights"


class Rung(BaseModel):
    """What one pretraining objective gave: mIoU in percent of a decoder fitted to the frozen encoder, by benchmark."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    objective: str
    source: dict[str, float]
    targets: dict[str, float]


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
    ladder: tuple[Rung, ...] = ()
    """Of a foundation stand-in: its objective (or its teacher's) and those tried before, as `kdbench models ladder`
    measured them on its smallest."""


@dataclass(frozen=True)
class Zoo:
    """A folder of stand-ins: NAME.safetensors and NAME.json."""

    folder: Path = SHIPPED

    def build(self, role: Role) -> Encoder:
        """The stand-in's network, with random weights."""
        self.card(role.name)
        return build_stand_in(role)

    def key(self, role: Role) -> str:
        """What the pretrained weights are, as a digest."""
        return f"zoo-{digest([self.card(role.name).sha256, role.kind, role.stand_in])}"

    def card(self, role: str) -> Card:
        """The card of a stand-in."""
        if role not in STAND_INS:
            raise unknown("stand-in of the mini zoo", role, STAND_INS, REAL)
        path = self.folder / f"{role}.json"
        try:
            return Card.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise KdbenchError(f"{path} is missing. {self._restore(role)}") from None
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise KdbenchError(f"{path} is not a model card: {reason}. {self._restore(role)}") from None

    def cards(self) -> dict[str, Card]:
        """Every stand-in's card, by name."""
        return {role: self.card(role) for role in STAND_INS}

    def origin(self, role: Role) -> str:
        """The file, or that it is missing."""
        path = self.folder / f"{role.name}.safetensors"
        return str(path) if path.is_file() else f"MISSING: {path}. {self._restore(role.name)}"

    def remark(self, role: Role, state: Mapping[str, Tensor]) -> str:
        """Nothing: a stand-in's mask token is the one that it was shipped with."""
        return ""

    def load(self, name: str) -> dict[str, Tensor]:
        """The weights in single precision, their hash compared with the card's."""
        card, path = self.card(name), self.folder / f"{name}.safetensors"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise KdbenchError(f"{path} is missing. {self._restore(name)}") from None
        found = hashlib.sha256(content).hexdigest()
        if found != card.sha256:
            raise KdbenchError(f"{path} is damaged: sha256 {found}, expected {card.sha256}. {self._restore(name)}")
        return {key: t.float() if t.dtype == torch.float16 else t for key, t in from_bytes(content).items()}

    def check(self, role: str) -> Card:
        """Raises where the stored weights are damaged, are not finite or do not fit the architecture."""
        card, state = self.card(role), self.load(role)
        if card.architecture != _architecture(role):
            raise KdbenchError(
                f"{self.folder / role}.json describes another architecture: {card.architecture}, not "
                f"{_architecture(role)}. {self._restore(role)}"
            )
        broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
        if broken:
            raise KdbenchError(f"{self.folder / role}.safetensors is not finite in {broken[0]}. {self._restore(role)}")
        expected = {name: tensor.shape for name, tensor in build_stand_in(ROLES[role]).state_dict().items()}
        found = {name: tensor.shape for name, tensor in state.items()}
        wrong = sorted({name for name, _ in expected.items() ^ found.items()})
        if wrong:
            shown = ", ".join(f"{name} {tuple(found.get(name, ()))}" for name in wrong[:5])
            raise KdbenchError(
                f"{self.folder / role}.safetensors does not fit '{role}': {shown}. {self._restore(role)}"
            )
        return card

    def _restore(self, role: str) -> str:
        return (
            "Restore it with `git checkout` or a new installation, or train it again: "
            f"kdbench models train {role} --output {self.folder}"
        )

    def write(self, role: str, state: Mapping[str, Tensor], **facts: Any) -> Card:
        """Stores weights in half precision with their card; running statistics and counters stay as they are."""
        content = to_bytes({name: _compact(name, tensor) for name, tensor in state.items()})
        card = Card(
            role=role,
            family=ROLES[role].family,
            architecture=_architecture(role),
            parameters=sum(p.numel() for p in build_stand_in(ROLES[role]).parameters()),
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            **facts,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / f"{role}.safetensors", content)
        self._write_card(card)
        return card

    def note_ladder(self, rungs: Sequence[Rung]) -> list[Card]:
        """Writes what was measured onto the card of every stand-in that stands on a rung, itself or by its teachers."""
        objectives, cards, noted = [rung.objective for rung in rungs], self.cards(), []
        for card in cards.values():
            first = card
            while first.teacher is not None:
                first = cards[first.teacher]
            if first.objective in objectives:
                climbed = tuple(rungs[: objectives.index(first.objective) + 1])
                noted.append(card.model_copy(update={"ladder": climbed}))
                self._write_card(noted[-1])
        return noted

    def _write_card(self, card: Card) -> None:
        # A card without a ladder has no empty one: it is the foundation stand-ins' alone.
        facts = card.model_dump(mode="json", exclude=None if card.ladder else {"ladder"})
        write_atomically(self.folder / f"{card.role}.json", (json.dumps(facts, indent=1) + "\n").encode())


def _architecture(role: str) -> dict[str, Any]:
    """What decides how weights are used, as JSON writes it."""
    found: dict[str, Any] = json.loads(json.dumps({"kind": ROLES[role].kind, **ROLES[role].stand_in}))
    return found


def _compact(name: str, tensor: Tensor) -> Tensor:
    kept = not tensor.is_floating_point() or "running_" in name
    return (tensor if kept else tensor.to(torch.float16)).contiguous()
