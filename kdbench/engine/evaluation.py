"""Evaluate a trained cell: sliding windows over every domain, at every snapshot of its last stage."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from kdbench.benchmark import Domain
from kdbench.data.domainset import DomainSet
from kdbench.engine.distributed import gather_interleaved
from kdbench.engine.keys import key_of, method_source
from kdbench.engine.plan import Plan, RunContext
from kdbench.engine.tracking import EventLog
from kdbench.errors import KdbenchError
from kdbench.method import Method
from kdbench.metrics import hits
from kdbench.protocol import Evaluation
from kdbench.records import DomainResult
from kdbench.types import IGNORE, TEACHER, Part, SegOutput

T = TypeVar("T")


def evaluate_cell(
    context: RunContext, plan: Plan, event_log: EventLog
) -> tuple[list[DomainResult], dict[str, np.ndarray]]:
    """Count pixels of all snapshots on all domains; the stages have to be done. Stored counts are not taken again.

    Returns the domains' results, and by domain hits (N, 3, K) of its images at the last snapshot.
    """
    domains, last = context.data_sources.evaluated(plan.cell.benchmark), plan.stages[-1]
    sets, snapshots = [context.data_sources.val(domain) for domain in domains], range(len(last.snapshots))
    counts: list[list[np.ndarray]] = [[] for _ in sets]
    context.progress.begin(f"{plan.cell.id.name} · testing", len(snapshots) * len(sets))
    try:
        # Snapshot by snapshot: each one's weights are loaded once.
        for done, (snapshot, (samples, taken)) in enumerate(
            itertools.product(snapshots, zip(sets, counts, strict=True)), 1
        ):
            taken.append(_counts(context, plan, samples, snapshot))
            context.progress.advance(done, {})
    finally:
        context.progress.end()
    results = [
        _result(plan, domain, samples, taken) for domain, samples, taken in zip(domains, sets, counts, strict=True)
    ]
    for result in results:
        event_log.validation(result, last.stage.name, last.snapshots, plan.steps_before(last))
    return results, {result.domain: hits(taken[-1]) for result, taken in zip(results, counts, strict=True)}


def deploy(context: RunContext, plan: Plan, snapshot: int = -1) -> nn.Module:
    """Return the segmentor that is evaluated, with the weights of a snapshot (the last, where none is named)."""
    networks, last = plan.networks, plan.stages[-1]
    weights = plan.at(range(len(last.snapshots))[snapshot])
    geometry = context.geometry(last.recipe, context.protocol.evaluation.window)
    networks.load({name: weights[name] for name in deployed_parts(plan)}, geometry)
    networks.freeze_all_but(frozenset())
    networks.place(context.fabric.device)
    model: nn.Module = networks.teacher
    if networks.method is not None and networks.student is not None:
        model = networks.method.deploy(networks.student, networks.teacher)
    placed: nn.Module = context.fabric.to_device(model)
    return placed.eval()


def deployment_source(plan: Plan) -> Any:
    """Return what a method's own way to deploy depends on; None for the student as it is."""
    method = plan.networks.method
    if method is None or type(method).deploy is Method.deploy:
        return None
    return [method_source(method), plan.cell.config.model_dump(mode="json")]


def deployed_parts(plan: Plan) -> frozenset[str]:
    """Return the parts that the evaluated segmentor may read."""
    if plan.networks.method is None:
        return frozenset(TEACHER)
    if type(plan.networks.method).deploy is Method.deploy:
        return frozenset({Part.STUDENT_ENCODER, Part.STUDENT_DECODER})
    return frozenset(plan.networks.modules())


def _result(plan: Plan, domain: Domain, samples: DomainSet, counts: Sequence[np.ndarray]) -> DomainResult:
    """Return a domain's result from the counts of its images at every snapshot."""
    *earlier, last = (each.sum(0) for each in counts)
    return DomainResult(
        domain=domain.name,
        role="target" if domain in plan.cell.benchmark.targets else "source",
        data_source=samples.data_source,
        images=len(samples),
        confusion=last,
        earlier=np.array([hits(confusion)[:2] for confusion in earlier]).reshape(-1, 2, plan.cell.classes),
    )


