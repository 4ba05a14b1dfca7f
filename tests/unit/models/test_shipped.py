"""The shipped zoo: cards, hashes, and what damage looks like."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from kdbench.errors import KdbenchError
from kdbench.models.backbones import build_stand_in
from kdbench.models.card import SHIPPED, Rung
from kdbench.models.registry import ROLES, STAND_INS
from kdbench.models.toy import Zoo

FACTS = {
    "world": "synthetic-v1", "collection": "proxy", "images": 1, "objective": "objects", "teacher": None,
    "recipe": {}, "losses": {}, "seconds": 1.0, "made_with": {}, "command": "kdbench models train resnet18",
}  # fmt: skip


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    made = Zoo(tmp_path)
    made.write("resnet18", build_stand_in(ROLES["resnet18"]).state_dict(), **FACTS)
    return made


def test_weights_come_back_as_half_precision_kept_them(zoo: Zoo) -> None:
    torch.manual_seed(0)
    state = build_stand_in(ROLES["resnet18"]).state_dict()
    zoo.write("resnet18", state, **FACTS)
    read = zoo.load("resnet18")
    assert read.keys() == state.keys()
    for name, tensor in state.items():
        kept = "running" in name or not tensor.is_floating_point()
        assert torch.equal(read[name], tensor if kept else tensor.half().float())
        assert read[name].dtype == tensor.dtype


def test_running_statistics_beyond_half_precision_survive(zoo: Zoo) -> None:
    state = build_stand_in(ROLES["resnet18"]).state_dict()
    name = next(name for name in state if name.endswith("running_var"))
    state[name] = torch.full_like(state[name], 1e6)
    zoo.write("resnet18", state, **FACTS)
    assert torch.equal(zoo.load("resnet18")[name], state[name])


def test_weights_that_are_not_finite_are_named(zoo: Zoo) -> None:
    state = build_stand_in(ROLES["resnet18"]).state_dict()
    state["mask_token"] = torch.full_like(state["mask_token"], 1e6)
    zoo.write("resnet18", state, **FACTS)
    with pytest.raises(KdbenchError, match="not finite in mask_token"):
        zoo.check("resnet18")


def test_a_card_of_another_architecture_is_refused(zoo: Zoo, tmp_path: Path) -> None:
    card = tmp_path / "resnet18.json"
    card.write_text(card.read_text().replace('"basic"', '"bottleneck"'))
    with pytest.raises(KdbenchError, match="another architecture"):
        zoo.check("resnet18")


def test_a_damaged_file_names_itself_its_hash_and_the_repair(zoo: Zoo, tmp_path: Path) -> None:
    path = tmp_path / "resnet18.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(KdbenchError) as error:
        zoo.load("resnet18")
    for part in (str(path), zoo.card("resnet18").sha256, "kdbench models train resnet18"):
        assert part in str(error.value)


@pytest.mark.parametrize("name", ["resnet18.safetensors", "resnet18.json"])
def test_a_missing_file_names_itself_and_the_repair(zoo: Zoo, tmp_path: Path, name: str) -> None:
    (tmp_path / name).unlink()
    with pytest.raises(KdbenchError, match=rf"{name} is missing.*kdbench models train resnet18"):
        zoo.load("resnet18")


def test_a_broken_card_is_named(zoo: Zoo, tmp_path: Path) -> None:
    (tmp_path / "resnet18.json").write_text("{}")
    with pytest.raises(KdbenchError, match=r"resnet18\.json is not a model card: [a-z_]+"):
        zoo.card("resnet18")


def test_weights_of_another_shape_are_named(zoo: Zoo) -> None:
    state = build_stand_in(ROLES["resnet18"]).state_dict()
    state["mask_token"] = torch.zeros(7)
    zoo.write("resnet18", state, **FACTS)
    with pytest.raises(KdbenchError, match=r"does not fit 'resnet18': mask_token \(7,\)"):
        zoo.check("resnet18")


def test_every_role_is_shipped_whole_and_the_zoo_is_small() -> None:
    cards = [Zoo().check(name) for name in STAND_INS]
    assert sum(card.bytes for card in cards) <= 15e6
    assert {file.stem for file in SHIPPED.iterdir()} == set(STAND_INS)


def test_the_origin_of_weights_is_their_file_or_what_to_do(zoo: Zoo) -> None:
    assert zoo.origin(ROLES["resnet18"]) == str(zoo.folder / "resnet18.safetensors")
    assert zoo.origin(ROLES["deit-s"]).startswith(f"MISSING: {zoo.folder / 'deit-s.safetensors'}. Restore it")


LADDER = tuple(
    Rung(objective=name, source={"c2a": 30.0 + k}, targets={"c2a": 20.0 + k})
    for k, name in enumerate(("self-distillation", "rendering", "rendering + coarse"))
)


def test_the_cards_of_foundation_stand_ins_say_what_the_lower_rungs_gave(tmp_path: Path) -> None:
    zoo = Zoo(shutil.copytree(SHIPPED, tmp_path / "zoo"))
    before = {role: (zoo.folder / f"{role}.json").read_text() for role in STAND_INS}
    noted = [card.role for card in zoo.note_ladder(LADDER)]
    assert sorted(noted) == sorted(name for name in STAND_INS if name.startswith(("dinov2", "eva02")))
    for role in STAND_INS:
        # eva02-s stands there by eva02-l and dinov2-l, its teacher's teacher.
        assert zoo.check(role).ladder == (LADDER if role in noted else ())
        assert (role in noted) != ((zoo.folder / f"{role}.json").read_text() == before[role])


def test_a_card_stands_on_its_own_rung_and_not_on_those_above(tmp_path: Path) -> None:
    zoo = Zoo(shutil.copytree(SHIPPED, tmp_path / "zoo"))
    path = zoo.folder / "dinov2-l.json"
    path.write_text(path.read_text().replace("rendering + coarse", "rendering", 1))
    zoo.note_ladder(LADDER)
    assert zoo.card("dinov2-l").ladder == zoo.card("dinov2-s").ladder == LADDER[:2]


def test_the_shipped_cards_tell_of_every_rung() -> None:
    for role in ("dinov2-s", "dinov2-b", "dinov2-l", "eva02-s", "eva02-b", "eva02-l"):
        rungs = Zoo().card(role).ladder
        assert [rung.objective for rung in rungs] == ["self-distillation", "rendering", "rendering + coarse"]
