"""The one training loop, on Lightning Fabric. It knows parts, losses and a recipe, and nothing of distillation."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from kdbench.data.loading import SkippedFiles
from kdbench.engine.distributed import gathered
from kdbench.engine.memory import Gradients
from kdbench.engine.store import StageFolder
from kdbench.errors import KdbenchError
from kdbench.identity import seed_from
from kdbench.method import check_terms
from kdbench.progress import Progress
from kdbench.protocol import Recipe
from kdbench.types import ENCODERS

REPORT_EVERY = 10
"""Steps between two looks at the losses: each look waits for the device."""
CURVE_POINTS = 10


class LossModule(nn.Module):
    """What trains, with the loss as its forward: the one module that Fabric wraps and that processes synchronise.

    Frozen networks are reached through the loss alone, so they are neither wrapped nor saved.
    """

    def __init__(self, trained: Mapping[str, nn.Module], loss: Callable[[Any], dict[str, Tensor]]) -> None:
        super().__init__()
        self.trained = nn.ModuleDict({name.replace(".", "/"): module for name, module in trained.items()})
        self._loss = loss

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum to minimise, and its terms, detached."""
        terms = check_terms(self._loss(batch))
        total = torch.stack([term.float() for term in terms.values()]).sum()
        return total, {name: term.detach().float() for name, term in terms.items()}

    def states(self) -> dict[str, dict[str, Tensor]]:
        """The trained parts' state dicts by part name."""
        return {name.replace("/", "."): module.state_dict() for name, module in self.trained.items()}


@dataclass
class LossLog:
    """Every step's losses, fetched from the device in groups.

    gather: from one process's list of steps to those of all. Their mean counts, as it does for the gradients, and
    a loss that is not finite in one of them stops all.
    """

    gather: Callable[[list[dict[str, float]]], list[list[dict[str, float]]]] = lambda steps: [steps]
    curves: dict[str, list[float]] = field(default_factory=dict)
    _pending: list[dict[str, Tensor]] = field(default_factory=list)

    def add(self, terms: dict[str, Tensor]) -> None:
        """One step's terms."""
        self._pending.append(terms)

    def flush(self, what: str) -> dict[str, float]:
        """Fetches what is pending; a loss that is not finite stops the stage. Returns the latest terms."""
        if self._pending:
            names = list(dict.fromkeys(name for terms in self._pending for name in terms))
            nothing = torch.zeros_like(next(iter(self._pending[0].values())))
            # A term may begin or end within a stage, as after a warm-up; where it is absent it counts as zero.
            rows = torch.stack([
                torch.stack([terms.get(name, nothing) for name in names]) for terms in self._pending
            ]).tolist()  # fmt: skip
            self._pending.clear()
            mine = [dict(zip(names, row, strict=True)) for row in rows]
            for everywhere in zip(*self.gather(mine), strict=True):
                self._append(what, _mean_terms(everywhere))
        return {name: values[-1] for name, values in self.curves.items() if values}

    def _append(self, what: str, terms: dict[str, float]) -> None:
        step = max((len(values) for values in self.curves.values()), default=0)
        if not all(map(math.isfinite, terms.values())):
            shown = ", ".join(f"{name} = {value:.4g}" for name, value in terms.items())
            raise KdbenchError(
                f"{what}: the loss is not finite at step {step} ({shown}). Lower the weight of the term that grew "
                "(--set KNOB=VALUE) or look for a division or a logarithm without a floor in its loss; then run again."
            )
        for name in dict.fromkeys((*self.curves, *terms)):
            self.curves.setdefault(name, [0.0] * step).append(terms.get(name, 0.0))

    def summary(self) -> dict[str, list[float]]:
        """Each term's mean over tenths of the stage, to five digits."""
        return {name: [float(f"{mean:.5g}") for mean in _means(values)] for name, values in self.curves.items()}