def _counts(context: RunContext, plan: Plan, samples: DomainSet, snapshot: int) -> np.ndarray:
    """Return confusion matrices (N, K, K), from the store where it has them."""
    fabric, protocol, classes = context.fabric, context.protocol, plan.cell.classes
    weights = plan.at(snapshot)
    key = key_of(
        fabric.device,
        protocol.precision,
        parts={name: weights[name].key for name in sorted(deployed_parts(plan))},
        deployed_by=deployment_source(plan),
        domain=samples.domain,
        data=samples.identity,
        evaluation=protocol.evaluation.model_dump(),
        resampling=protocol.resampling,
        decoder=protocol.decoder,
        classes=classes,
    )
    # One process looks, for all: with a file that appears between two looks they would wait for each other.
    stored: np.ndarray | None = fabric.broadcast(context.store.evaluation(key) if fabric.is_global_zero else None)
    if stored is not None:
        return stored
    share = range(fabric.global_rank, len(samples), fabric.world_size)
    with fabric.autocast():
        model = deploy(context, plan, snapshot)
        mine = evaluate(model, samples, classes, protocol.evaluation, fabric.device, context.workers, share)
    counts = gather_interleaved(fabric, mine)
    if fabric.is_global_zero:
        context.store.keep_evaluation(key, counts)
    return counts


