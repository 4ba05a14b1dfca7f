"""The mini zoo's weights as they are shipped: half-precision safetensors, each with a card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from kdbench.errors import KdbenchError, unknown
from kdbench.files import write_atomically
from kdbench.identity import digest
from kdbench.models.backbones import REAL, Encoder, build_toy
from kdbench.models.card import SHIPPED, Card, Rung, read_card, repair
from kdbench.models.registry import MODELS, TOY_MODELS, ModelSpec


@dataclass(frozen=True)
class ToyModels:
    """A folder of stand-ins: NAME.safetensors and NAME.json."""

    folder: Path = SHIPPED

    def build(self, role: ModelSpec) -> Encoder:
        """The stand-in's network, with random weights."""
        self.card(role.name)
        return build_toy(role)

    def key(self, role: ModelSpec) -> str:
        """What the pretrained weights are, as a digest."""
        return f"zoo-{digest([self.card(role.name).sha256, role.kind, role.toy])}"

    def weights(self, role: ModelSpec) -> str:
        """The beginning of the stored weights' hash."""
        return self.card(role.name).weights

    def card(self, role: str) -> Card:
        """The card of a stand-in."""
        if role not in TOY_MODELS:
            raise unknown("stand-in of the mini zoo", role, TOY_MODELS, REAL)
        return read_card(self.folder, role)

    def cards(self) -> dict[str, Card]:
        """Every stand-in's card, by name."""
        return {role: self.card(role) for role in TOY_MODELS}

    def origin(self, role: ModelSpec) -> str:
        """The file, or that it is missing."""
        path = self.folder / f"{role.name}.safetensors"
        return str(path) if path.is_file() else f"MISSING: {path}. {repair(self.folder, role.name)}"

    def remark(self, role: ModelSpec, state: Mapping[str, Tensor]) -> str:
        """Nothing: a stand-in's mask token is the one that it was shipped with."""
        return ""

    def load(self, name: str) -> dict[str, Tensor]:
        """The weights in single precision, their hash compared with the card's."""
        card, path = self.card(name), self.folder / f"{name}.safetensors"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise KdbenchError(f"{path} is missing. {repair(self.folder, name)}") from None
        found = hashlib.sha256(content).hexdigest()
        if found != card.sha256:
            raise KdbenchError(
                f"{path} is damaged: sha256 {found}, expected {card.sha256}. {repair(self.folder, name)}"
            )
        return {key: t.float() if t.dtype == torch.float16 else t for key, t in from_bytes(content).items()}

    def check(self, role: str) -> Card:
        """Raises where the stored weights are damaged, are not finite or do not fit the architecture."""
        card, state = self.card(role), self.load(role)
        if card.architecture != _architecture(role):
            raise KdbenchError(
                f"{self.folder / role}.json describes another architecture: {card.architecture}, not "
                f"{_architecture(role)}. {repair(self.folder, role)}"
            )
        broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
        if broken:
            raise KdbenchError(
                f"{self.folder / role}.safetensors is not finite in {broken[0]}. {repair(self.folder, role)}"
            )
        expected = {name: tensor.shape for name, tensor in build_toy(MODELS[role]).state_dict().items()}
        found = {name: tensor.shape for name, tensor in state.items()}
        wrong = sorted({name for name, _ in expected.items() ^ found.items()})
        if wrong:
            shown = ", ".join(f"{name} {tuple(found.get(name, ()))}" for name in wrong[:5])
            raise KdbenchError(
                f"{self.folder / role}.safetensors does not fit '{role}': {shown}. {repair(self.folder, role)}"
            )
        return card

    def write(self, role: str, state: Mapping[str, Tensor], **facts: Any) -> Card:
        """Stores weights in half precision with their card; running statistics and counters stay as they are."""
        content = to_bytes({name: _compact(name, tensor) for name, tensor in state.items()})
        card = Card(
            role=role,
            family=MODELS[role].family,
            architecture=_architecture(role),
            parameters=sum(p.numel() for p in build_toy(MODELS[role]).parameters()),
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
    found: dict[str, Any] = json.loads(json.dumps({"kind": MODELS[role].kind, **MODELS[role].toy}))
    return found


def _compact(name: str, tensor: Tensor) -> Tensor:
    kept = not tensor.is_floating_point() or "running_" in name
    return (tensor if kept else tensor.to(torch.float16)).contiguous()
