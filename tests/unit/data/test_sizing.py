"""The sizes at which real images are seen."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from kdbench.data.sizing import Cover, Evaluated, Native
from kdbench.plugins import load_benchmark


@pytest.mark.parametrize(
    ("name", "target", "stored", "image", "label"),
    [
        ("g2c", "cityscapes", (1024, 2048), (512, 1024), (1024, 2048)),
        ("g2b", "bdd100k", (720, 1280), (720, 1280), (720, 1280)),
        ("c2a", "acdc-night", (1080, 1920), (540, 960), (1080, 1920)),
        ("p2r", "potsdam-irrg", (512, 512), (512, 512), (512, 512)),
        ("p2r", "vaihingen-irrg", (512, 512), (512, 512), (512, 512)),
        # 4:3 becomes 683 x 512; the label is half of the original.
        ("g2m", "mapillary", (2448, 3264), (512, 683), (1224, 1632)),
        # A portrait's long edge is bounded by 1024 too.
        ("g2m", "mapillary", (3264, 2448), (683, 512), (1632, 1224)),
        ("g2m", "mapillary", (1080, 1920), (512, 910), (540, 960)),
    ],
)
def test_targets_are_evaluated_at_the_papers_sizes(
    name: str, target: str, stored: tuple[int, int], image: tuple[int, int], label: tuple[int, int]
) -> None:
    (real,) = (domain.real for domain in load_benchmark(name).targets if domain.name == target)
    blank = torch.zeros(3, *stored, dtype=torch.uint8)
    seen = Evaluated(**asdict(real.under_protocol("paper").size))(blank, blank[0])
    assert (tuple(seen[0].shape[1:]), tuple(seen[1].shape)) == (image, label)


def test_halving_an_image_exactly_is_the_mean_of_four_pixels() -> None:
    """Bilinear without antialiasing, as mmcv's, at half size: between four pixels, a quarter of each."""
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 8, 16), dtype=np.uint8))
    small, _ = Evaluated(4, 8)(image, torch.zeros(8, 16, dtype=torch.uint8))
    mean = image.float().unfold(1, 2, 2).unfold(2, 2, 2).mean((3, 4))
    assert (small.float() - mean).abs().max() <= 0.5


def test_labels_are_resized_without_mixing() -> None:
    label = torch.tensor([[0, 255], [7, 18]], dtype=torch.uint8)
    image, grown = Native()(torch.zeros(3, 6, 8, dtype=torch.uint8), label)
    assert grown.unique().tolist() == [0, 7, 18, 255]
    assert torch.equal(grown[::3, ::4], label)
    assert tuple(grown.shape) == tuple(image.shape[1:])


def test_covering_keeps_the_ratio_and_agrees_with_pillow() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (36, 48, 3), dtype=np.uint8)
    image, label = Cover((32, 64))(torch.from_numpy(picture).permute(2, 0, 1), torch.zeros(36, 48, dtype=torch.uint8))
    assert tuple(image.shape) == (3, 48, 64)
    assert tuple(label.shape) == (36, 48)
    theirs = np.asarray(Image.fromarray(picture).resize((64, 48), Image.Resampling.BILINEAR), np.int16)
    assert np.abs(image.permute(1, 2, 0).numpy().astype(np.int16) - theirs).max() <= 1


@pytest.mark.parametrize("size", [(8, 16), (9, 15), (1081, 1921)])
def test_labels_are_halved_as_pillow_does(size: tuple[int, int]) -> None:
    label = np.random.default_rng(0).integers(0, 66, size, dtype=np.uint8)
    _, half = Evaluated(4, 8, halved=True)(torch.zeros(3, *size, dtype=torch.uint8), torch.from_numpy(label))
    theirs = Image.fromarray(label).resize((size[1] // 2, size[0] // 2), Image.Resampling.NEAREST)
    assert np.array_equal(half.numpy(), np.asarray(theirs))
