"""The one training loop, on Lightning Fabric. It knows parts, losses and a recipe, and nothing of distillation."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from kdbench.engine.distributed import gathered
from kdbench.engine.memory import Gradients
from kdbench.engine.states import to_half
from kdbench.engine.store import StageFolder
from kdbench.errors import KdbenchError
from kdbench.identity import seed_from
from kdbench.method import check_terms
from kdbench.progress import Progress
from kdbench.protocol import Recipe
from kdbench.records import StageSummary
from kdbench.types import ENCODERS

REPORT_EVERY = 10
"""Steps between two reports of the losses: each waits for the device."""
CURVE_POINTS = 10
"""Means that a record keeps of each loss term."""
FIRST_STEPS = 50
"""Steps whose losses the store keeps one by one, so that somebody else can tell that they get the same."""
MEASURED_STEPS = 2 * REPORT_EVERY
"""Steps from which a stage's time is estimated."""
LONG = 60
"""Seconds from which an estimate is told."""


class LossModule(nn.Module):
    """Holds what trains and has the loss as its forward: the one module that Fabric wraps and processes synchronise.

    Frozen networks are reached through the loss alone, so they are neither wrapped nor saved.
    """

    def __init__(self, trained: Mapping[str, nn.Module], loss: Callable[[Any], dict[str, Tensor]]) -> None:
        super().__init__()
        self.trained = nn.ModuleDict({name.replace(".", "/"): module for name, module in trained.items()})
        self._loss = loss

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum to minimise, and its terms, detached."""
        terms = check_terms(self._loss(batch))
        total = torch.stack([term.float() for term in terms.values()]).sum()
        return total, {name: term.detach().float() for name, term in terms.items()}

    def parts(self) -> dict[str, nn.Module]:
        """Return what trains by part name."""
        return {name.replace("/", "."): module for name, module in self.trained.items()}

    def states(self, half: bool = False) -> dict[str, dict[str, Tensor]]:
        """Return the state dicts of what trains by part name, where wanted rounded to half precision."""
        states = {name: module.state_dict() for name, module in self.parts().items()}
        return {name: to_half(state) for name, state in states.items()} if half else states


@dataclass
class LossLog:
    """Every step's losses, fetched from the device in groups.

    gather: collects the lists of steps of all processes. Their means are kept, as it is for gradients; a loss that is
    not finite in one process stops all.
    """

    gather: Callable[[list[dict[str, float]]], list[list[dict[str, float]]]] = lambda steps: [steps]
    curves: dict[str, list[float]] = field(default_factory=dict)
    _pending: list[dict[str, Tensor]] = field(default_factory=list)

    def add(self, terms: dict[str, Tensor]) -> None:
        """Add one step's terms."""
        self._pending.append(terms)

    def flush(self, what: str) -> dict[str, float]:
        """Fetch what is pending; raise where a loss is not finite. Returns the latest terms."""
        if self._pending:
            names = list(dict.fromkeys(name for terms in self._pending for name in terms))
            nothing = torch.zeros_like(next(iter(self._pending[0].values())))
            # A term may begin or end within a stage, as after a warm-up; where it is absent it counts as zero.
            rows = torch.stack([
                torch.stack([terms.get(name, nothing) for name in names]) for terms in self._pending
            ]).tolist()  # fmt: skip
            self._pending.clear()
            mine = [dict(zip(names, row, strict=True)) for row in rows]
            for processes in zip(*self.gather(mine), strict=True):
                self._append(what, _mean_terms(processes))
        return {name: values[-1] for name, values in self.curves.items() if values}

    def _append(self, what: str, terms: dict[str, float]) -> None:
        step = max((len(values) for values in self.curves.values()), default=0)
        if not all(map(math.isfinite, terms.values())):
            shown = ", ".join(f"{name} = {value:.4g}" for name, value in terms.items())
            raise KdbenchError(
                f"{what}: the loss is not finite at step {step} ({shown}). Lower the weight of the term that "
                "grew (--set OPTION=VALUE) or look for a division or a logarithm without a floor in its loss; then run "
                "again."
            )
        for name in dict.fromkeys((*self.curves, *terms)):
            self.curves.setdefault(name, [0.0] * step).append(terms.get(name, 0.0))

    def first(self, steps: int) -> dict[str, list[float]]:
        """Return each term in its first steps, to seven digits."""
        return {name: [float(f"{value:.7g}") for value in values[:steps]] for name, values in self.curves.items()}

    def summary(self) -> dict[str, list[float]]:
        """Return each term's means over tenths of the stage, to five digits."""
        return {name: [float(f"{mean:.5g}") for mean in _means(values)] for name, values in self.curves.items()}


