"""What a stage's key depends on, and what it does not: the sharing of work follows from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdbench.engine.parts import Networks
from kdbench.engine.plan import make_plan
from kdbench.models.backbones import PyramidEncoder
from kdbench.models.decoders import LightDecoder, LinearDecoder
from kdbench.models.registry import ModelSpec
from kdbench.models.toy import ToyModels
from kdbench.progress import Silent
from kdbench.protocol import PROTOCOLS, Augmentation

Plan = Callable[..., tuple]


def keys(plan_cells: Plan, **fields: object) -> dict[str, str]:
    context, cells = plan_cells(**fields)
    return {step.stage.name: step.key for step in make_plan(context, cells[-1]).stages}


def test_benchmarks_of_one_source_share_every_stage(plan_cells: Plan) -> None:
    assert keys(plan_cells, benchmarks=("g2c",)) == keys(plan_cells, benchmarks=("g2m",))


def test_the_proxy_stage_serves_every_benchmark_whatever_its_classes(plan_cells: Plan) -> None:
    street, aerial = keys(plan_cells, benchmarks=("g2c",)), keys(plan_cells, benchmarks=("p2r",))
    assert street["proxy"] == aerial["proxy"]
    assert street["source"] != aerial["source"]
    assert street["task"] != aerial["task"]


def test_the_teachers_decoder_is_fitted_once_for_all_methods(plan_cells: Plan) -> None:
    fitted = keys(plan_cells, methods=("logit_kd",))["fit_teacher"]
    assert fitted == keys(plan_cells, methods=("cwd",), settings=("temperature=2",))["fit_teacher"]
    context, cells = plan_cells(references=True)
    assert fitted == make_plan(context, cells[0]).stages[0].key
    assert fitted == keys(plan_cells, methods=("logit_kd",), pairs=("dinov2-s:resnet18",))["fit_teacher"]


def test_the_undistilled_student_does_not_depend_on_its_teacher(plan_cells: Plan) -> None:
    one = keys(plan_cells, methods=("baseline",), pairs=("dinov2-s:deit-s",))
    assert one == keys(plan_cells, methods=("baseline",), pairs=("dinov2-b:deit-s",))


@pytest.mark.parametrize(
    "change", [{"seeds": (1,)}, {"settings": ("mask_ratio=0.25",)}, {"pairs": ("dinov2-s:dino-s",)}]
)
def test_seed_knobs_and_networks_change_the_first_stage_and_all_after_it(plan_cells: Plan, change: dict) -> None:
    before, after = keys(plan_cells), keys(plan_cells, **change)
    assert all(before[name] != after[name] for name in before)


def test_a_recipe_changes_its_own_phase_and_what_builds_on_it(
    plan_cells: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys(plan_cells)
    smoke = PROTOCOLS["smoke"]
    recipes = dict(smoke.recipes)
    recipes["source"] = recipes["source"].model_copy(update={"augmentation": Augmentation(flip=0.0)})
    monkeypatch.setitem(PROTOCOLS, "smoke", smoke.model_copy(update={"recipes": recipes}))
    after = keys(plan_cells)
    assert before["proxy"] == after["proxy"]
    assert before["source"] != after["source"]
    assert before["task"] != after["task"]


def test_a_network_with_a_decoder_of_its_own_keeps_it(plan_cells: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def own(encoder: PyramidEncoder, classes: int) -> LinearDecoder:
        return LinearDecoder(encoder.spec, classes)

    monkeypatch.setattr(PyramidEncoder, "own_decoder", own)

    def networks(seed: int) -> Networks:
        context, cells = plan_cells(methods=("cwd",), pairs=("dinov2-s:resnet18",), seeds=(seed,))
        return make_plan(context, cells[-1]).networks

    first, again, other = networks(0), networks(0), networks(1)
    assert isinstance(first.student.decoder, LinearDecoder)
    assert isinstance(first.teacher.decoder, LightDecoder)
    weights = [built.student.decoder.classify[1].weight for built in (first, again, other)]
    assert weights[0].shape[0] == 19
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_remark_on_the_students_weights_is_told_when_they_are_read(plan_cells: Plan) -> None:
    told: list[str] = []

    class Remarking(ToyModels):
        def remark(self, role: ModelSpec, state: Any) -> str:
            assert "mask_token" in state
            return f"{role.name} lacks something"

    class Hearing(Silent):
        def note(self, text: str) -> None:
            told.append(text)

    context, cells = plan_cells()
    inputs = make_plan(replace(context, models=Remarking(), progress=Hearing()), cells[-1]).stages[0].inputs
    assert told == []
    for origin in inputs.values():
        origin.state()
    assert told == ["deit-s lacks something"]


def test_the_code_of_a_loss_counts_but_its_comments_do_not(plan_cells: Plan, tmp_path: Path) -> None:
    source = (Path(__file__).parents[3] / "methods" / "feature_kd.py").read_text(encoding="utf-8")

    def key(folder: str, text: str) -> str:
        path = tmp_path / folder / "mine.py"
        path.parent.mkdir()
        path.write_text(text, encoding="utf-8")
        return keys(plan_cells, methods=(str(path),))["joint"]

    plain = key("a", source)
    assert plain == key("b", f"# a comment\n{source}")
    assert plain != key("c", source.replace("self.config.weight *", "2 * self.config.weight *"))


@pytest.mark.parametrize(("method", "settings"), [("baseline", ()), ("cwd", ()), ("gkd", ()), ("gkd", ("patch=0",))])
def test_on_the_equal_track_every_method_takes_the_protocols_passes(
    method: str, settings: tuple[str, ...], plan_cells: Plan
) -> None:
    context, cells = plan_cells(methods=(method,), settings=settings, budget="equal")
    stages = make_plan(context, cells[-1]).stages
    student_forwards = sum(step.steps * step.recipe.batch * step.stage.student_forwards for step in stages)
    # A stage is a whole number of steps.
    assert (
        abs(student_forwards - context.protocol.student_forwards)
        <= sum(step.recipe.batch * step.stage.student_forwards for step in stages) / 2
    )


def test_the_equal_track_keeps_a_methods_proportions_and_the_teachers_training(plan_cells: Plan) -> None:
    def steps(**fields: object) -> dict[str, int]:
        context, cells = plan_cells(**fields)
        return {step.stage.name: step.steps for step in make_plan(context, cells[-1]).stages}

    paper, equal = steps(methods=("cwd",)), steps(methods=("cwd",), budget="equal")
    assert equal["fit_teacher"] == paper["fit_teacher"]
    assert equal["joint"] == 2 * paper["joint"]
    paper, equal = steps(methods=("gkd",)), steps(methods=("gkd",), budget="equal")
    factor = 64 / (4 * 1.5 * paper["proxy"] + 4 * 1.5 * paper["source"] + 4 * paper["task"])
    assert equal == {name: round(factor * count) for name, count in paper.items()}
