"""A stage's cost, against operations counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdbench.engine.cell import Cell, Lab, make_plan
from kdbench.engine.costs import Kept, amount, cost_of
from kdbench.engine.grid import expand, make_lab
from kdbench.progress import Silent
from kdbench.protocol import PROTOCOLS
from kdbench.spec import RunSpec


def test_the_cost_of_fitting_a_decoder_on_a_frozen_encoder(tmp_path: Path) -> None:
    spec = RunSpec(
        methods=("baseline",), pairs=("dinov2-s:deit-s",), benchmarks=("c2a",), protocol="smoke", device="cpu",
        results=tmp_path / "r", store=tmp_path / "s",
    )  # fmt: skip
    lab = make_lab(spec, Silent())
    teacher, student = (make_plan(lab, cell) for cell in expand(spec, lab))
    cost = cost_of(lab, teacher, teacher.stages[0])
    # An encoder of width 64 on 4 x 8 tokens and a class token; two operations a product. Matrices of a block: attention
    # 4 w^2, MLP 8 w^2 a token, and two products of tokens with tokens; the patch kernel; forward alone.
    tokens, width = 33, 64
    block = 2 * (tokens * 12 * width**2 + 2 * tokens**2 * width)
    encoder = 6 * block + 2 * 32 * width * 3 * 8 * 8
    assert cost.flops > encoder
    joint = cost_of(lab, student, student.stages[0])
    # Training the student's encoder too: its products are counted three times, once forward and twice back.
    assert joint.flops - cost.flops == pytest.approx(2 * encoder, rel=0.05)
    parameters = sum(p.numel() for p in student.networks.modules()["student.encoder"].parameters())
    assert joint.memory > 16 * parameters


def test_a_frozen_teacher_takes_half_the_memory_where_it_is_held_in_bfloat16(
    plan_cells: Callable[..., tuple[Lab, list[Cell]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = []
    for precision in ("32-true", "bf16-mixed"):
        monkeypatch.setitem(PROTOCOLS, "smoke", PROTOCOLS["smoke"].model_copy(update={"precision": precision}))
        lab, cells = plan_cells(methods=("logit_kd",))
        plan = make_plan(lab, cells[0])
        cost = cost_of(lab, plan, plan.stages[-1])
        memory.append(cost.memory)
    weights = 16 * cost.trained + 4 * (cost.parameters - cost.trained)
    teacher = sum(p.numel() for p in plan.networks.teacher.encoder.parameters())
    # What the backward pass needs is half as large too.
    assert memory[1] == pytest.approx(weights - 2 * teacher + (memory[0] - weights) / 2)


def test_what_the_backward_pass_needs_is_counted_once() -> None:
    weight = torch.nn.Parameter(torch.ones(5, 5))
    kept = Kept([weight])
    x = torch.ones(3, 5)
    with torch.autograd.graph.saved_tensors_hooks(kept.add, lambda tensor: tensor):
        (x @ weight).mul(x @ weight.detach().t()).sum()
    # x for the weight's gradient, and the second product for the first one's; the weight itself is left out.
    assert kept.numbers == 3 * 5 + 3 * 5


@pytest.mark.parametrize(("number", "text"), [(12.0, "12 B"), (3.25e12, "3.25 TB"), (1e22, "10 ZB"), (999.0, "999 B")])
def test_amounts_have_prefixes(number: float, text: str) -> None:
    assert amount(number, "B") == text
