"""How much a method's terms weigh beside the task at the start, on a pretrained pair.

Recipes clip gradients, so a term that outweighs the task does no lasting harm; but beyond OUTWEIGHED it would leave the
task less than a thousandth of a step, which is what a sum in place of a mean looks like. Below UNFELT a method is the
student alone under another name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.api import make_request
from kdbench.engine.grid import expand, make_context
from kdbench.engine.plan import Plan, RunContext, make_plan
from kdbench.engine.runner import finish_stages, make_job
from kdbench.engine.tracking import EventLog
from kdbench.plugins import load_method, method_names
from kdbench.progress import Silent
from kdbench.protocol import MINI, SMOKE
from kdbench.types import Part

OUTWEIGHED, UNFELT = 2000.0, 0.01
ALONE = {"baseline", "gkd", "lightly", "proteus", "simkd"}
"""Methods in whose last stage no term joins the task's loss on the student's encoder."""


@pytest.fixture(scope="module")
def plan_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[RunContext, Plan]]:
    """A method's plan on a pretrained pair; all share a store, and so the teacher's fitted decoder."""
    store = tmp_path_factory.mktemp("store")

    def of(method: str) -> tuple[RunContext, Plan]:
        request: dict[str, Any] = {"method": method, "pair": "dinov2-b:deit-s", "benchmark": "c2a", "protocol": "smoke"}
        spec = make_request(print, **request, store=Path(store), device="cpu", references=False)
        context = make_context(spec, Silent())
        (cell,) = expand(spec, context)
        return context, make_plan(context, cell)

    return of


def first_terms(context: RunContext, plan: Plan) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The terms of the task stage's first batch, warm-ups over, and the student's parameters that they train."""
    done = finish_stages(context, plan, EventLog())
    for _ in plan.stages[:-1]:
        next(done)
    job = make_job(context, plan, plan.stages[-1])
    encoder = job.module.parts().get(Part.STUDENT_ENCODER, torch.nn.Identity())
    torch.manual_seed(0)
    return job.module._loss(replace(next(job.batches(0)), progress=1.0)), list(encoder.parameters())


def length(term: Tensor, parameters: list[Tensor]) -> float:
    gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    return float(torch.stack([g.square().sum() for g in gradients if g is not None]).sum().sqrt())


@pytest.mark.parametrize("name", method_names())
def test_a_term_is_felt_beside_the_task_and_does_not_drown_it(name: str, plan_of) -> None:
    if missing := load_method(name).missing:
        pytest.skip(f"optional: {missing}")
    context, plan = plan_of(name)
    terms, parameters = first_terms(context, plan)
    task = terms.pop("task", None)
    joined = task is not None and bool(terms) and bool(parameters)
    assert joined == (name not in ALONE)
    if task is not None and joined:
        share = length(torch.stack(list(terms.values())).sum(), parameters) / length(task, parameters)
        assert UNFELT < share < OUTWEIGHED


def test_every_recipe_of_smoke_clips() -> None:
    """MINI's first version does not, and its numbers may not change."""
    assert {recipe.clip for recipe in SMOKE.recipes.values()} == {1.0}
    assert MINI.version == 1 or {recipe.clip for recipe in MINI.recipes.values()} == {1.0}
