"""The ladder of objectives, on sets of a few pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbench.engine.grid import make_lab
from kdbench.models.shipped import Zoo
from kdbench.pretraining import courses, ladder
from kdbench.pretraining.courses import LADDER
from kdbench.pretraining.ladder import ROLE, climb
from kdbench.pretraining.train import make_school
from kdbench.progress import Silent


def test_every_rung_is_trained_for_and_probed(tmp_path: Path, make_spec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(courses.IMAGES, "web", 8)
    short = {"steps": 2, "batch": 4, "warmup": 0}
    small = tuple((objective, recipe.model_copy(update=short)) for objective, recipe in LADDER)
    monkeypatch.setattr(ladder, "LADDER", small)
    school = make_school(tmp_path / "store", tmp_path, "cpu", Silent())
    lab = make_lab(make_spec(), Silent())
    rungs = list(climb(school, lab, ["g2c", "p2r"], tmp_path))
    assert [rung.objective for rung in rungs] == [objective for objective, _ in LADDER]
    cards = [Zoo(tmp_path / rung.objective.replace(" ", "")).card(ROLE) for rung in rungs]
    assert [(card.objective, card.recipe["steps"], card.teacher) for card in cards] == [
        (objective, 2, None) for objective, _ in LADDER
    ]
    assert len({card.sha256 for card in cards}) == 3
    for rung in rungs:
        assert set(rung.source) == set(rung.targets) == {"g2c", "p2r"}
        assert all(0 <= score <= 100 for score in (*rung.source.values(), *rung.targets.values()))
