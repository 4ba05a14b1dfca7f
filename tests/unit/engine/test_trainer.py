"""The training loop: schedule, groups, stopping on bad losses, and continuing bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from kdbench.engine.store import StageFolder
from kdbench.engine.trainer import LossLog, LossModule, TrainingJob, is_decayed, lr_scale, make_optimizer, train
from kdbench.errors import KdbenchError
from kdbench.progress import Progress, Silent
from kdbench.protocol import Recipe
from kdbench.records import StageSummary
from kdbench.types import Batch, Part

RECIPE = Recipe(steps=12, batch=4, lr=0.01, warmup=3, clip=1.0)


class Killed(BaseException):
    """Stands in for a process that ends in the middle of a step."""


def job(module: nn.Module, loss: Callable[[Any], Any], recipe: Recipe = RECIPE, **fields: Any) -> TrainingJob:
    """A toy job with checkpoints after every second step."""
    assert recipe.steps is not None
    defaults: dict[str, Any] = {
        "batches": lambda start: iter([{}] * recipe.steps),
        "randomness": (0, "toy"),
        "snapshots": (recipe.steps // 2, recipe.steps),
        "checkpoint_every": 2,
    }
    return TrainingJob(
        "toy", LossModule({"student.encoder": module}, loss), recipe, recipe.steps, **(defaults | fields)
    )


def regression(loss_at: dict[int, float] | None = None, killed_at: int | None = None) -> tuple[TrainingJob, nn.Module]:
    """Dropout and batch statistics, so that randomness and buffers matter."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
    replaced = loss_at or {}

    def loss(batch: dict[str, Any]) -> dict[str, Tensor]:
        error = (network(batch["x"]) - batch["x"].sum(1, keepdim=True)).square().mean()
        return {"error": error * replaced.get(batch["step"], 1.0), "size": 1e-3 * network[0].weight.square().sum()}

    def batches(start: int) -> Iterator[dict[str, Any]]:
        for step in range(start, 12):
            if step == killed_at:
                raise Killed
            yield {"x": torch.randn(4, 3, generator=torch.Generator().manual_seed(step)), "step": step}

    return job(network, loss, batches=batches), network


def run(made: TrainingJob, folder: Path, progress: Progress | None = None) -> StageSummary:
    return train(Fabric(accelerator="cpu", devices=1), made, StageFolder(folder), progress or Silent())


def kill(made: TrainingJob, folder: Path) -> None:
    with pytest.raises(Killed):
        run(made, folder)


@pytest.mark.parametrize("killed_at", [1, 2, 5, 11])
def test_a_killed_stage_ends_bit_for_bit_as_an_unbroken_one(tmp_path: Path, killed_at: int) -> None:
    whole, expected = regression()
    summary = run(whole, tmp_path / "whole")
    kill(regression(killed_at=killed_at)[0], tmp_path / "killed")
    resumed, found = regression()
    again = run(resumed, tmp_path / "killed")
    assert again.model_copy(update={"seconds": 0}) == summary.model_copy(update={"seconds": 0})
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, found.state_dict()[name]), name
    for number in (0, 1):
        a, b = (StageFolder(tmp_path / run).load_snapshot(number, "student.encoder") for run in ("whole", "killed"))
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_loss_that_is_not_finite_stops_with_step_terms_and_repair(tmp_path: Path) -> None:
    kill(regression(killed_at=6)[0], tmp_path)
    # The step is right after a resume too.
    with pytest.raises(KdbenchError, match=r"not finite at step 7 \(error = nan, size = .*--set OPTION=VALUE"):
        run(regression(loss_at={7: math.nan})[0], tmp_path)


def small_memory(holds: int, killed_at: int | None = None) -> tuple[TrainingJob, nn.Module]:
    """A regression that is a mean over samples, on a device that holds so many of them; images are counted."""
    network, seen = nn.Linear(3, 1), []
    network.load_state_dict({"weight": torch.full((1, 3), 0.5), "bias": torch.zeros(1)})

    def loss(batch: Batch) -> dict[str, Tensor]:
        seen.append(len(batch.index))
        if len(batch.index) > holds:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate.")
        return {"error": (network(batch.image[:, :, 0, 0]) - 1).square().mean()}

    def batches(start: int) -> Iterator[Batch]:
        for step in range(start, 3):
            if step == killed_at:
                raise Killed
            image = torch.randn(6, 3, 1, 1, generator=torch.Generator().manual_seed(step))
            yield Batch(image, None, ("a",) * 6, torch.arange(6))

    recipe = Recipe(steps=3, batch=6, lr=0.1)
    made = job(network, loss, recipe, batches=batches, checkpoint_every=1, student_forwards=lambda: sum(seen))
    return made, network


