"""What all methods keep beside kdbench.conformance: stages, presets, precision, extreme features."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from closed_forms import divergence
from torch import Tensor

from kdbench.conformance import Bench, find_pair, make_batch, make_bench
from kdbench.engine.parts import stage_models
from kdbench.method import FeatureMethod, RepresentationMethod, task_loss
from kdbench.plugins import load_method, method_names
from kdbench.types import ENCODERS, STUDENT, Features, Part, Phase, SegOutput

WITH_AUXILIARY = {
    "at": "logit_kd", "cirkd": "logit_kd", "feature_kd": "logit_kd", "ifvd": "logit_kd", "skd": "logit_kd",
    "mgd": "cwd",
}  # fmt: skip


@cache
def built(name: str) -> Bench:
    plugin = load_method(name)
    if plugin.missing:
        pytest.skip(f"optional: {plugin.missing}")
    return make_bench(plugin, find_pair("dinov2-b:deit-s"))


@pytest.fixture(params=method_names())
def bench(request: pytest.FixtureRequest) -> Bench:
    """Each method on a small pair of different widths."""
    return copy.deepcopy(built(request.param))


def test_stages_follow_from_what_a_method_reads(bench: Bench) -> None:
    method = bench.method
    for stage in bench.stages():
        if stage.name == "joint":
            assert stage.phase == Phase.TASK
            assert stage.trains == STUDENT | method.own_modules
            assert (Part.TEACHER_DECODER in stage.parts) == method.reads_teacher_logits
        if stage.name in ("proxy", "source"):
            assert not stage.phase.labelled
            assert stage.trains == {Part.STUDENT_ENCODER} | method.own_modules
        if isinstance(method, RepresentationMethod):
            assert stage.reset == (method.own_modules if stage.name == "source" else frozenset())
            assert stage.parts == (STUDENT if stage.name == "task" else ENCODERS)
            assert (stage.loss is task_loss) == (stage.name == "task")


@pytest.mark.parametrize("name", ["gkd", "proteus"])
def test_a_single_stage_adds_the_tasks_loss_and_the_proxy_can_be_left_out(name: str) -> None:
    made = built(name)
    method = type(made.method)(made.method.Config(single_stage=True), made.method.pair)
    (stage,) = method.stages()
    assert (stage.phase, stage.trains) == (Phase.TASK, method.own_modules | STUDENT)
    student, teacher = made.networks.student, made.networks.teacher
    batch, found = make_batch(stage), []
    for loss in (stage.loss, method.loss):
        torch.manual_seed(0)
        found.append({term: value.item() for term, value in loss(batch, student, teacher).items()})
    assert found[0].pop("task") == pytest.approx(task_loss(batch, student, teacher)["task"].item(), rel=1e-5)
    assert found[0] == found[1]
    without = type(made.method)(made.method.Config(proxy=False), made.method.pair)
    assert [stage.name for stage in without.stages()] == ["source", "task"]


@pytest.mark.parametrize("name", ["baseline", "gkd", "proteus"])
@pytest.mark.parametrize("encoder", ["frozen", "fine-tuned"])
def test_the_encoder_is_frozen_in_the_task_where_an_option_says_so(name: str, encoder: str) -> None:
    method = load_method(name).method
    task = method(
        method.Config(encoder=encoder), make_bench(load_method(name), find_pair("dinov2-s:deit-s")).method.pair
    )
    assert (Part.STUDENT_ENCODER in task.stages()[-1].trains) == (encoder == "fine-tuned")


@pytest.mark.parametrize("name", WITH_AUXILIARY)
def test_the_published_preset_fits_the_teacher_and_adds_a_loss_of_logits(name: str) -> None:
    plugin, networks = load_method(name), copy.deepcopy(built(name)).networks
    assert isinstance(networks.method, FeatureMethod)
    plain, pair = networks.method, networks.method.pair
    networks.method = published = plugin.method(plugin.method.Config(preset="published"), pair)
    published.load_state_dict(plain.state_dict())
    assert [stage.name for stage in published.stages()] == ["fit_teacher", "joint"]
    stage = published.stages()[-1]
    batch = make_batch(stage)
    terms = Bench(networks, published).losses(stage, batch)
    networks.method = plain
    assert terms.keys() - Bench(networks, plain).losses(plain.stages()[-1], batch).keys() == {WITH_AUXILIARY[name]}
    student, teacher = (view(batch.image).logits.flatten(2) for view in stage_models(networks, stage))
    each = 3 * divergence(student, teacher, 4.0, axis=2) if name == "mgd" else divergence(student, teacher, axis=1)
    assert terms[WITH_AUXILIARY[name]].item() == pytest.approx(each.mean(), rel=1e-3)


class Scaled:
    """A segmentor whose features and logits are so many times as large."""

    def __init__(self, view: Any, factor: float) -> None:
        self.view, self.factor = view, factor
        self.spec = view.spec

    def _scaled(self, map_: Tensor) -> Tensor:
        return self.factor * map_

    def encode(self, image: Tensor, mask: Tensor | None = None, blocks: Sequence[int] = ()) -> Features:
        features = self.view.encode(image, mask, blocks)
        levels = tuple(map(self._scaled, features.levels))
        more = {number: self._scaled(map_) for number, map_ in features.blocks.items()}
        return Features(levels, self._scaled(features.final), self._scaled(features.pooled), more)

    def decode(self, features: Features) -> SegOutput:
        output = self.view.decode(features)
        return replace(output, logits=self._scaled(output.logits))

    def __call__(self, image: Tensor) -> SegOutput:
        return self.decode(self.encode(image))

    def task_loss(self, output: SegOutput, label: Tensor | None) -> dict[str, Tensor]:
        return dict(self.view.task_loss(output, label))


def steps(bench: Bench, student: float = 1, teacher: float = 1) -> list[tuple[Any, dict[str, Tensor]]]:
    """Each stage of the method's own losses with its terms, on scaled networks, with all pixels ignored."""
    found = []
    for stage in bench.stages():
        if getattr(stage.loss, "__self__", None) is bench.method:
            bench.networks.freeze_all_but(stage.trains)
            models = zip(stage_models(bench.networks, stage), (student, teacher), strict=True)
            seen = [Scaled(model, factor) for model, factor in models]
            found.append((stage, stage.loss(make_batch(stage, ignored=True), *seen)))
    return found


@pytest.mark.parametrize("factors", [(1e3, 1e3), (0.0, 1.0), (1.0, 0.0)], ids=["loud", "no student", "no teacher"])
def test_extreme_features_give_finite_losses_and_gradients(factors: tuple[float, float], bench: Bench) -> None:
    if bench.method.requires:
        # Of a map that is zero throughout, the package's own losses are not a number.
        factors = max(factors[0], 1e-6), max(factors[1], 1e-6)
    for stage, terms in steps(bench, *factors):
        assert all(torch.isfinite(term) for term in terms.values()), terms
        torch.stack(list(terms.values())).sum().backward()
        for name, module in bench.networks.modules().items():
            for key, parameter in module.named_parameters():
                assert parameter.grad is None or torch.isfinite(parameter.grad).all(), (stage.name, name, key)


def test_losses_are_computed_in_single_precision_under_autocast(bench: Bench) -> None:
    """Differences of large sums, small temperatures and saturated softmaxes do not survive half precision."""
    with torch.autocast("cpu", torch.bfloat16):
        found = steps(bench)
    assert all(term.dtype == torch.float32 for _, terms in found for term in terms.values())
