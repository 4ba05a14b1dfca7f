"""Roles, and pairs as they are typed."""

from __future__ import annotations

import pytest

from kdbench.errors import KdbenchError
from kdbench.models.registry import CNN_PAIRS, MODELS, PAPER_PAIRS, find_model, parse_pair
from kdbench.models.toy import ToyModels


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("dinov2-l:dinov2-b", "F2F"),
        ("eva02-b:eva02-s", "F2F"),
        ("dinov2-b:deit-s", "F2L"),
        ("dinov2-l:resnet50", "F2L"),
        ("dinov2-b:mit-b0", "F2L"),
    ],
)
def test_family_follows_the_student(text: str, family: str) -> None:
    pair = parse_pair(text)
    assert pair.family == family
    assert pair.name == text
    assert (pair.teacher.name, pair.student.name) == tuple(text.split(":"))


@pytest.mark.parametrize("text", ["", ":", "dinov2-l", "dinov2-l:", ":resnet50", "dinov2-l resnet50"])
def test_a_malformed_pair_shows_how_to_write_one(text: str) -> None:
    with pytest.raises(KdbenchError, match=r"is not a pair\. Write teacher:student, e\.g\."):
        parse_pair(text)


@pytest.mark.parametrize(
    ("text", "asked", "nearest"),
    [
        ("dinov2-xl:deit-s", "dinov2-xl", "dinov2-"),
        ("dinov2-l:resnet51", "resnet51", "resnet5"),
        ("dinov2l:deit-s", "dinov2l", "dinov2-l"),
        ("dinov2-l:deit-s:deit-b", "deit-s:deit-b", "deit-"),
    ],
)
def test_an_unknown_model_is_named_with_the_nearest_one(text: str, asked: str, nearest: str) -> None:
    with pytest.raises(KdbenchError, match="unknown model") as caught:
        parse_pair(text)
    message = str(caught.value)
    assert f"'{asked}'" in message
    assert f"'{text}'" in message
    assert f"Did you mean '{nearest}" in message


@pytest.mark.parametrize("teacher", [name for name, role in MODELS.items() if role.family == "local"])
def test_a_local_model_cannot_teach(teacher: str) -> None:
    with pytest.raises(KdbenchError, match="cannot teach") as caught:
        parse_pair(f"{teacher}:resnet18")
    listed = str(caught.value).split("Teachers: ")[1].rstrip(".").split(", ")
    assert listed == [name for name, role in MODELS.items() if role.family == "foundation"]


@pytest.mark.parametrize("text", [*PAPER_PAIRS, *CNN_PAIRS])
def test_listed_pairs_exist(text: str) -> None:
    assert parse_pair(text).name == text


def test_the_papers_pairs_come_in_both_families() -> None:
    families = [parse_pair(text).family for text in PAPER_PAIRS]
    assert (families.count("F2L"), families.count("F2F")) == (4, 4)


def test_roles_are_found_by_their_own_name() -> None:
    assert all(role.name == name for name, role in MODELS.items())


@pytest.mark.parametrize("config", ["Misc/semantic_R_50_FPN_1x.yaml", "/home/me/fpn.yaml"])
def test_a_config_of_detectron2_is_a_student_with_a_decoder_of_its_own(config: str) -> None:
    pair = parse_pair(f"dinov2-b:detectron2/{config}")
    assert (pair.name, pair.family) == (f"dinov2-b:detectron2/{config}", "F2L")
    assert (pair.student.network, pair.student.decoder) == (config, "its config's head")
    assert not any(role.decoder for role in MODELS.values())
    with pytest.raises(KdbenchError, match="is a local model and cannot teach"):
        parse_pair(f"detectron2/{config}:resnet50")


@pytest.mark.parametrize("name", ["timm/resnet50", "detectron2/Misc/semantic_R_50_FPN_1x.yaml"])
def test_what_is_named_by_hand_has_no_stand_in(name: str) -> None:
    with pytest.raises(KdbenchError, match=f"unknown stand-in of the mini zoo '{name}'.*--protocol paper"):
        ToyModels().build(find_model(name))
