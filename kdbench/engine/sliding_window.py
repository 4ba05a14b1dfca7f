"""Per-image confusion counts of a segmentor on a domain: sliding windows, batched; nothing is averaged here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from kdbench.data.domainset import DomainSet
from kdbench.errors import KdbenchError
from kdbench.protocol import Evaluation
from kdbench.types import IGNORE, SegOutput


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one side; the last is moved back so that it ends with the image."""
    steps = max(0, -(-(length - window) // stride))
    return [min(step * stride, max(0, length - window)) for step in range(steps + 1)]


def class_scores(model: Callable[[Tensor], Any], image: Tensor, evaluation: Evaluation) -> Tensor:
    """Scores (B, K, H, W) of images (B, 3, H, W), averaged where windows overlap (as mmseg's slide inference)."""
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
    """Classes (B, h, w) at the label's size (h, w), from images (B, 3, H, W) in [0, 1]."""
    # max() and not argmax(), which is many times slower along the channels of such maps on a CPU.
    return _resized(class_scores(model, image, evaluation), size).max(1).indices


def confusion(prediction: Tensor, label: Tensor, classes: int) -> Tensor:
    """Counts (B, K, K) int64 of each image, rows ground truth, columns prediction; 255 in the label is left out."""
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
    mine: Sequence[int] | None = None,
) -> np.ndarray:
    """Counts (N, K, K) int64, one matrix an image, in the set's order.

    workers: processes that read images ahead. mine: which images are counted, all where it is None.
    """
    model.eval()
    counts = [torch.zeros(0, classes, classes, dtype=torch.int64, device=device)]
    for image, label in _batches(samples, evaluation.batch, workers, mine):
        _check_labels(label, classes, samples.domain)
        label = label.to(device).long()
        prediction = predict(model, image.to(device).float().div_(255), evaluation, (label.shape[-2], label.shape[-1]))
        counts.append(confusion(prediction, label, classes))
    return torch.cat(counts).cpu().numpy()


def batched(items: Sequence[tuple[int, int]], size: int) -> Iterator[Sequence[tuple[int, int]]]:
    """Consecutive pieces of at most a size (itertools has it from Python 3.12 on)."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _scores(output: SegOutput, size: tuple[int, int]) -> Tensor:
    return _resized(output.logits, size) if output.scores is None else output.scores(size)


def _resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(logits.shape[-2:]) == size:
        return logits.float()
    return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)


class _Reading(Dataset[tuple[Tensor, Tensor] | KdbenchError]):
    """A set's samples. An error is passed on: a worker that raises it would wrap it into its traceback."""

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
    samples: DomainSet, most: int, workers: int, mine: Sequence[int] | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Neighbours of one size, at most so many at a time."""
    held: list[tuple[Tensor, Tensor]] = []
    chosen = range(len(samples)) if mine is None else mine
    for read in DataLoader(_Reading(samples), batch_size=None, sampler=chosen, num_workers=workers):
        if isinstance(read, KdbenchError):
            raise read
        image, label = read
        if held and (len(held) == most or held[0][0].shape != image.shape or held[0][1].shape != label.shape):
            yield _stack(held)
            held = []
        held.append((image, label))
    if held:
        yield _stack(held)


def _stack(held: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*held, strict=True)
    return torch.stack(images), torch.stack(labels)


def _check_labels(label: Tensor, classes: int, domain: str) -> None:
    wrong = label[(label != IGNORE) & (label >= classes)]
    if len(wrong):
        raise KdbenchError(
            f"domain '{domain}' has label {int(wrong.max())}, but the benchmark has {classes} classes: 0 to "
            f"{classes - 1}, and 255 for ignore. Check the data set's label conversion."
        )