def test_where_memory_runs_out_the_batch_goes_through_in_micro_batches(tmp_path: Path) -> None:
    (whole, expected), (tight, found) = small_memory(6), small_memory(2)
    plenty, summary = run(whole, tmp_path / "whole"), run(tight, tmp_path / "tight")
    # Of one and two samples: halves of three did not fit.
    assert (plenty.micro_batches, summary.micro_batches) == (1, 4)
    assert plenty.student_forwards == summary.student_forwards == 3 * 6
    assert summary.losses["error"] == pytest.approx(plenty.losses["error"])
    for name, tensor in expected.state_dict().items():
        assert torch.allclose(tensor, found.state_dict()[name], atol=1e-6), name
    with pytest.raises(KdbenchError, match=r"toy: the device's memory does not hold 6 images in 4 micro-batches"):
        run(small_memory(0)[0], tmp_path / "none")


def test_a_resumed_stage_goes_on_in_the_micro_batches_that_fitted(tmp_path: Path) -> None:
    kill(small_memory(2, killed_at=2)[0], tmp_path)
    summary = run(small_memory(6)[0], tmp_path)
    assert (summary.micro_batches, summary.student_forwards) == (4, 3 * 6)


def test_what_cannot_be_split_says_that_memory_does_not_hold_it(tmp_path: Path) -> None:
    def full(batch: object) -> dict[str, Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(KdbenchError, match="toy: the device's memory does not hold a batch"):
        run(job(nn.Linear(1, 1), full), tmp_path)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({}, "returned no terms"),
        (torch.ones(()), "a loss returned a Tensor; return a dict of named scalar tensors"),
        ({"x": 1.0}, "loss 'x' is a float; return a scalar tensor"),
        ({"x": torch.ones(4)}, r"loss 'x' has shape \(4,\), not a scalar"),
    ],
)
def test_a_loss_that_is_no_dict_of_scalars_is_told_so(tmp_path: Path, returned: Any, message: str) -> None:
    with pytest.raises(KdbenchError, match=message):
        run(job(nn.Linear(1, 1), lambda batch: returned), tmp_path)


def test_schedule_warms_up_and_decays_to_zero() -> None:
    cosine = Recipe(steps=10, batch=1, lr=1.0, warmup=4)
    assert [lr_scale(cosine, step, 10) for step in (0, 1, 2, 3, 4, 7)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 0.5])
    poly = Recipe(steps=10, batch=1, lr=1.0, schedule="poly")
    assert [lr_scale(poly, step, 10) for step in (5, 10)] == pytest.approx([0.5**0.9, 0])


def test_the_rate_between_epochs_is_that_of_timms_scheduler_told_an_epoch_late() -> None:
    recipe = Recipe(epochs=10, batch=1, lr=5e-4, min_lr=1e-5, schedule="cosine-epochs")
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=recipe.lr)
    scheduler = CosineLRScheduler(optimizer, t_initial=10, lr_min=1e-5)
    expected = []
    for epoch in range(10):
        expected += [optimizer.param_groups[0]["lr"]] * 3
        scheduler.step(epoch)
    assert [recipe.lr * lr_scale(recipe, step, 30, 3) for step in range(30)] == pytest.approx(expected)
    assert expected[3] == recipe.lr


def test_weight_decay_touches_what_the_rule_says() -> None:
    class Decayed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mask_token = nn.Parameter(torch.zeros(4))
            self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
            self.linear = nn.Linear(4, 4)
            self.norm = nn.LayerNorm(4)
            self.queries_features = nn.Embedding(2, 4)

    always = {"cls_token", "linear.weight"}
    expected = {
        "matrices": always | {"queries_features.weight"},
        "timm": always | {"queries_features.weight", "mask_token"},
        "release": always | {"linear.bias", "mask_token"},
    }
    for rule, decayed in expected.items():
        assert {name for name, yes in is_decayed(rule, Part.STUDENT_DECODER, Decayed()).items() if yes} == decayed, rule
    # A part that is itself a norm is spared like one inside a part.
    assert is_decayed("release", Part.STUDENT_DECODER, nn.LayerNorm(4)) == {"weight": False, "bias": False}
    # mmengine asks the longest key first: an encoder's norm is decayed under `backbone`, before `norm` is looked at.
    assert is_decayed("release", Part.STUDENT_ENCODER, nn.LayerNorm(4)) == {"weight": True, "bias": True}


def test_optimizer_groups_follow_parts_and_spare_vectors_from_decay() -> None:
    recipe = Recipe(steps=1, batch=1, lr=0.1, encoder_lr=0.5, weight_decay=0.05)
    parts = {Part.STUDENT_ENCODER.value: nn.Linear(2, 2), Part.STUDENT_DECODER.value: nn.Linear(2, 2)}
    groups = make_optimizer(parts, recipe).param_groups
    seen = [(group["lr"], group["weight_decay"], [p.ndim for p in group["params"]]) for group in groups]
    assert seen == [(0.05, 0.05, [2]), (0.05, 0.0, [1]), (0.1, 0.05, [2]), (0.1, 0.0, [1])]


