"""Shipped toy models: their cards, and what damage looks like."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from kdbench.errors import KdbenchError
from kdbench.models.registry import MODELS, TOY_MODELS
from kdbench.models.toy import SHIPPED, ToyModel, toy_card
from kdbench.tools.pretraining.pretrainer import verify_toy_model, write_card


@pytest.fixture
def model(tmp_path: Path) -> ToyModel:
    """A copy of a shipped model that a test may damage."""
    for ending in ("json", "safetensors"):
        shutil.copy(SHIPPED / f"resnet18.{ending}", tmp_path)
    return ToyModel(MODELS["resnet18"], tmp_path)


def test_every_toy_model_is_shipped_whole_and_all_are_small() -> None:
    cards = [verify_toy_model(MODELS[name]) for name in TOY_MODELS]
    assert sum(card.bytes for card in cards) <= 20 * 2**20
    assert {file.stem for file in SHIPPED.iterdir()} == set(TOY_MODELS)


@pytest.mark.parametrize("name", TOY_MODELS)
def test_a_card_is_written_as_it_is_shipped(name: str, tmp_path: Path) -> None:
    write_card(tmp_path, toy_card(SHIPPED, name))
    assert (tmp_path / f"{name}.json").read_bytes() == (SHIPPED / f"{name}.json").read_bytes()


def test_the_shipped_files_are_those_of_the_published_results() -> None:
    # Results and stored stages rest on these bytes.
    content = b"".join(file.read_bytes() for file in sorted(SHIPPED.iterdir()))
    assert hashlib.sha256(content).hexdigest() == "67507cb406ac44e5c60c7707cb9d5e1a06a3ff934869937be1ddbd8c852f488d"


@pytest.mark.parametrize(
    ("ending", "content", "message"),
    [
        ("safetensors", b"damaged", "is damaged: sha256 [0-9a-f]+, expected [0-9a-f]+"),
        ("safetensors", None, "is missing"),
        ("json", None, "is missing"),
        ("json", b"{}", "is damaged: [a-z_]+"),
    ],
)
def test_a_missing_or_damaged_file_is_named_with_the_repair(
    model: ToyModel, ending: str, content: bytes | None, message: str
) -> None:
    file = model.folder / f"resnet18.{ending}"
    assert model.origin() == str(model.path)
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(KdbenchError, match=rf"{file} {message}.*kdbench models train resnet18"):
        model.load()
    assert model.origin().startswith(f"MISSING: {model.path}. Restore it") == (not model.path.is_file())
