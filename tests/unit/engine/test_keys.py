"""What a stage's key depends on, and what it does not: the sharing of work follows from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdbench.data.rendered import RenderedSet
from kdbench.engine import keys as engine_keys
from kdbench.engine.parts import Networks
from kdbench.engine.plan import make_plan
from kdbench.engine.runner import cell_key
from kdbench.models.backbones import Encoder, PyramidEncoder
from kdbench.models.decoders import LightDecoder, LinearDecoder
from kdbench.models.registry import ModelSpec
from kdbench.models.toy import ToyModel, ToyModels
from kdbench.progress import Silent
from kdbench.protocol import PROTOCOLS, Augmentation

Plan = Callable[..., tuple]


def keys(plan_cells: Plan, models: ToyModels | None = None, **fields: object) -> dict[str, str]:
    context, cells = plan_cells(**fields)
    context = replace(context, models=models or context.models)
    return {step.stage.name: step.key for step in make_plan(context, cells[-1]).stages}


def test_stages_are_shared_by_all_that_read_the_same(plan_cells: Plan) -> None:
    street, aerial = keys(plan_cells, benchmarks=("g2c",)), keys(plan_cells, benchmarks=("p2r",))
    assert street == keys(plan_cells, benchmarks=("g2m",))
    # Unlabelled images of one proxy domain, whatever the classes.
    assert street["proxy"] == aerial["proxy"]
    assert street["source"] != aerial["source"]
    assert street["task"] != aerial["task"]
    # The undistilled student does not depend on its teacher.
    assert keys(plan_cells, methods=("baseline",)) == keys(
        plan_cells, methods=("baseline",), pairs=("dinov2-b:deit-s",)
    )


def test_a_stage_is_shared_under_options_that_it_ignores(plan_cells: Plan) -> None:
    frozen, tuned = keys(plan_cells), keys(plan_cells, settings=("encoder=fine-tuned",))
    assert (frozen["proxy"], frozen["source"]) == (tuned["proxy"], tuned["source"])
    assert frozen["task"] != tuned["task"]


def test_the_teachers_decoder_is_fitted_once_for_all_methods(plan_cells: Plan) -> None:
    fitted = keys(plan_cells, methods=("logit_kd",))["fit_teacher"]
    assert fitted == keys(plan_cells, methods=("cwd",), settings=("temperature=2",))["fit_teacher"]
    assert fitted == keys(plan_cells, methods=("logit_kd",), pairs=("dinov2-s:resnet18",))["fit_teacher"]
    context, cells = plan_cells(references=True)
    assert fitted == make_plan(context, cells[0]).stages[0].key


CLIP = (0.48, 0.46, 0.41)


class OwnColours(ToyModels):
    """Models that were pretrained with colours of their own."""

    def find(self, spec: ModelSpec) -> ToyModel:
        class Coloured(ToyModel):
            def build(self) -> Encoder:
                encoder = super().build()
                encoder.normalise_as(CLIP, CLIP)
                return encoder

        return Coloured(spec)


def test_a_protocol_gives_models_imagenets_colours_under_another_key(plan_cells: Plan) -> None:
    context, cells = plan_cells()
    own = replace(context, models=OwnColours())
    both = [own, replace(own, protocol=own.protocol.model_copy(update={"imagenet_colours": (cells[-1].teacher.name,)}))]
    plain, changed = (make_plan(each, cells[-1]) for each in both)
    assert torch.allclose(plain.networks.teacher.encoder.mean.flatten(), torch.tensor(CLIP))
    assert torch.allclose(changed.networks.teacher.encoder.std.flatten(), torch.tensor([0.229, 0.224, 0.225]))
    assert torch.allclose(changed.networks.student.encoder.mean.flatten(), torch.tensor(CLIP))
    assert plain.stages[0].key != changed.stages[0].key


class Retrained(ToyModel):
    def key(self) -> str:
        return f"{super().key()}, retrained"


class OtherWeights(ToyModels):
    def find(self, spec: ModelSpec) -> ToyModel:
        return Retrained(spec)


@pytest.mark.parametrize("change", [{"seeds": (1,)}, {"label_fraction": "1/2"}, {"benchmarks": ("p2r",)}], ids=str)
def test_a_stage_that_is_common_to_all_seeds_knows_no_seed_and_no_benchmark(plan_cells: Plan, change: dict) -> None:
    before, after = keys(plan_cells), keys(plan_cells, **change)
    assert before["proxy"] == after["proxy"]
    assert before["task"] != after["task"]


@pytest.mark.parametrize(
    "change",
    [
        {"settings": ("mask_ratio=0.25",)},
        {"pairs": ("dinov2-s:dino-s",)},
        {"models": OtherWeights()},
    ],
    ids=str,
)
def test_what_the_first_stage_reads_changes_it_and_all_after_it(plan_cells: Plan, change: dict) -> None:
    before, after = keys(plan_cells), keys(plan_cells, **change)
    assert all(before[name] != after[name] for name in before)


def test_another_engine_version_or_data_identity_changes_every_key(
    plan_cells: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_keys() -> set[str]:
        context, cells = plan_cells()
        plan = make_plan(context, cells[0])
        return {cell_key(context, plan), *(step.key for step in plan.stages)}

    before = all_keys()
    with monkeypatch.context() as patch:
        patch.setattr(RenderedSet, "identity", property(lambda self: {"name": self.domain, "fingerprint": "other"}))
        assert not before & all_keys()
    monkeypatch.setattr(engine_keys, "ENGINE_VERSION", engine_keys.ENGINE_VERSION + 1)
    assert not before & all_keys()


def test_kdbenchs_source_and_library_versions_change_no_key(plan_cells: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    file_digest = engine_keys._file_digest

    def noted(module: str, file: str) -> str:
        hashed.append(module)
        return file_digest(module, file)

    monkeypatch.setattr(engine_keys, "_file_digest", noted)
    before = keys(plan_cells)
    assert set(hashed) == {"kdbench.methods.gkd"}
    monkeypatch.setattr(torch, "__version__", "99.0")
    assert keys(plan_cells) == before


def test_a_methods_code_changes_its_keys_but_comments_and_docstrings_do_not(plan_cells: Plan, tmp_path: Path) -> None:
    source = (Path(__file__).parents[3] / "methods" / "feature_kd.py").read_text(encoding="utf-8")

    def key(folder: str, text: str) -> str:
        path = tmp_path / folder / "mine.py"
        path.parent.mkdir()
        path.write_text(text, encoding="utf-8")
        return keys(plan_cells, methods=(str(path),))["joint"]

    plain = key("a", source)
    assert plain == key("b", '"""Another docstring."""\n# a comment\n' + source[source.index('"""', 3) + 3 :])
    assert plain != key("c", source.replace("self.config.weight *", "2 * self.config.weight *"))