def test_a_part_that_the_first_step_does_not_reach_is_named_at_once(tmp_path: Path) -> None:
    made, _ = regression()
    made.module.trained["idle"] = nn.Linear(2, 2)
    made.module.trained["frozen on purpose"] = nn.Linear(2, 2).requires_grad_(False)
    notes: list[str] = []

    class Noting(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    run(made, tmp_path, Noting())
    assert notes == ["toy: no gradient has reached idle in the first step"]


def test_the_optimizer_is_adamw_on_the_schedule(tmp_path: Path) -> None:
    """Three steps of the loop against AdamW written out by hand in float64."""
    recipe = Recipe(steps=3, batch=1, lr=0.1, weight_decay=0.2, warmup=1)
    module = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, -2.0]]))
    x = torch.tensor([[0.5, 0.25]])
    run(job(module, lambda batch: {"l": module(x).square().sum()}, recipe), tmp_path)
    w, m, v = [1.0, -2.0], [0.0, 0.0], [0.0, 0.0]
    for step in range(3):
        scale = 0.5 if step == 0 else 0.5 * (1 + math.cos(math.pi * (step - 1) / 2))
        y = 0.5 * w[0] + 0.25 * w[1]
        for i, xi in enumerate((0.5, 0.25)):
            g = 2 * y * xi
            m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g * g
            hat_m, hat_v = m[i] / (1 - 0.9 ** (step + 1)), v[i] / (1 - 0.999 ** (step + 1))
            w[i] -= 0.1 * scale * (0.2 * w[i] + hat_m / (math.sqrt(hat_v) + 1e-8))
    assert module.weight.detach().flatten().tolist() == pytest.approx(w, abs=1e-6)


def test_losses_of_several_processes_are_their_mean_and_a_bad_one_stops_all() -> None:
    log = LossLog(lambda mine: [mine, [{"a": 3.0}, {"a": 5.0, "late": 2.0}]])
    for value in (1.0, 2.0):
        log.add({"a": torch.tensor(value)})
    assert log.flush("toy") == {"a": 3.5, "late": 1.0}
    assert log.curves == {"a": [2.0, 3.5], "late": [0.0, 1.0]}
    log = LossLog(lambda mine: [mine, [{"a": math.nan}]])
    log.add({"a": torch.tensor(1.0)})
    with pytest.raises(KdbenchError, match=r"not finite at step 0 \(a = nan\)"):
        log.flush("toy")


def test_a_term_may_begin_and_end_within_a_stage() -> None:
    """As a warm-up does; where it is absent it counts as zero, and a bad value of it is seen."""
    log = LossLog()
    for step in range(4):
        late = {"late": torch.tensor(float(step))} if step in (1, 2) else {}
        log.add({"a": torch.tensor(1.0), **late})
        if step == 0:
            log.flush("toy")
    log.flush("toy")
    assert log.curves == {"a": [1.0] * 4, "late": [0.0, 1.0, 2.0, 0.0]}
    log.add({"late": torch.tensor(math.nan)})
    with pytest.raises(KdbenchError, match="not finite at step 4"):
        log.flush("toy")


def test_skipped_files_are_counted_once_and_stop_a_stage_where_they_are_too_many(tmp_path: Path) -> None:
    made, skipped = regression()[0], list[str]()

    def batches(start: int) -> Iterator[Any]:
        for step, batch in enumerate(made.batches(start), start):
            skipped[:] = ["one", "two", "one"][: step + 1]
            yield batch

    skipping = replace(made, batches=batches, skipped=skipped, most_skipped=2)
    assert run(skipping, tmp_path / "few").skipped_files == 2
    with pytest.raises(KdbenchError, match="2 training files cannot be read, and the protocol allows 1"):
        run(replace(skipping, most_skipped=1), tmp_path / "many")


@pytest.mark.parametrize(
    ("steps", "said"), [(45, []), (320, ["about 10 min for 300 steps"]), (9020, ["about 5.0 h for 9000 steps"])]
)
def test_a_long_stage_says_how_long_once_its_first_steps_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, said: list[str]
) -> None:
    now, told, network = [0.0], list[str](), nn.Linear(1, 1)

    class Hearing(Silent):
        def note(self, text: str) -> None:
            told.append(text)

    def batches(start: int) -> Iterator[Tensor]:
        for _ in range(30):
            now[0] += 2.0
            yield torch.ones(4, 1)

    monkeypatch.setattr("kdbench.engine.trainer.time", SimpleNamespace(perf_counter=lambda: now[0]))
    made = job(network, lambda batch: {"x": network(batch).square().mean()}, batches=batches, snapshots=())
    run(replace(made, steps=steps), tmp_path, Hearing())
    assert told == [f"toy: {text}" for text in said]
