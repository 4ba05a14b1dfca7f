"""Confusion counts against slow references: a loop over pixels, and one window at a time."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.engine.evaluation import class_scores, confusion, evaluate, predict, starts
from kdbench.errors import KdbenchError
from kdbench.protocol import Evaluation

CLASSES = 4
CPU = torch.device("cpu")


class Samples:
    """A domain set of given images and labels."""

    domain, data_source = "somewhere", "test"

    def __init__(self, samples: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.samples = samples
        self.identity = {}

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        return self.samples[index]


class Reader(nn.Module):
    """Reads the class off the red channel, which carries 10 times the label; keeps the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[int, ...]] = []
        self.modes: set[bool] = set()

    def forward(self, image: Tensor) -> SimpleNamespace:
        self.batches.append(tuple(image.shape))
        self.modes.add(self.training)
        classes = torch.arange(CLASSES).view(1, CLASSES, 1, 1)
        return SimpleNamespace(scores=None, logits=-(image[:, :1] * 255 / 10 - classes).abs())


class Context(nn.Module):
    """Logits at half the window's size that depend on the whole window, so that it matters which windows there are."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, CLASSES, 3, stride=2, padding=1)
        with torch.no_grad():
            self.mix.weight.copy_(torch.randn(CLASSES, 3, 3, 3, generator=torch.Generator().manual_seed(0)))

    def forward(self, image: Tensor) -> SimpleNamespace:
        return SimpleNamespace(scores=None, logits=self.mix(image) * (1 + image.mean((1, 2, 3), keepdim=True)) ** 3)


def painted(label: Tensor) -> tuple[Tensor, Tensor]:
    """An image that shows its label to Reader, with the label as a data set gives it."""
    shown = torch.where(label == 255, 0, label * 10)
    return shown.expand(3, *label.shape).to(torch.uint8), label.to(torch.uint8)


def random_label(height: int, width: int, seed: int, ignored: float = 0.2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, CLASSES, (height, width), generator=generator)
    label[torch.rand(height, width, generator=generator) < ignored] = 255
    return label


def counted(prediction: Tensor, label: Tensor, classes: int) -> np.ndarray:
    """Rows ground truth, columns prediction, pixel by pixel."""
    counts = np.zeros((len(label), classes, classes), dtype=np.int64)
    for b, y, x in np.ndindex(*label.shape):
        if label[b, y, x] != 255:
            counts[b, int(label[b, y, x]), int(prediction[b, y, x])] += 1
    return counts


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (16, 9)])
@pytest.mark.parametrize("classes", [2, 4, 19])
def test_confusion_equals_a_loop_over_pixels(size: tuple[int, int], classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    prediction, label = (torch.randint(0, classes, (3, *size), generator=generator) for _ in range(2))
    label[torch.rand(3, *size, generator=generator) < 0.3] = 255
    counts = confusion(prediction, label, classes)
    assert counts.dtype == torch.int64
    assert np.array_equal(counts.numpy(), counted(prediction, label, classes))


@pytest.mark.parametrize(
    ("length", "expected"),
    [(1024, [0, 341, 512]), (512, [0]), (100, [0]), (513, [0, 1]), (854, [0, 341, 342])],
)
def test_windows_start_every_stride_and_the_last_ends_with_the_image(length: int, expected: list[int]) -> None:
    assert starts(length, 512, 341) == expected


@pytest.mark.parametrize("window", [1, 3, 8])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_windows_cover_every_pixel_and_stay_inside(window: int, stride: int) -> None:
    for length in range(1, 30):
        places = starts(length, window, min(stride, window))
        assert {pixel for place in places for pixel in range(place, min(place + window, length))} == set(range(length))
        assert places == sorted(set(places))
        assert all(0 <= place <= max(0, length - window) for place in places)


def test_a_decoder_may_give_its_scores_at_the_windows_size() -> None:
    asked: list[tuple[int, int]] = []

    def scores(size: tuple[int, int]) -> Tensor:
        asked.append(size)
        return torch.ones(1, 2, *size)

    evaluation = Evaluation(batch=1, window=(8, 8), stride=(4, 4))
    found = class_scores(
        lambda image: SimpleNamespace(scores=scores, logits=None), torch.zeros(1, 3, 8, 12), evaluation
    )
    assert torch.equal(found, torch.ones(1, 2, 8, 12))
    assert asked == [(8, 8)] * 2


def scores_one_window_at_a_time(model: nn.Module, image: Tensor, evaluation: Evaluation) -> np.ndarray:
    """Windows by mmseg's rule, one image and one window at a time, averaged pixel by pixel in float64."""
    (wh, ww), (sh, sw), (height, width) = evaluation.window, evaluation.stride, image.shape[-2:]
    total, count = np.zeros((len(image), CLASSES, height, width)), np.zeros((height, width))
    for row in range(max(height - wh + sh - 1, 0) // sh + 1):
        for column in range(max(width - ww + sw - 1, 0) // sw + 1):
            bottom, right = min(row * sh + wh, height), min(column * sw + ww, width)
            top, left = max(bottom - wh, 0), max(right - ww, 0)
            count[top:bottom, left:right] += 1
            for index in range(len(image)):
                logits = model(image[index : index + 1, :, top:bottom, left:right]).logits.double()
                fitted = F.interpolate(logits, (bottom - top, right - left), mode="bilinear", align_corners=False)
                total[index, :, top:bottom, left:right] += fitted[0].numpy()
    return total / count


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3, 100])
@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [
        ((16, 32), (16, 16), (11, 11)),
        ((17, 29), (8, 12), (5, 9)),
        ((8, 8), (8, 8), (8, 8)),
        ((8, 30), (16, 16), (11, 11)),
        ((10, 12), (16, 16), (11, 11)),
    ],
)
def test_scores_equal_one_window_at_a_time(
    size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int], batch: int
) -> None:
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(4))
    model, evaluation = Context(), Evaluation(window=window, stride=stride, batch=batch)
    scores = class_scores(model, image, evaluation)
    assert scores.shape == (2, CLASSES, *size)
    assert np.allclose(scores.numpy(), scores_one_window_at_a_time(model, image, evaluation), atol=1e-4)


