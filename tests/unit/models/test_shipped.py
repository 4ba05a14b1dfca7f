"""The shipped zoo: cards, hashes, and what damage looks like."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from kdbench.errors import KdbenchError
from kdbench.models.backbones import build_toy
from kdbench.models.card import SHIPPED, Rung
from kdbench.models.registry import MODELS, TOY_MODELS
from kdbench.models.toy import ToyModels

FACTS = {
    "data_source": "synthetic-v1", "collection": "proxy", "images": 1, "objective": "objects", "teacher": None,
    "recipe": {}, "losses": {}, "seconds": 1.0, "made_with": {}, "command": "kdbench models train resnet18",
}  # fmt: skip


@pytest.fixture
def models(tmp_path: Path) -> ToyModels:
    made = ToyModels(tmp_path)
    made.write("resnet18", build_toy(MODELS["resnet18"]).state_dict(), **FACTS)
    return made


def test_weights_come_back_as_half_precision_kept_them(models: ToyModels) -> None:
    torch.manual_seed(0)
    state = build_toy(MODELS["resnet18"]).state_dict()
    models.write("resnet18", state, **FACTS)
    read = models.load("resnet18")
    assert read.keys() == state.keys()
    for name, tensor in state.items():
        kept = "running" in name or not tensor.is_floating_point()
        assert torch.equal(read[name], tensor if kept else tensor.half().float())
        assert read[name].dtype == tensor.dtype


def test_running_statistics_beyond_half_precision_survive(models: ToyModels) -> None:
    state = build_toy(MODELS["resnet18"]).state_dict()
    name = next(name for name in state if name.endswith("running_var"))
    state[name] = torch.full_like(state[name], 1e6)
    models.write("resnet18", state, **FACTS)
    assert torch.equal(models.load("resnet18")[name], state[name])


def test_weights_that_are_not_finite_are_named(models: ToyModels) -> None:
    state = build_toy(MODELS["resnet18"]).state_dict()
    state["mask_token"] = torch.full_like(state["mask_token"], 1e6)
    models.write("resnet18", state, **FACTS)
    with pytest.raises(KdbenchError, match="not finite in mask_token"):
        models.check("resnet18")


def test_a_card_of_another_architecture_is_refused(models: ToyModels, tmp_path: Path) -> None:
    card = tmp_path / "resnet18.json"
    card.write_text(card.read_text().replace('"basic"', '"bottleneck"'))
    with pytest.raises(KdbenchError, match="another architecture"):
        models.check("resnet18")


def test_a_damaged_file_names_itself_its_hash_and_the_repair(models: ToyModels, tmp_path: Path) -> None:
    path = tmp_path / "resnet18.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(KdbenchError) as error:
        models.load("resnet18")
    for part in (str(path), models.card("resnet18").sha256, "kdbench models train resnet18"):
        assert part in str(error.value)


@pytest.mark.parametrize("name", ["resnet18.safetensors", "resnet18.json"])
def test_a_missing_file_names_itself_and_the_repair(models: ToyModels, tmp_path: Path, name: str) -> None:
    (tmp_path / name).unlink()
    with pytest.raises(KdbenchError, match=rf"{name} is missing.*kdbench models train resnet18"):
        models.load("resnet18")


def test_a_broken_card_is_named(models: ToyModels, tmp_path: Path) -> None:
    (tmp_path / "resnet18.json").write_text("{}")
    with pytest.raises(KdbenchError, match=r"resnet18\.json is not a model card: [a-z_]+"):
        models.card("resnet18")


def test_weights_of_another_shape_are_named(models: ToyModels) -> None:
    state = build_toy(MODELS["resnet18"]).state_dict()
    state["mask_token"] = torch.zeros(7)
    models.write("resnet18", state, **FACTS)
    with pytest.raises(KdbenchError, match=r"does not fit 'resnet18': mask_token \(7,\)"):
        models.check("resnet18")


def test_every_role_is_shipped_whole_and_the_zoo_is_small() -> None:
    cards = [ToyModels().check(name) for name in TOY_MODELS]
    assert sum(card.bytes for card in cards) <= 15e6
    assert {file.stem for file in SHIPPED.iterdir()} == set(TOY_MODELS)


def test_the_origin_of_weights_is_their_file_or_what_to_do(models: ToyModels) -> None:
    assert models.origin(MODELS["resnet18"]) == str(models.folder / "resnet18.safetensors")
    assert models.origin(MODELS["deit-s"]).startswith(f"MISSING: {models.folder / 'deit-s.safetensors'}. Restore it")


LADDER = tuple(
    Rung(objective=name, source={"c2a": 30.0 + k}, targets={"c2a": 20.0 + k})
    for k, name in enumerate(("self-distillation", "rendering", "rendering + coarse"))
)


def test_the_cards_of_foundation_stand_ins_say_what_the_lower_rungs_gave(tmp_path: Path) -> None:
    models = ToyModels(shutil.copytree(SHIPPED, tmp_path / "models"))
    before = {role: (models.folder / f"{role}.json").read_text() for role in TOY_MODELS}
    noted = [card.role for card in models.note_ladder(LADDER)]
    assert sorted(noted) == sorted(name for name in TOY_MODELS if name.startswith(("dinov2", "eva02")))
    for role in TOY_MODELS:
        # eva02-s stands there by eva02-l and dinov2-l, its teacher's teacher.
        assert models.check(role).ladder == (LADDER if role in noted else ())
        assert (role in noted) != ((models.folder / f"{role}.json").read_text() == before[role])


def test_a_card_stands_on_its_own_rung_and_not_on_those_above(tmp_path: Path) -> None:
    models = ToyModels(shutil.copytree(SHIPPED, tmp_path / "models"))
    path = models.folder / "dinov2-l.json"
    path.write_text(path.read_text().replace("rendering + coarse", "rendering", 1))
    models.note_ladder(LADDER)
    assert models.card("dinov2-l").ladder == models.card("dinov2-s").ladder == LADDER[:2]


def test_the_shipped_cards_tell_of_every_rung() -> None:
    for role in ("dinov2-s", "dinov2-b", "dinov2-l", "eva02-s", "eva02-b", "eva02-l"):
        rungs = ToyModels().card(role).ladder
        assert [rung.objective for rung in rungs] == ["self-distillation", "rendering", "rendering + coarse"]
