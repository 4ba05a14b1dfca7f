"""Stages that come with kdbench: folders by key, read-only, with weights in half precision and a card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from kdbench.engine.states import State, from_file, to_file
from kdbench.errors import KdbenchError
from kdbench.files import read_card, read_hashed, write_atomically
from kdbench.records import CellId, StageSummary

SHIPPED = Path(__file__).parents[1] / "stages"
CARD = "stage.json"
TRAIN = "To train it instead, add --fresh."
REPAIR = f"Restore it with `git checkout` or a new installation. {TRAIN}"


class ShippedCard(BaseModel):
    """What a shipped stage is.

    cell, options, budget: a cell whose stage it is, with which it can be planned again. key_parts: what its key hashes.
    parts: those that a later stage or the final model reads. sha256: of each file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cell: CellId
    protocol: str
    budget: str
    options: dict[str, Any]
    stage: str
    key_parts: dict[str, Any]
    parts: list[str]
    sha256: dict[str, str]
    summary: StageSummary


@dataclass(frozen=True)
class ShippedStage:
    """A shipped stage's folder, named by its key."""

    path: Path

    @property
    def card(self) -> ShippedCard:
        """Read the card; a missing or broken one is an error that says the repair."""
        return read_card(self.path / CARD, ShippedCard, REPAIR)

    def load(self, number: int, part: str) -> dict[str, Tensor]:
        """Return one part's state dict at a snapshot; the file's hash is compared with the card's."""
        card, path = self.card, self.path / snapshot_name(number)
        if part not in card.parts:
            raise KdbenchError(f"{path} holds {', '.join(card.parts)}, and this run reads {part} too. {TRAIN}")
        return from_file(read_hashed(path, card.sha256.get(path.name), REPAIR), part)

    def write(self, snapshots: Sequence[Mapping[str, State]], **facts: Any) -> ShippedCard:
        """Write what a stage keeps at its snapshots, and the card. facts: its fields but sha256."""
        contents = {snapshot_name(number): to_file(states) for number, states in enumerate(snapshots)}
        for name, content in contents.items():
            write_atomically(self.path / name, content)
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        card = ShippedCard.model_validate(facts | {"sha256": hashes})
        self.write_card(card)
        return card

    def write_card(self, card: ShippedCard) -> None:
        """Write the card as JSON that can be reviewed."""
        text = json.dumps(card.model_dump(mode="json", exclude_defaults=True), indent=1)
        write_atomically(self.path / CARD, f"{text}\n".encode())


def snapshot_name(number: int) -> str:
    """Return the name of a snapshot's file."""
    return f"snapshot-{number}.safetensors"


def shipped_stages(folder: Path) -> Iterator[ShippedStage]:
    """Yield every shipped stage below a folder, in a fixed order."""
    yield from map(ShippedStage, sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else ())
