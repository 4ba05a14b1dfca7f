"""Pretraining a stand-in: its card, its weights, resuming, and the ladder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdbench.errors import KdbenchError
from kdbench.models.registry import MODELS, TOY_MODELS
from kdbench.models.toy import ToyModels
from kdbench.progress import Silent
from kdbench.protocol import Augmentation, Recipe
from kdbench.tools.pretraining import courses, train
from kdbench.tools.pretraining.courses import COURSES, Course, find_course
from kdbench.tools.pretraining.train import School, make_school


@pytest.fixture
def school(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> School:
    monkeypatch.setitem(courses.IMAGES, "web", 12)
    monkeypatch.setitem(courses.IMAGES, "proxy", 12)
    return make_school(tmp_path / "store", tmp_path / "models", "cpu", Silent())


def short(role: str, steps: int = 3, **changes: object) -> Course:
    course = COURSES[role]
    recipe = course.recipe.model_copy(update={"steps": steps, "warmup": 1, "batch": 4})
    return replace(course, recipe=recipe, **changes)


@pytest.mark.parametrize("role", ["dinov2-s", "eva02-s", "deit-s", "dino-s", "resnet18", "mit-b0"])
def test_a_course_ends_in_weights_that_fit_and_a_card(school: School, role: str) -> None:
    card = school.train(short(role))
    assert school.models.check(role) == card
    assert card.command == f"kdbench models train {role}"
    assert card.recipe["steps"] == 3
    assert all(len(curve) == 3 for curve in card.losses.values())
    assert torch.float16 not in {tensor.dtype for tensor in school.models.load(role).values()}


def test_a_stopped_training_goes_on_and_ends_in_the_same_weights(
    school: School, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 2)
    course = short("dino-s", steps=5)
    expected = make_school(tmp_path / "other", tmp_path / "other-zoo", "cpu", Silent()).train(course).sha256
    whole, seen = train.lessons, []

    def stopping(*arguments, **options):
        for step, lesson in enumerate(whole(*arguments, **options)):
            if step == 3:
                raise KeyboardInterrupt
            yield lesson

    monkeypatch.setattr(train, "lessons", stopping)
    with pytest.raises(KeyboardInterrupt):
        school.train(course)

    def counting(*arguments, **options):
        seen.append(arguments[-1])
        return whole(*arguments, **options)

    monkeypatch.setattr(train, "lessons", counting)
    assert school.train(course).sha256 == expected
    assert seen == [2]


def test_a_second_training_reads_the_store(school: School, monkeypatch: pytest.MonkeyPatch) -> None:
    first = school.train(short("deit-s"))
    monkeypatch.setattr(train, "lessons", lambda *a, **k: pytest.fail("trained again"))
    assert school.train(short("deit-s")) == first


def test_a_teacher_of_the_same_folder_goes_before_the_one_shipped(school: School) -> None:
    own = school.train(short("dinov2-l")).sha256
    assert school.teachers("dinov2-l").card("dinov2-l").sha256 == own
    assert school.teachers("eva02-l") == ToyModels()


def test_every_stand_in_has_a_course_and_no_local_one_sees_the_web() -> None:
    assert set(COURSES) == set(TOY_MODELS)
    for name, course in COURSES.items():
        assert course.collection == ("web" if MODELS[name].family == "foundation" else "proxy")
        assert course.teacher is None or MODELS[course.teacher].family == MODELS[name].family == "foundation"


@pytest.mark.parametrize("role", COURSES)
def test_what_is_shipped_was_trained_by_its_course(role: str) -> None:
    course, card = COURSES[role], ToyModels().card(role)
    assert (card.collection, card.objective, card.teacher) == (course.collection, course.objective, course.teacher)
    assert card.images == courses.IMAGES[course.collection]
    # A field that came after a card was written had its default then.
    augmentation = Augmentation.model_validate(card.recipe["augmentation"])
    assert Recipe.model_validate({**card.recipe, "augmentation": augmentation}) == course.recipe


def test_teachers_come_before_their_pupils() -> None:
    order = list(COURSES)
    assert all(order.index(c.teacher) < order.index(c.role) for c in COURSES.values() if c.teacher)


def test_an_unknown_course_names_those_that_exist() -> None:
    with pytest.raises(KdbenchError, match="dinov2-s"):
        find_course("dinov2-x")
