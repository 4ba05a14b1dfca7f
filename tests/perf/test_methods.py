"""What a method costs: the share of a training step that distillation takes. No test asserts a time.

    python -m pytest tests/perf/test_methods.py -m slow -s --benchmark-json results/reference/costs.json

The first distilling stage against the undistilled student's step, taken in turn: toy models of dinov2-b:deit-s,
mini's image size and batch, forward, backward and optimiser on both sides, the teacher's forward pass on the method's.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from kdbench.conformance import make_bench
from kdbench.engine.parts import stage_models
from kdbench.engine.trainer import make_optimizer
from kdbench.method import FIT_TEACHER
from kdbench.models.registry import parse_pair
from kdbench.plugins import load_method, method_names
from kdbench.protocol import MINI
from kdbench.types import Batch

pytestmark = pytest.mark.slow
PAIR, ROUNDS = "dinov2-b:deit-s", 7


def stepper(method: str, random_batches: Callable[..., list[Batch]]) -> Callable[[], float]:
    """Return a function that takes one step of the method's first distilling stage and returns its seconds."""
    plugin = load_method(method)
    if plugin.missing:
        pytest.skip(f"optional: {plugin.missing}")
    bench = make_bench(plugin, parse_pair(PAIR))
    stage = next(stage for stage in bench.method.stages() if stage is not FIT_TEACHER)
    trained = bench.networks.freeze_all_but(stage.trains)
    optimizer = make_optimizer(trained, MINI.recipes[stage.phase])
    student, teacher = stage_models(bench.networks, stage)
    (batch,) = random_batches(1, MINI.recipes[stage.phase].batch, stage.phase.labelled)

    def step() -> float:
        started = time.perf_counter()
        torch.stack(list(stage.loss(batch, student, teacher).values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - started

    return step


@pytest.mark.parametrize("method", method_names())
def test_share_of_a_step_that_distillation_takes(benchmark, random_batches, method: str) -> None:  # type: ignore[no-untyped-def]
    plain, distilled = (stepper(name, random_batches) for name in ("baseline", method))
    ratios: list[float] = []
    benchmark.pedantic(lambda: ratios.append(plain() / distilled()), rounds=ROUNDS, warmup_rounds=2)
    # The first two ratios are those of the warm-up.
    share = 1 - sorted(ratios[2:])[ROUNDS // 2]
    benchmark.extra_info.update(method=method, share=round(share, 2))
    print(f"\n{method}: distillation takes {100 * share:.0f} % of a step")