def _mean_terms(processes: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of one step's terms; where a process has none of a name, it counts as zero there."""
    names = dict.fromkeys(name for terms in processes for name in terms)
    return {name: sum(terms.get(name, 0.0) for terms in processes) / len(processes) for name in names}


def _means(values: list[float]) -> list[float]:
    edges = [round(len(values) * i / CURVE_POINTS) for i in range(CURVE_POINTS + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges) if b > a]


def lr_scale(recipe: Recipe, step: int, steps: int, epoch: int = 1) -> float:
    """The schedule's factor on the rate: linear warm-up, then decay. epoch: steps of one, where epochs are counted."""
    if step < recipe.warmup:
        return (step + 1) / (recipe.warmup + 1)
    done = (step - recipe.warmup) / max(1, steps - recipe.warmup)
    if recipe.schedule == "poly":
        return float((1 - done) ** 0.9)
    if recipe.schedule in ("cosine-epochs", "cosine-epochs-on-time"):
        # Late, the first two epochs have the full rate: the scheduler is told an epoch's number when that is over.
        late = recipe.schedule == "cosine-epochs"
        done = max(0, step // epoch - late) / max(1, steps // epoch)
    floor = recipe.min_lr / recipe.lr
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
QUERIES = ("queries_features.weight", "queries_embedder.weight", "transformer.level_embed.weight")
"""Mask2Former's learnt queries and level embeddings, as transformers names them."""


def is_decayed(rule: str, module: nn.Module) -> dict[str, bool]:
    """Which parameters of a part weight decay touches (Recipe.decay), by name."""
    norms = {
        f"{m}.{p}".lstrip(".")
        for m, found in module.named_modules()
        if isinstance(found, NORMS)
        for p in ("weight", "bias")
    }
    if rule == "mmengine":
        return {n: n not in norms and not n.endswith(QUERIES) for n, _ in module.named_parameters()}
    return {
        name: p.ndim > 1 or (rule == "timm" and name.endswith("mask_token")) for name, p in module.named_parameters()
    }


def make_optimizer(trained: Mapping[str, nn.Module], recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with a group per part and kind of parameter, decayed or not."""
    groups = []
    for name, module in trained.items():
        touched = is_decayed(recipe.decay, module)
        rate = recipe.lr * (recipe.encoder_lr if name in ENCODERS else 1.0)
        for decayed in (True, False):
            chosen = [p for n, p in module.named_parameters() if p.requires_grad and touched[n] == decayed]
            decay = recipe.weight_decay if decayed else 0.0
            groups.append({"params": chosen, "lr": rate, "base_lr": rate, "weight_decay": decay})
    return torch.optim.AdamW([group for group in groups if group["params"]], fused=True)


@dataclass(frozen=True)
class Job:
    """One stage's training, as the loop needs it. batches: first step -> that step's batch and all later ones."""

    what: str
    module: LossModule
    recipe: Recipe
    steps: int
    batches: Callable[[int], Iterator[Any]]
    randomness: tuple[Any, ...]
    keep: tuple[int, ...]
    """The steps after which what trains is kept."""
    checkpoint_every: int
    epoch: int = 1
    """Steps of one pass over the data, where the recipe counts in them."""
    smallest: int = 1
    """Images that the loss needs at once: memory cuts no batch into smaller pieces."""
    passes: Callable[[], int] = lambda: 0
    """Images that have gone through the student so far, in passes that memory did not hold too."""
    skipped: Sequence[str] = ()
    """Errors of the files that `batches` has skipped in this process so far."""
    broken: SkippedFiles = field(default_factory=lambda: SkippedFiles(0))
    """Those of all processes, which stop together where they are too many."""


def train(fabric: Fabric, job: Job, folder: StageFolder, progress: Progress) -> dict[str, Any]:
    """Trains to the end, from the folder's checkpoint where there is one. Returns losses, steps, passes and seconds."""
    module, optimizer = fabric.setup(job.module, make_optimizer(_by_part(job.module), job.recipe))
    log = LossLog(partial(gathered, fabric))
    gradients = Gradients(fabric, module, job.module, job.what, job.passes, job.smallest)
    begun, seconds = _resume(job, optimizer, gradients, log, folder)
    started = time.perf_counter()
    progress.begin(job.what, job.steps)
    try:
        for step, batch in enumerate(job.batches(begun), begun):
            log.add(_step(fabric, module, optimizer, gradients, batch, job, step))
            done = step + 1
            if done == 1:
                _tell_unreached(job, optimizer.optimizer, progress)
            if done % REPORT_EVERY == 0 or done == job.steps:
                progress.advance(done, _look(fabric, job, log))
            for number in [number for number, kept in enumerate(job.keep) if kept == done]:
                _look(fabric, job, log)
                if fabric.is_global_zero:
                    folder.save_point(number, job.module.states())
            if done % job.checkpoint_every == 0 and done < job.steps:
                _look(fabric, job, log)
                spent = seconds + time.perf_counter() - started
                if fabric.is_global_zero:
                    folder.save_checkpoint(_checkpoint(job, optimizer, gradients, log, done, spent))
    finally:
        progress.end()
    return {
        "losses": log.summary(),
        "steps": job.steps,
        "images": job.steps * job.recipe.batch,
        "passes": gradients.passes,
        "broken": job.broken.errors,
        "pieces": gradients.pieces,
        "seconds": seconds + time.perf_counter() - started,
    }


def _tell_unreached(job: Job, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """A term may begin late, so it is an error only where a whole stage has moved nothing: long after this."""
    parts = {name: [p for p in part.parameters() if p.requires_grad] for name, part in _by_part(job.module).items()}
    unreached = [name for name, held in parts.items() if held and not any(p in optimizer.state for p in held)]
    if unreached:
        progress.note(f"{job.what}: no gradient has reached {', '.join(unreached)} in the first step")


def _look(fabric: Fabric, job: Job, log: LossLog) -> dict[str, float]:
    """Brings the skipped files and the losses of all processes together. Returns the latest terms."""
    for errors in gathered(fabric, list(job.skipped)):
        job.broken.add(errors)
    return log.flush(job.what)


def _step(
    fabric: Fabric, module: nn.Module, optimizer: Any, gradients: Gradients, batch: Any, job: Job, step: int
) -> dict[str, Tensor]:
    scale = lr_scale(job.recipe, step, job.steps, job.epoch)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * scale
    # A fresh seed a step makes what is drawn inside the loss a function of the step alone.
    rank = ("process", fabric.global_rank) if fabric.global_rank else ()
    terms = gradients(fabric.to_device(batch), seed_from(*job.randomness, "step", step, *rank))
    if job.recipe.clip is not None:
        fabric.clip_gradients(module, optimizer, max_norm=job.recipe.clip, error_if_nonfinite=False)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return terms


def _by_part(module: LossModule) -> dict[str, nn.Module]:
    return {name.replace("/", "."): part for name, part in module.trained.items()}


def _checkpoint(
    job: Job, optimizer: Any, gradients: Gradients, log: LossLog, done: int, seconds: float
) -> dict[str, Any]:
    return {
        "step": done,
        "trained": job.module.trained.state_dict(),
        "optimizer": optimizer.state_dict(),
        "curves": log.curves,
        "passes": gradients.passes,
        "pieces": gradients.pieces,
        "broken": list(job.broken.errors),
        "seconds": seconds,
    }


def _resume(job: Job, optimizer: Any, gradients: Gradients, log: LossLog, folder: StageFolder) -> tuple[int, float]:
    """Puts back what the checkpoint holds, where there is one. Returns the first step to take and the seconds spent."""
    state = folder.load_checkpoint()
    if state is None:
        return 0, 0.0
    job.module.trained.load_state_dict(state["trained"])
    optimizer.load_state_dict(state["optimizer"])
    gradients.passes, gradients.pieces = int(state["passes"]), int(state["pieces"])
    log.curves = state["curves"]
    job.broken.errors[:] = state["broken"]
    return int(state["step"]), float(state["seconds"])
