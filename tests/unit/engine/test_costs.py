"""A stage's cost, against operations counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdbench.engine import costs
from kdbench.engine.costs import InferenceCost, SavedTensors, cost_of, counted, inference_of, stage_flops
from kdbench.engine.grid import Done
from kdbench.engine.parts import stage_models
from kdbench.engine.plan import Cell, RunContext, make_plan
from kdbench.progress import Silent
from kdbench.protocol import PROTOCOLS
from kdbench.types import Batch, SegOutput

PlanCells = Callable[..., tuple[RunContext, list[Cell]]]


def test_the_cost_of_fitting_a_decoder_on_a_frozen_encoder(plan_cells: PlanCells) -> None:
    context, cells = plan_cells(methods=("baseline",), benchmarks=("c2a",), references=True)
    teacher, student = (make_plan(context, cell) for cell in cells)
    cost = cost_of(context, teacher.networks, teacher.stages[0])
    # An encoder of width 96 on 4 x 8 tokens and a class token; two operations a product. Matrices of a block: attention
    # 4 w^2, MLP 8 w^2 a token, and two products of tokens with tokens; three kernels of 3 x 3; forward alone.
    tokens, width = 33, 96
    block = 2 * (tokens * 12 * width**2 + 2 * tokens**2 * width)
    stem = 2 * 9 * (16 * 32 * 3 * 24 + 8 * 16 * 24 * 48 + 4 * 8 * 48 * width)
    encoder = 6 * block + stem
    assert cost.flops > encoder
    joint = cost_of(context, student.networks, student.stages[0])
    # Training the student's encoder too: its products are counted three times, once forward and twice back.
    # Before torch 2.15 those of attention on a CPU, a fourteenth of all, are not counted.
    assert joint.flops - cost.flops == pytest.approx(2 * encoder, rel=0.1)
    parameters = sum(p.numel() for p in student.networks.modules()["student.encoder"].parameters())
    assert joint.memory > 16 * parameters


def test_a_frozen_teacher_takes_half_the_memory_where_it_is_held_in_bfloat16(
    plan_cells: PlanCells, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = []
    for precision in ("32-true", "bf16-mixed"):
        monkeypatch.setitem(PROTOCOLS, "smoke", PROTOCOLS["smoke"].model_copy(update={"precision": precision}))
        context, cells = plan_cells(methods=("logit_kd",))
        plan = make_plan(context, cells[0])
        cost = cost_of(context, plan.networks, plan.stages[-1])
        memory.append(cost.memory)
    weights = 16 * cost.trained + 4 * (cost.parameters - cost.trained)
    teacher = sum(p.numel() for p in plan.networks.teacher.encoder.parameters())
    # What the backward pass needs is half as large too.
    assert memory[1] == pytest.approx(weights - 2 * teacher + (memory[0] - weights) / 2)


def test_what_the_backward_pass_needs_is_counted_once() -> None:
    weight = torch.nn.Parameter(torch.ones(5, 5))
    saved = SavedTensors([weight])
    x = torch.ones(3, 5)
    with torch.autograd.graph.saved_tensors_hooks(saved.add, lambda tensor: tensor):
        (x @ weight).mul(x @ weight.detach().t()).sum()
    # x for the weight's gradient, and the second product for the first one's; the weight itself is left out.
    assert saved.numbers == 3 * 5 + 3 * 5


class Heard(Silent):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_operations_are_counted_once_and_kept_with_the_stage(
    run_cells: Callable[..., list[Done]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (first,) = run_cells(methods=("logit_kd",))
    assert first.record.result is not None
    monkeypatch.setattr(costs, "cost_of", lambda *given: pytest.fail("counted again"))
    (again,) = run_cells(methods=("logit_kd",), results=tmp_path / "elsewhere")
    assert again.record.result is not None
    assert [stage.flops for stage in again.record.result.stages] == [s.flops for s in first.record.result.stages]
    assert all(stage.flops for stage in first.record.result.stages)


def test_images_that_pass_the_student_twice_are_counted_as_often(
    plan_cells: PlanCells, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, cells = plan_cells(methods=("gkd",))
    seen = []

    def counted(*given: Any) -> tuple[Any, Any]:
        seen.append(stage_models(*given))
        return seen[-1]

    monkeypatch.setattr(costs, "stage_models", counted)
    plan = make_plan(context, cells[0])
    for step in plan.stages:
        cost_of(context, plan.networks, step)
    assert [step.stage.student_forwards for step in plan.stages] == [1.5, 1.5, 1.0]
    assert [student.images for student, _ in seen] == [3, 3, 2]


def test_a_loss_that_cannot_do_with_one_image_is_not_counted(
    plan_cells: PlanCells, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, cells = plan_cells(methods=("logit_kd",))
    assert cells[0].method is not None

    def loss(self: object, batch: Batch, student: object, teacher: object) -> None:
        raise ValueError(f"{len(batch.image)} images")

    monkeypatch.setattr(cells[0].method.method, "loss", loss)
    heard = Heard()
    found = stage_flops(replace(context, progress=heard), make_plan(context, cells[0]), ["fit_teacher", "joint"])
    assert found["fit_teacher"] is not None
    assert found["joint"] is None
    (note,) = heard.notes
    assert note.startswith("g2c · logit_kd · joint: operations are not counted (ValueError: 2 images (at test_costs.py")


def test_what_is_deployed_is_counted_and_timed(plan_cells: PlanCells) -> None:
    context, _ = plan_cells(methods=("logit_kd",))
    wide = torch.nn.Conv2d(3, 5, 3, padding=1)
    height, width = context.protocol.image_size

    def model(image: torch.Tensor) -> SegOutput:
        return SegOutput(features=None, logits=wide(image))  # type: ignore[arg-type]

    flops, latency = inference_of(context, model)  # type: ignore[arg-type]
    assert flops == 2 * height * width * 5 * 3 * 3 * 3
    assert latency > 0


def test_attention_is_counted_where_torch_would_fuse_it() -> None:
    attention = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.zeros(1, 5, 8)
    with torch.no_grad(), counted() as counter:
        attention(x, x, x)
    # Four products of tokens (5) with 8 x 8 weights, two of tokens with tokens; two operations each.
    assert counter.get_total_flops() == 2 * (4 * 5 * 8 * 8 + 2 * 5 * 5 * 8)


def test_what_is_deployed_and_cannot_do_with_a_blank_image_costs_no_cell(
    plan_cells: PlanCells,
) -> None:
    context, _ = plan_cells(methods=("logit_kd",))
    heard = Heard()

    def model(image: torch.Tensor) -> SegOutput:
        raise ValueError("blank")

    assert inference_of(replace(context, progress=heard), model) == InferenceCost()  # type: ignore[arg-type]
    assert heard.notes == ["inference is not measured (blank)"]
