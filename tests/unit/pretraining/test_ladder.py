"""The ladder of objectives, on sets of a few pictures."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from kdbench.cli import app
from kdbench.engine.grid import make_context
from kdbench.errors import KdbenchError
from kdbench.models.card import SHIPPED, Rung
from kdbench.models.toy import ToyModels
from kdbench.progress import Silent
from kdbench.tools.pretraining import courses, ladder
from kdbench.tools.pretraining.courses import LADDER
from kdbench.tools.pretraining.ladder import ROLE, climb
from kdbench.tools.pretraining.train import make_school


def test_every_rung_is_trained_for_and_probed(tmp_path: Path, make_spec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(courses.IMAGES, "web", 8)
    short = {"steps": 2, "batch": 4, "warmup": 0}
    small = tuple((objective, recipe.model_copy(update=short)) for objective, recipe in LADDER)
    monkeypatch.setattr(ladder, "LADDER", small)
    school = make_school(tmp_path / "store", tmp_path, "cpu", Silent())
    context = make_context(make_spec(), Silent())
    rungs = list(climb(school, context, ["g2c", "p2r"], tmp_path))
    assert [rung.objective for rung in rungs] == [objective for objective, _ in LADDER]
    cards = [ToyModels(tmp_path / rung.objective.replace(" ", "")).card(ROLE) for rung in rungs]
    assert [(card.objective, card.recipe["steps"], card.teacher) for card in cards] == [
        (objective, 2, None) for objective, _ in LADDER
    ]
    assert len({card.sha256 for card in cards}) == 3
    for rung in rungs:
        assert set(rung.source) == set(rung.targets) == {"g2c", "p2r"}
        assert all(0 <= score <= 100 for score in (*rung.source.values(), *rung.targets.values()))


def ladder_command(tmp_path: Path, cards: Path) -> Result:
    command = ["models", "ladder", "--store", str(tmp_path / "store"), "--output", str(tmp_path / "out")]
    return CliRunner().invoke(app, [*command, "--device", "cpu", "--cards", str(cards)])


def test_the_command_writes_a_table_and_tells_the_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rungs = [
        Rung(objective=objective, source={"c2a": 30.5 + k}, targets={"c2a": 20.5 + k})
        for k, (objective, _) in enumerate(LADDER)
    ]
    monkeypatch.setattr(ladder, "climb", lambda *_: iter(rungs))
    monkeypatch.setattr("kdbench.cli.models.servable", lambda _: ["c2a"])
    models = ToyModels(shutil.copytree(SHIPPED, tmp_path / "models"))
    done = ladder_command(tmp_path, models.folder)
    assert done.exit_code == 0, done.output
    table = (tmp_path / "out" / "ladder.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[0] == ["objective", "c2a: source", "c2a: targets"]
    assert rows[2:] == [[rung.objective, str(rung.source["c2a"]), str(rung.targets["c2a"])] for rung in rungs]
    assert models.card("eva02-b").ladder == tuple(rungs)


def test_cards_that_are_none_are_told_before_the_climb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "climb", lambda *_: pytest.fail("climbed"))
    done = ladder_command(tmp_path, tmp_path / "nothing")
    assert done.exit_code != 0
    assert isinstance(done.exception, KdbenchError)
    assert "nothing/dinov2-s.json is missing" in str(done.exception)
