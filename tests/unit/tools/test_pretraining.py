"""Pretraining toy models: weights that fit, cards, resuming, verification, and the objective ablation."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from kdbench.cli import app
from kdbench.engine.grid import make_context
from kdbench.errors import KdbenchError
from kdbench.models.backbones import build_toy
from kdbench.models.registry import MODELS, TOY_MODELS
from kdbench.models.toy import SHIPPED, Card, ObjectiveScore, ToyModel, toy_card
from kdbench.progress import Silent
from kdbench.protocol import Augmentation, Recipe
from kdbench.tools.pretraining import ablation, configs, pretrainer
from kdbench.tools.pretraining.ablation import ablate, note_scores
from kdbench.tools.pretraining.configs import ABLATION, CONFIGS, PretrainConfig, find_config
from kdbench.tools.pretraining.pretrainer import Pretrainer, make_pretrainer, verify_toy_model, write_toy_model


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretrainer:
    """A pretrainer on collections of a few pictures."""
    monkeypatch.setitem(configs.IMAGES, "web", 12)
    monkeypatch.setitem(configs.IMAGES, "proxy", 12)
    return make_pretrainer(tmp_path / "store", tmp_path / "models", "cpu", Silent())


def short(name: str, steps: int = 3) -> PretrainConfig:
    config = CONFIGS[name]
    recipe = config.recipe.model_copy(update={"steps": steps, "warmup": 1, "batch": 4})
    return replace(config, recipe=recipe)


@pytest.mark.parametrize("name", ["dinov2-s", "eva02-s", "deit-s", "dino-s", "resnet18"])
def test_a_training_ends_in_weights_that_fit_and_a_card(small: Pretrainer, name: str) -> None:
    for teacher in filter(None, (CONFIGS[name].teacher,)):
        write_toy_model(small.folder, CONFIGS[teacher].spec, build_toy(CONFIGS[teacher].spec).state_dict(), **FACTS)
    card = small.train(short(name))
    assert verify_toy_model(CONFIGS[name].spec, small.folder) == card
    assert card.command == f"kdbench models train {name}"
    assert card.recipe["steps"] == 3
    assert all(len(curve) == 3 for curve in card.losses.values())
    # A teacher of the same folder goes before the one shipped.
    assert small.teacher(name).folder == small.folder
    assert small.teacher("deit-b").folder == SHIPPED


def test_a_stopped_training_goes_on_and_ends_in_the_same_weights(
    small: Pretrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrainer, "CHECKPOINT_EVERY", 2)
    config = short("dino-s", steps=5)
    expected = make_pretrainer(tmp_path / "other", tmp_path / "models-too", "cpu", Silent()).train(config).sha256
    whole, seen = pretrainer.pretrain_batches, []

    def stopping(*arguments: Any):
        for step, batch in enumerate(whole(*arguments)):
            if step == 3:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(pretrainer, "pretrain_batches", stopping)
    with pytest.raises(KeyboardInterrupt):
        small.train(config)
    monkeypatch.setattr(pretrainer, "pretrain_batches", lambda *a: seen.append(a[-1]) or whole(*a))
    assert small.train(config).sha256 == expected
    assert seen == [2]
    # A second training reads the store.
    monkeypatch.setattr(pretrainer, "pretrain_batches", lambda *_: pytest.fail("trained again"))
    assert small.train(config).sha256 == expected


def test_every_toy_model_has_a_config_after_its_teachers_and_no_local_one_sees_the_web() -> None:
    assert set(CONFIGS) == set(TOY_MODELS)
    order = list(CONFIGS)
    for name, config in CONFIGS.items():
        assert config.collection == ("web" if MODELS[name].family == "foundation" else "proxy")
        assert config.teacher is None or order.index(config.teacher) < order.index(name)
        assert config.teacher is None or MODELS[config.teacher].family == MODELS[name].family == "foundation"
    with pytest.raises(KdbenchError, match="Did you mean 'dinov2-"):
        find_config("dinov2-x")


@pytest.mark.parametrize("name", [name for name in CONFIGS if (SHIPPED / f"{name}.json").exists()])
def test_what_is_shipped_was_trained_by_its_config(name: str) -> None:
    config, card = CONFIGS[name], toy_card(SHIPPED, name)
    assert verify_toy_model(config.spec) == card
    assert (card.collection, card.objective, card.teacher) == (config.collection, config.objective, config.teacher)
    assert card.images == configs.IMAGES[config.collection]
    # A field that came after a card was written had its default then.
    augmentation = Augmentation.model_validate(card.recipe["augmentation"])
    assert Recipe.model_validate({**card.recipe, "augmentation": augmentation}) == config.recipe


# ---- writing and verifying

FACTS = {
    "data_source": "synthetic-v1", "collection": "proxy", "images": 1, "objective": "objects", "teacher": None,
    "recipe": {}, "losses": {}, "seconds": 1.0, "made_with": {}, "command": "kdbench models train resnet18",
}  # fmt: skip
SPEC = MODELS["resnet18"]


def write(folder: Path, **changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """Writes random weights, some of them replaced; returns them."""
    torch.manual_seed(0)
    state = build_toy(SPEC).state_dict() | changes
    write_toy_model(folder, SPEC, state, **FACTS)
    return state


def test_weights_come_back_as_half_precision_kept_them(tmp_path: Path) -> None:
    # Beyond half precision's range.
    state = write(tmp_path, **{"body.bn1.running_var": torch.full((64,), 1e6)})
    read = ToyModel(SPEC, tmp_path).load()
    assert read.keys() == state.keys()
    for name, tensor in state.items():
        kept = "running" in name or not tensor.is_floating_point()
        assert torch.equal(read[name], tensor if kept else tensor.half().float())
        assert read[name].dtype == tensor.dtype


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (torch.full((64,), torch.inf), "is not finite in mask_token"),
        (torch.zeros(7), r"does not fit 'resnet18': mask_token \(7,\)"),
    ],
)
def test_weights_that_are_not_finite_or_do_not_fit_are_named(tmp_path: Path, token: torch.Tensor, message: str) -> None:
    write(tmp_path, mask_token=token)
    with pytest.raises(KdbenchError, match=message):
        verify_toy_model(SPEC, tmp_path)


def test_the_command_tells_of_a_card_of_another_architecture(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SHIPPED, tmp_path / "models"))
    verify = ["models", "verify", "--weights-dir", str(folder), "--stages", str(tmp_path / "stages")]
    assert CliRunner().invoke(app, verify).exit_code == 0
    card = folder / "resnet18.json"
    card.write_text(card.read_text().replace('"basic"', '"bottleneck"'))
    done = CliRunner().invoke(app, verify)
    assert done.exit_code == 1
    assert done.output.count("ok  ") == len(TOY_MODELS) - 1
    assert "FAIL" in done.output
    assert "another architecture" in done.output


# ---- the objective ablation

SCORES = tuple(
    ObjectiveScore(objective=objective, source={"c2a": 30.0 + k}, targets={"c2a": 20.0 + k})
    for k, objective in enumerate(ABLATION)
)


def test_every_objective_is_trained_for_and_probed(
    small: Pretrainer, make_spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"steps": 2, "batch": 4, "warmup": 0}
    quick = {
        name: replace(config, recipe=config.recipe.model_copy(update=changes)) for name, config in ABLATION.items()
    }
    monkeypatch.setattr(ablation, "ABLATION", quick)
    scores = list(ablate(small, make_context(make_spec(), Silent()), ["g2c"]))
    assert [score.objective for score in scores] == list(ABLATION)
    cards = [toy_card(small.folder / name.replace(" ", ""), "dinov2-s") for name in ABLATION]
    made = [(card.objective, card.architecture["embedding"], card.recipe["steps"], card.teacher) for card in cards]
    assert made == [(config.objective, config.spec.toy["embedding"], 2, None) for config in ABLATION.values()]
    assert len({card.sha256 for card in cards}) == len(ABLATION)
    assert all(0 <= score.source["g2c"] <= 100 and 0 <= score.targets["g2c"] <= 100 for score in scores)


def test_cards_tell_of_their_objective_and_those_before(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SHIPPED, tmp_path / "models"))
    foundation = {name for name in TOY_MODELS if MODELS[name].family == "foundation"}
    before = {name: toy_card(folder, name) for name in TOY_MODELS}

    def noted() -> dict[str, Card]:
        return {card.name: card for card in note_scores(folder, SCORES)}

    # eva02-s by way of eva02-l and dinov2-l, its teacher's teacher.
    assert {name: card.ablation for name, card in noted().items()} == dict.fromkeys(foundation, SCORES)
    assert {name for name in TOY_MODELS if toy_card(folder, name) != before[name]} == foundation
    path = folder / "dinov2-l.json"
    path.write_text(path.read_text().replace("rendering + coarse + materials", "rendering", 1))
    assert noted()["dinov2-s"].ablation == SCORES[:2]