def _mean_terms(processes: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the processes' mean of one step's terms; a term that a process lacks counts as zero."""
    names = dict.fromkeys(name for terms in processes for name in terms)
    return {name: sum(terms.get(name, 0.0) for terms in processes) / len(processes) for name in names}


def _means(values: list[float]) -> list[float]:
    edges = [round(len(values) * i / CURVE_POINTS) for i in range(CURVE_POINTS + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges) if b > a]


def lr_scale(recipe: Recipe, step: int, steps: int, epoch: int = 1) -> float:
    """Return the schedule's factor on the learning rate: linear warm-up, then decay. epoch: its steps."""
    if step < recipe.warmup:
        return (step + 1) / (recipe.warmup + 1)
    done = (step - recipe.warmup) / max(1, steps - recipe.warmup)
    if recipe.schedule == "poly":
        return float((1 - done) ** 0.9)
    if recipe.schedule in ("cosine-epochs", "cosine-epochs-on-time"):
        # The late variant tells the scheduler an epoch's number when that epoch is over: two have the full rate.
        late = recipe.schedule == "cosine-epochs"
        done = max(0, step // epoch - late) / max(1, steps // epoch)
    floor = recipe.min_lr / recipe.lr
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
QUERIES = ("queries_features.weight", "queries_embedder.weight", "transformer.level_embed.weight")
"""Mask2Former's learnt queries and level embeddings, as transformers names them."""


def is_decayed(rule: str, part: str, module: nn.Module) -> dict[str, bool]:
    """Say of each parameter of a part, by name, whether weight decay touches it (Recipe.decay)."""
    if rule == "release" and part in ENCODERS:
        return {name: True for name, _ in module.named_parameters()}
    norms = {
        f"{m}.{p}".lstrip(".")
        for m, found in module.named_modules()
        if isinstance(found, NORMS)
        for p in ("weight", "bias")
    }
    if rule == "release":
        return {n: n not in norms and not n.endswith(QUERIES) for n, _ in module.named_parameters()}
    return {
        name: p.ndim > 1 or (rule == "timm" and name.endswith("mask_token")) for name, p in module.named_parameters()
    }


def make_optimizer(trained: Mapping[str, nn.Module], recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW with one group per part for decayed parameters and one for the others."""
    groups = []
    for name, module in trained.items():
        touched = is_decayed(recipe.decay, name, module)
        rate = recipe.lr * (recipe.encoder_lr if name in ENCODERS else 1.0)
        for decayed in (True, False):
            chosen = [p for n, p in module.named_parameters() if p.requires_grad and touched[n] == decayed]
            decay = recipe.weight_decay if decayed else 0.0
            groups.append({"params": chosen, "lr": rate, "base_lr": rate, "weight_decay": decay})
    return torch.optim.AdamW([group for group in groups if group["params"]], fused=True)


@dataclass
class SkippedFiles:
    """Files that could not be read while a stage trained; more than `most` of them stop it."""

    most: int
    note: Callable[[str], None] = lambda text: None
    errors: list[str] = field(default_factory=list)

    def add(self, errors: Iterable[str]) -> None:
        """Note each new error; raise where there are too many."""
        for error in errors:
            if error in self.errors:
                continue
            self.errors.append(error)
            self.note(f"skipped ({len(self.errors)} of at most {self.most}): {error}")
            if len(self.errors) > self.most:
                raise KdbenchError(
                    f"{len(self.errors)} training files cannot be read, and the protocol allows {self.most}. The last: "
                    f"{error} `kdbench data verify` lists all of them."
                )


@dataclass(frozen=True)
class TrainingJob:
    """One stage's training, as the loop needs it."""

    what: str
    """Named in progress and errors."""
    module: LossModule
    recipe: Recipe
    steps: int
    batches: Callable[[int], Iterator[Any]]
    """From a first step to the batches of that step and all later ones, on the device."""
    randomness: tuple[Any, ...]
    """What the random draws inside the loss depend on, beside the step."""
    snapshots: tuple[int, ...]
    """The steps after which the trained parts are kept."""
    checkpoint_every: int
    epoch: int = 1
    """Steps of one pass over the data, where the recipe counts in them."""
    smallest_batch: int = 1
    """Images that the loss needs at once: no micro-batch has fewer."""
    student_forwards: Callable[[], int] = lambda: 0
    """Images that have gone through the student so far, failed passes included."""
    skipped: list[str] = field(default_factory=list)
    """Errors of the files that `batches` has skipped in this process so far."""
    most_skipped: int = 0
    """Files that all processes together may skip."""
    half: bool = False
    """Whether what is kept is rounded to half precision."""


def train(fabric: Fabric, job: TrainingJob, folder: StageFolder, progress: Progress) -> StageSummary:
    """Train to the end, from the folder's checkpoint where there is one."""
    run = _Training(fabric, job, SkippedFiles(job.most_skipped, progress.note))
    begun, seconds = run.resume(folder.load_checkpoint())
    started = time.perf_counter()
    progress.begin(job.what, job.steps)
    try:
        for step, batch in enumerate(job.batches(begun), begun):
            run.step(step, batch)
            done = step + 1
            if done == 1 and (unreached := run.unreached()):
                # A loss term may begin late, so this is an error only where a whole stage has moved nothing.
                progress.note(f"{job.what}: no gradient has reached {', '.join(unreached)} in the first step")
            if done % REPORT_EVERY == 0 or done == job.steps:
                progress.advance(done, run.synchronise())
            if done - begun == MEASURED_STEPS:
                _estimate(job, done, (time.perf_counter() - started) / MEASURED_STEPS, progress)
            for number in [number for number, kept in enumerate(job.snapshots) if kept == done]:
                run.synchronise()
                if fabric.is_global_zero:
                    folder.save_snapshot(number, job.module.states(job.half))
            if done % job.checkpoint_every == 0 and done < job.steps:
                run.synchronise()
                if fabric.is_global_zero:
                    folder.save_checkpoint(run.checkpoint(done, seconds + time.perf_counter() - started))
    finally:
        progress.end()
    return StageSummary(
        losses=run.losses.summary(),
        first_losses=run.losses.first(FIRST_STEPS),
        steps=job.steps,
        images=job.steps * job.recipe.batch,
        student_forwards=run.gradients.student_forwards,
        skipped_files=len(run.skipped.errors),
        micro_batches=run.gradients.micro_batches,
        seconds=seconds + time.perf_counter() - started,
    )


def _estimate(job: TrainingJob, done: int, each: float, progress: Progress) -> None:
    """Tell how long the rest of a long stage takes. each: seconds of a step."""
    seconds = each * (job.steps - done)
    if seconds > LONG:
        left = f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"
        progress.note(f"{job.what}: about {left} for {job.steps - done} steps")


class _Training:
    """A job's module and optimiser as Fabric has set them up, with all that a checkpoint holds."""

    def __init__(self, fabric: Fabric, job: TrainingJob, skipped: SkippedFiles) -> None:
        self.fabric, self.job, self.skipped = fabric, job, skipped
        self.module, self.optimizer = fabric.setup(job.module, make_optimizer(job.module.parts(), job.recipe))
        self.losses = LossLog(partial(gathered, fabric))
        self.gradients = Gradients(fabric, self.module, job.module, job.what, job.student_forwards, job.smallest_batch)

    def step(self, step: int, batch: Any) -> None:
        """Take one step of the optimiser."""
        scale = lr_scale(self.job.recipe, step, self.job.steps, self.job.epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * scale
        # A fresh seed a step makes what is drawn inside the loss a function of the step alone.
        rank = ("process", self.fabric.global_rank) if self.fabric.global_rank else ()
        self.losses.add(self.gradients(batch, seed_from(*self.job.randomness, "step", step, *rank)))
        if self.job.recipe.clip is not None:
            self.fabric.clip_gradients(
                self.module, self.optimizer, max_norm=self.job.recipe.clip, error_if_nonfinite=False
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def synchronise(self) -> dict[str, float]:
        """Bring the skipped files and losses of all processes together. Returns the latest losses."""
        for errors in gathered(self.fabric, self.job.skipped):
            self.skipped.add(errors)
        return self.losses.flush(self.job.what)

    def unreached(self) -> list[str]:
        """Return the parts that train and have had no gradient yet."""
        state = self.optimizer.optimizer.state
        learning = {
            name: [p for p in part.parameters() if p.requires_grad] for name, part in self.job.module.parts().items()
        }
        return [name for name, held in learning.items() if held and not any(p in state for p in held)]

    def checkpoint(self, step: int, seconds: float) -> dict[str, Any]:
        """Return all that a killed stage needs to continue bit for bit."""
        return {
            "step": step,
            "trained": self.job.module.trained.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "curves": self.losses.curves,
            "student_forwards": self.gradients.student_forwards,
            "micro_batches": self.gradients.micro_batches,
            "skipped": list(self.skipped.errors),
            "seconds": seconds,
        }

    def resume(self, checkpoint: dict[str, Any] | None) -> tuple[int, float]:
        """Put a checkpoint back, where there is one. Returns the first step to take and the seconds spent."""
        if checkpoint is None:
            return 0, 0.0
        self.job.module.trained.load_state_dict(checkpoint["trained"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.losses.curves = checkpoint["curves"]
        self.gradients.student_forwards = int(checkpoint["student_forwards"])
        self.gradients.micro_batches = int(checkpoint["micro_batches"])
        self.skipped.errors = list(checkpoint["skipped"])
        return int(checkpoint["step"]), float(checkpoint["seconds"])