def test_a_recipe_changes_its_own_phase_and_what_builds_on_it(
    plan_cells: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, smoke = keys(plan_cells), PROTOCOLS["smoke"]
    source = smoke.recipes["source"].model_copy(update={"augmentation": Augmentation(flip=0.0)})
    monkeypatch.setitem(PROTOCOLS, "smoke", smoke.model_copy(update={"recipes": smoke.recipes | {"source": source}}))
    after = keys(plan_cells)
    assert {name: before[name] == after[name] for name in before} == {"proxy": True, "source": False, "task": False}


def test_a_network_with_a_decoder_of_its_own_keeps_it(plan_cells: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        PyramidEncoder, "own_decoder", lambda encoder, classes: LinearDecoder(encoder.spec, classes), raising=True
    )

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


def test_a_note_on_the_students_weights_is_told_when_they_are_read(
    plan_cells: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(ToyModel, "note", lambda self, state: f"{self.spec.name} lacks {'mask_token' in state}")

    class Hearing(Silent):
        def note(self, text: str) -> None:
            told.append(text)

    context, cells = plan_cells()
    inputs = make_plan(replace(context, progress=Hearing()), cells[-1]).stages[0].inputs
    assert told == []
    for source in inputs.values():
        source.state()
    assert told == ["deit-s lacks True"]


@pytest.mark.parametrize(("method", "settings"), [("baseline", ()), ("cwd", ()), ("gkd", ()), ("gkd", ("patch=0",))])
def test_under_the_equal_budget_every_method_takes_the_protocols_student_forwards(
    method: str, settings: tuple[str, ...], plan_cells: Plan
) -> None:
    context, cells = plan_cells(methods=(method,), settings=settings, budget="equal")
    stages = make_plan(context, cells[-1]).stages
    each = [step.recipe.batch * step.stage.student_forwards for step in stages]
    taken = sum(step.steps * forwards for step, forwards in zip(stages, each, strict=True))
    # A stage is a whole number of steps.
    assert abs(taken - context.protocol.student_forwards) <= sum(each) / 2


def test_the_equal_budget_keeps_a_methods_proportions_and_the_teachers_training(plan_cells: Plan) -> None:
    def steps(**fields: object) -> dict[str, int]:
        context, cells = plan_cells(**fields)
        return {step.stage.name: step.steps for step in make_plan(context, cells[-1]).stages}

    published, equal = steps(methods=("cwd",)), steps(methods=("cwd",), budget="equal")
    assert equal == {"fit_teacher": published["fit_teacher"], "joint": 2 * published["joint"]}
    published, equal = steps(methods=("gkd",)), steps(methods=("gkd",), budget="equal")
    factor = 64 / (4 * 1.5 * published["proxy"] + 4 * 1.5 * published["source"] + 4 * published["task"])
    assert equal == {name: round(factor * count) for name, count in published.items()}