def starts(length: int, window: int, stride: int) -> list[int]:
    """Return where windows begin along one side; the last is moved back so that it ends with the image."""
    steps = max(0, -(-(length - window) // stride))
    return [min(step * stride, max(0, length - window)) for step in range(steps + 1)]


def class_scores(model: Callable[[Tensor], Any], image: Tensor, evaluation: Evaluation) -> Tensor:
    """Return scores (B, K, H, W) of images (B, 3, H, W), averaged where windows overlap, as in mmseg."""
    height, width = (min(w, s) for w, s in zip(evaluation.window, image.shape[-2:], strict=True))
    corners = [
        (y, x)
        for y in starts(image.shape[-2], height, evaluation.stride[0])
        for x in starts(image.shape[-1], width, evaluation.stride[1])
    ]
    if len(corners) == 1:
        return _scores(model(image), (height, width))
    total: Tensor | None = None
    count = image.new_zeros(image.shape[-2:])
    # Some windows of all images at a time, so that no more than a batch's logits are held at full size.
    for group in batched(corners, max(1, evaluation.batch // len(image))):
        windows = torch.cat([image[..., y : y + height, x : x + width] for y, x in group])
        logits = _scores(model(windows), (height, width))
        if total is None:
            total = logits.new_zeros(len(image), logits.shape[1], *image.shape[-2:])
        for (y, x), scores in zip(group, torch.split(logits, len(image)), strict=True):
            total[..., y : y + height, x : x + width] += scores
            count[y : y + height, x : x + width] += 1
    assert total is not None
    return total / count


def predict(model: Callable[[Tensor], Any], image: Tensor, evaluation: Evaluation, size: tuple[int, int]) -> Tensor:
    """Return classes (B, h, w) at the label's size (h, w), from images (B, 3, H, W) in [0, 1]."""
    if evaluation.scales == (1.0,) and not evaluation.flip:
        scores = _resized(class_scores(model, image, evaluation), size)
    else:
        scores = sum(_augmented(model, image, evaluation, size), image.new_zeros(()))
    # max() and not argmax(), which is many times slower along the channels of such maps on a CPU.
    return scores.max(1).indices


def _augmented(
    model: Callable[[Tensor], Any], image: Tensor, evaluation: Evaluation, size: tuple[int, int]
) -> Iterator[Tensor]:
    """Yield class probabilities (B, K, h, w) of every scale of the images, mirrored too where that is asked for."""
    for scale in evaluation.scales:
        height, width = (int(side * scale + 0.5) for side in image.shape[-2:])
        scaled = F.interpolate(image, size=(height, width), mode="bilinear", align_corners=False)
        yield _resized(class_scores(model, scaled, evaluation), size).softmax(1)
        if evaluation.flip:
            yield _resized(class_scores(model, scaled.flip(-1), evaluation), size).flip(-1).softmax(1)


def confusion(prediction: Tensor, label: Tensor, classes: int) -> Tensor:
    """Return counts (B, K, K) int64: rows ground truth, columns prediction; 255 in the label is left out."""
    image = torch.arange(len(label), device=label.device).view(-1, 1, 1)
    cells = len(label) * classes**2
    cell = (image * classes + label) * classes + prediction
    # Ignored pixels go to one cell beyond the last: cheaper than picking the others out.
    counts = torch.bincount(cell.where(label != IGNORE, cells).flatten(), minlength=cells + 1)[:cells]
    return counts.view(len(label), classes, classes)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    samples: DomainSet,
    classes: int,
    evaluation: Evaluation,
    device: torch.device,
    workers: int = 0,
    share: Sequence[int] | None = None,
) -> np.ndarray:
    """Return confusion matrices (N, K, K) int64 of a set's images, in its order.

    workers: processes that read images ahead. share: which images are counted; all where it is None.
    """
    model.eval()
    counts = [torch.zeros(0, classes, classes, dtype=torch.int64, device=device)]
    for image, label in _batches(samples, evaluation.batch, workers, share):
        _check_labels(label, classes, samples.domain)
        label = label.to(device).long()
        prediction = predict(model, image.to(device).float().div_(255), evaluation, (label.shape[-2], label.shape[-1]))
        counts.append(confusion(prediction, label, classes))
    return torch.cat(counts).cpu().numpy()


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield consecutive parts of at most a size (itertools has it from Python 3.12 on)."""
    iterator = iter(items)
    while part := list(itertools.islice(iterator, size)):
        yield part


def _scores(output: SegOutput, size: tuple[int, int]) -> Tensor:
    return _resized(output.logits, size) if output.scores is None else output.scores(size)


def _resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(logits.shape[-2:]) == size:
        return logits.float()
    return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)


class _Samples(Dataset[tuple[Tensor, Tensor] | KdbenchError]):
    """A set's samples. Errors are returned: a worker that raised one would wrap it into its traceback."""

    def __init__(self, samples: DomainSet) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | KdbenchError:
        try:
            return self._samples.read(index)
        except KdbenchError as error:
            return error


def _batches(
    samples: DomainSet, most: int, workers: int, share: Sequence[int] | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield neighbours of one size as batches of at most `most`."""
    chosen = range(len(samples)) if share is None else share
    read = _raising(DataLoader(_Samples(samples), batch_size=None, sampler=chosen, num_workers=workers))
    for _, neighbours in itertools.groupby(read, key=lambda sample: [tensor.shape for tensor in sample]):
        for batch in batched(neighbours, most):
            images, labels = zip(*batch, strict=True)
            yield torch.stack(images), torch.stack(labels)


def _raising(read: Iterable[tuple[Tensor, Tensor] | KdbenchError]) -> Iterator[tuple[Tensor, Tensor]]:
    for sample in read:
        if isinstance(sample, KdbenchError):
            raise sample
        yield sample


def _check_labels(label: Tensor, classes: int, domain: str) -> None:
    wrong = label[(label != IGNORE) & (label >= classes)]
    if len(wrong):
        raise KdbenchError(
            f"domain '{domain}' has label {int(wrong.max())}, but the benchmark has {classes} classes: 0 to "
            f"{classes - 1}, and 255 for ignore. Check the data set's label conversion."
        )