def linear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize maps (..., H, W) with pixels as areas, edges repeated, not antialiased, one axis after the other."""
    for axis, length in ((-2, size[0]), (-1, size[1])):
        image = np.moveaxis(image, axis, -1)
        places = np.clip((np.arange(length) + 0.5) * image.shape[-1] / length - 0.5, 0, image.shape[-1] - 1)
        low = np.floor(places).astype(int)
        share = places - low
        image = image[..., low] * (1 - share) + image[..., np.minimum(low + 1, image.shape[-1] - 1)] * share
        image = np.moveaxis(image, -1, axis)
    return image


@torch.no_grad()
@pytest.mark.parametrize("flip", [False, True])
def test_probabilities_are_averaged_over_scales_and_mirrors(flip: bool) -> None:
    image, size, scales = (
        torch.rand(2, 3, 16, 27, generator=torch.Generator().manual_seed(4)),
        (20, 30),
        (0.75, 1.0, 1.5),
    )
    model, windows = Context(), {"window": (12, 12), "stride": (8, 8), "batch": 4}
    total = np.zeros((2, CLASSES, *size))
    for scale in scales:
        # Of 16 x 27 pixels: 12 x 20, 16 x 27, 24 x 41 (halves upwards, as mmcv).
        scaled = linear(image.double().numpy(), {0.75: (12, 20), 1.0: (16, 27), 1.5: (24, 41)}[scale])
        for mirrored in (False, True)[: 1 + flip]:
            seen = torch.from_numpy(scaled[..., ::-1].copy() if mirrored else scaled).float()
            scores = linear(scores_one_window_at_a_time(model, seen, Evaluation(**windows)), size)
            powers = np.exp(scores[..., ::-1] if mirrored else scores)
            total += powers / powers.sum(1, keepdims=True)
    evaluation = Evaluation(**windows, scales=scales, flip=flip)
    assert np.array_equal(predict(model, image, evaluation, size).numpy(), total.argmax(1))
    # It matters here: without augmentation other classes are found.
    assert not np.array_equal(predict(model, image, Evaluation(**windows), size).numpy(), total.argmax(1))


@pytest.mark.parametrize("size", [(16, 32), (13, 21), (8, 8), (5, 40)])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_model_that_outputs_the_labels_gives_diagonal_matrices(size: tuple[int, int], batch: int) -> None:
    labels = [random_label(*size, seed) for seed in range(5)]
    evaluation = Evaluation(window=(8, 16), stride=(5, 11), batch=batch)
    samples = Samples([painted(label) for label in labels])
    counts = evaluate(Reader(), samples, CLASSES, evaluation, CPU)
    assert np.array_equal(counts, evaluate(Reader(), samples, CLASSES, evaluation, CPU, workers=2))
    assert counts.shape == (5, CLASSES, CLASSES)
    assert counts.dtype == np.int64
    for matrix, label in zip(counts, labels, strict=True):
        assert np.array_equal(matrix, np.diag(np.bincount(label[label != 255], minlength=CLASSES)))


def test_mixed_image_sizes_keep_the_order_and_each_image_its_counts() -> None:
    sizes = [(8, 16), (8, 16), (12, 16), (8, 16), (12, 16), (12, 16), (12, 16)]
    samples = []
    for index, size in enumerate(sizes):
        image, label = painted(random_label(*size, index))
        # The image shows another label than the one that counts, so that errors differ from image to image.
        samples.append((image.roll(index, -1), label))
    evaluation = Evaluation(window=(12, 16), stride=(12, 16), batch=2)
    model = Reader()
    counts = evaluate(model, Samples(samples), CLASSES, evaluation, CPU)
    expected = [counted(image[:1].long() // 10, label[None].long(), CLASSES)[0] for image, label in samples]
    assert np.array_equal(counts, np.stack(expected))
    # Neighbours of one size share a pass, two at most.
    assert [(shape[0], shape[2]) for shape in model.batches] == [(2, 8), (1, 12), (1, 8), (2, 12), (1, 12)]


def test_labels_of_other_sizes_than_their_images() -> None:
    sizes = [(16, 32), (16, 32), (24, 48), (8, 16)]
    samples = []
    for index, size in enumerate(sizes):
        coarse = random_label(2, 4, index, ignored=0)
        # Nearest in both: the same blocks in the image and, at its own size, in the label.
        image, _ = painted(coarse.repeat_interleave(4, 0).repeat_interleave(4, 1))
        label = coarse.repeat_interleave(size[0] // 2, 0).repeat_interleave(size[1] // 4, 1).to(torch.uint8)
        samples.append((image, label))
    evaluation = Evaluation(window=(8, 16), stride=(8, 16), batch=4)
    counts = evaluate(Reader(), Samples(samples), CLASSES, evaluation, CPU)
    for matrix, (image, label) in zip(counts, samples, strict=True):
        scores = Reader()(image[None].double() / 255).logits
        prediction = F.interpolate(scores, tuple(label.shape), mode="bilinear", align_corners=False).argmax(1)
        assert np.array_equal(matrix, counted(prediction, label[None].long(), CLASSES)[0])
        assert matrix.sum() == label.numel()


@pytest.mark.parametrize("wrong", [CLASSES, 200, 254])
def test_a_label_out_of_range_names_the_domain(wrong: int) -> None:
    image, label = painted(random_label(8, 8, 0))
    label[3, 4] = wrong
    evaluation = Evaluation(window=(8, 8), stride=(8, 8), batch=1)
    with pytest.raises(KdbenchError, match=f"domain 'somewhere' has label {wrong}, but the benchmark has 4 classes"):
        evaluate(Reader(), Samples([(image, label)]), CLASSES, evaluation, CPU)


def test_evaluation_is_in_eval_mode_without_gradients_and_in_batches_of_windows_up_to_the_limit() -> None:
    class Watching(Reader):
        def forward(self, image: Tensor) -> SimpleNamespace:
            assert not torch.is_grad_enabled()
            return super().forward(image)

    model, evaluation = Watching().train(), Evaluation(window=(4, 4), stride=(4, 4), batch=3)
    evaluate(model, Samples([painted(random_label(8, 16, seed)) for seed in range(3)]), CLASSES, evaluation, CPU)
    assert model.modes == {False}
    assert max(shape[0] for shape in model.batches) == 3
    assert sum(shape[0] for shape in model.batches) == 3 * 8
