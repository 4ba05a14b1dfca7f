"""The card of a stand-in of the mini zoo. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from kdbench.errors import KdbenchError

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

    @property
    def weights(self) -> str:
        """The weights in a record: the beginning of their hash."""
        return self.sha256[:16]


def read_card(folder: Path, role: str) -> Card:
    """The card of a stand-in in a folder of them."""
    path = folder / f"{role}.json"
    try:
        return Card.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise KdbenchError(f"{path} is missing. {repair(folder, role)}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise KdbenchError(f"{path} is not a model card: {where}: {first['msg']}. {repair(folder, role)}") from None


def repair(folder: Path, role: str) -> str:
    """What to do where a stand-in is missing or damaged."""
    return (
        "Restore it with `git checkout` or a new installation, or train it again: "
        f"kdbench models train {role} --output {folder}"
    )
