"""The views of GKD's two stages, by hand-made pictures, and as functions of their seed."""

from __future__ import annotations

import colorsys
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as vision

from kdbench.data.transforms import DistillationView, SegmentationView, change_colours, make_views
from kdbench.protocol import Augmentation, DistillationViews, SegmentationViews

# ImageNet's mean, (123.675, 116.28, 103.53), to the level.
MEAN_COLOUR = torch.tensor([124, 116, 104]).view(3, 1)
PLAIN = {"crop": 8, "short_edges": (8,), "flip": 0.0}
STILL = {"brightness": 0.0, "contrast": (1.0, 1.0), "saturation": (1.0, 1.0), "hue": 0.0}


def places(height: int, width: int) -> tuple[Tensor, Tensor]:
    """An image whose red tells its row and whose green its column, and a label of 16 x 16 blocks."""
    rows, columns = torch.arange(height).view(-1, 1), torch.arange(width)
    red, green = (rows * 255 // height).expand(height, width), (columns * 255 // width).expand(height, width)
    label = (rows * 16 // height * 16 + columns * 16 // width).clamp(max=254)
    return torch.stack([red, green, torch.full_like(red, 9)]).to(torch.uint8), label.to(torch.uint8)


VIEWS = {
    "distillation": DistillationViews(crop=32),
    "segmentation": SegmentationViews(crop=32, short_edges=(40, 48)),
    "plain": Augmentation(),
}


@pytest.mark.parametrize("kind", VIEWS)
def test_a_view_is_a_function_of_its_sample_and_seed_and_leaves_every_generator_alone(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do the batch, in which images have different sizes, and the number of threads matter."""
    samples = [places(60, 90), places(64, 128), places(40, 40), places(60, 90)]
    views, seeds = make_views(VIEWS[kind], (32, 32)), [5, 6, 7, 8]

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a device's generator was seeded"))
    images, labels = views(samples, seeds)
    assert draw() == expected
    assert (images.shape, labels.shape) == ((4, 3, 32, 32), (4, 32, 32))
    assert images.dtype == labels.dtype == torch.uint8
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    alone = [views([sample], [seed]) for sample, seed in zip(samples, seeds, strict=True)]
    torch.set_num_threads(threads)
    assert torch.equal(images, torch.cat([image for image, _ in alone]))
    assert torch.equal(labels, torch.cat([label for _, label in alone]))
    others, _ = views(samples[:1] * 6, range(6, 12))
    assert any(not torch.equal(images[0], other) for other in others)


STRENGTHS = {"brightness": 0.3, "contrast": 0.4, "saturation": 0.5, "hue": 0.1}
OFF = dict.fromkeys(STRENGTHS, 0.0)


@pytest.mark.parametrize(
    "strengths", [{}, {"flip": 1.0}, *({name: value} for name, value in STRENGTHS.items()), {"grey": 0.5}]
)
def test_plain_views_are_torchvisions_under_the_same_seed(strengths: dict[str, float]) -> None:
    """Crops and flips to the bit, and one operation on colours at a time to its rounding to whole levels."""
    augmentation = Augmentation(**{"flip": 0.5, **OFF, **strengths})
    names = ("brightness", "contrast", "saturation", "hue")
    theirs = v2.Compose([
        v2.RandomResizedCrop((40, 80), augmentation.scale, ratio=(1.6, 2.5), antialias=True),
        v2.RandomHorizontalFlip(augmentation.flip),
        v2.ColorJitter(*(getattr(augmentation, name) for name in names)),
        v2.RandomGrayscale(augmentation.grey),
    ])  # fmt: skip
    generator, seeds = torch.Generator().manual_seed(0), range(8)
    samples = [
        (torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8), places(*size)[1])
        for size in ((64, 128), (50, 100)) * 4
    ]
    images, labels = make_views(augmentation, (40, 80))(samples, seeds)
    for (image, label), seed, ours, our_label in zip(samples, seeds, images, labels, strict=True):
        torch.manual_seed(seed)
        view, mask = theirs(tv_tensors.Image(image), tv_tensors.Mask(label))
        tolerance = 0 if set(strengths) <= {"flip"} else 3 if "hue" in strengths else 1
        assert (ours.int() - view.as_subclass(Tensor).int()).abs().max() <= tolerance
        assert torch.equal(our_label, mask.as_subclass(Tensor))


def test_colours_change_in_order_each_image_by_its_own_numbers() -> None:
    """As torchvision's functions on floats, one image after the other, to a level; grey comes last."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (6, 3, 24, 32), generator=generator, dtype=torch.uint8)
    images[0] = 77  # no hue
    numbers = [
        [0.5, 1.4, 0.3, -0.4],
        [1.5, 0.6, 1.8, 0.3],
        [1, 1, 1, 0],
        [1, 1, 1, 0.5],
        [1.2, 0, 2, -0.1],
        [1, 2, 0, 0],
    ]
    for colour in (1.0, 0.0):
        ours = change_colours(images, torch.tensor([[*row, colour] for row in numbers]))
        for image, row, view in zip(images, numbers, ours, strict=True):
            expected = vision.to_dtype(image, torch.float32, scale=True)
            operations = (vision.adjust_brightness, vision.adjust_contrast, vision.adjust_saturation, vision.adjust_hue)
            for change, factor in zip(operations, row, strict=True):
                expected = change(expected, factor)
            if not colour:
                expected = vision.rgb_to_grayscale(expected, 3)
            assert (view - 255 * expected).abs().max() <= 0.501
    assert torch.equal(change_colours(images[2:3], torch.tensor([[1.0, 1, 1, 0, 1]])), images[2:3])


def test_distillation_views_crop_flip_and_erase_and_withhold_labels() -> None:
    image, label = places(64, 64)

    def whole(**more: float) -> DistillationView:
        numbers = {"scale": (1, 1), "ratio": (1, 1), "flip": 0, "rand_augment": "rand-m0-n0", "erase": 0, **more}
        return DistillationView(DistillationViews(crop=64, **numbers))

    view, hidden = whole()(image, label, 0)
    assert (view.int() - image.int()).abs().max() <= 1
    assert hidden.unique().tolist() == [255]
    assert (whole(flip=1)(image, label, 0)[0].int() - image.flip(-1).int()).abs().max() <= 1
    changed = (whole(erase=1)(image, label, 0)[0].int() - image.int()).abs().amax(0) > 1
    rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
    box = changed[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    # One rectangle of noise, of timm's share of the area (2 to 33 %).
    assert box.float().mean() > 0.9
    assert 0.01 < changed.float().mean() < 0.34


def test_every_operation_of_the_policy_draws_at_its_strongest() -> None:
    """Magnitudes spread up to 10, where no bit of a posterised picture is left: black, as Pillow drew it before 13."""
    image, _ = places(64, 64)
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    transforms = DistillationView(DistillationViews(crop=64))._transform.transforms
    (policy,) = (each for each in transforms if hasattr(each, "ops"))
    assert len(policy.ops) == 15
    for operation in policy.ops:
        operation.prob, operation.magnitude, operation.magnitude_std = 1.0, 10, 0
        assert operation(picture).size == picture.size, operation.name
    (posterize,) = (each for each in policy.ops if each.name == "PosterizeIncreasing")
    assert posterize(picture).getextrema() == ((0, 0),) * 3
    posterize.magnitude = 5
    assert np.array_equal(np.asarray(posterize(picture)), np.asarray(picture) & 0b11000000)


GEOMETRY = {
    "segmentation": SegmentationViews(crop=48, short_edges=(32, 64, 96), **STILL),
    "plain": Augmentation(scale=(0.3, 0.9), brightness=0.0, contrast=0.0, saturation=0.0),
}


@pytest.mark.parametrize("kind", GEOMETRY)
@pytest.mark.parametrize("seed", range(6))
def test_image_and_label_stay_in_step(kind: str, seed: int) -> None:
    (view,), (mask,) = make_views(GEOMETRY[kind], (48, 48))([places(64, 128)], [seed])
    there = mask != 255
    for channel, block in ((0, mask // 16), (1, mask % 16)):
        assert (view[channel].float() * 16 / 255 - (block + 0.5)).abs()[there].max() <= 1.1


def test_scales_are_drawn_from_the_list_and_bounded_by_the_long_edge() -> None:
    """With a crop larger than every scale, the area that is not padded is the scaled image."""
    image, label = places(64, 128)
    views = SegmentationViews(crop=400, short_edges=(32, 64, 96), long_edge=150, **STILL)
    sizes = set()
    for seed in range(40):
        view, mask = SegmentationView(views)(image, label, seed)
        there = mask != 255
        sizes.add((int(there.any(1).sum()), int(there.any(0).sum())))
        assert (view[:, ~there] == MEAN_COLOUR).all()
    assert sizes == {(32, 64), (64, 128), (75, 150)}


def test_padding_lies_at_the_right_and_the_bottom_and_no_photometry_reaches_it() -> None:
    """A picture of 3 x 4 in a crop of 6: turned around, its first column is last, and the frame is what it was."""
    image = torch.arange(36, dtype=torch.uint8).reshape(3, 3, 4) * 7
    label = torch.arange(12, dtype=torch.uint8).reshape(3, 4)
    fixed = {"crop": 6, "short_edges": (3,), "flip": 1.0}
    view, mask = SegmentationView(SegmentationViews(**fixed, **STILL))(image, label, 0)
    frame = torch.ones(6, 6, dtype=torch.bool)
    frame[:3, :4] = False
    assert view[:, :3, :4].tolist() == [[row[::-1] for row in plane] for plane in image.tolist()]
    assert mask[:3, :4].tolist() == [[3, 2, 1, 0], [7, 6, 5, 4], [11, 10, 9, 8]]
    assert (view[:, frame] == MEAN_COLOUR).all()
    assert (mask[frame] == 255).all()
    changed = 0
    for seed in range(20):
        other, _ = SegmentationView(SegmentationViews(**fixed))(image, label, seed)
        changed += not torch.equal(other[:, :3, :4], view[:, :3, :4])
        assert (other[:, frame] == MEAN_COLOUR).all()
    assert changed > 10


def test_a_crop_of_nearly_one_class_is_drawn_again() -> None:
    """One class but for a spot of 28 x 28, of which a crop of 48 needs three quarters to hold a quarter of another."""
    label = torch.zeros(64, 256, dtype=torch.uint8)
    label[18:46, 200:228] = 1
    image = torch.zeros(3, 64, 256, dtype=torch.uint8)
    fixed = {"crop": 48, "short_edges": (64,), "flip": 0.0, **STILL}
    found = []
    for views in (SegmentationViews(**fixed), SegmentationViews(largest_class=1.01, **fixed)):
        drawn = [SegmentationView(views)(image, label, seed)[1] for seed in range(60)]
        found.append(sum(float((mask == 1).float().mean()) > 0.25 for mask in drawn))
    assert found[0] > found[1] + 10
    assert found[0] > 40


def test_photometry_by_hand() -> None:
    """Each of the four with both coins: what comes out is one of the sixteen products, computed by colorsys."""
    colour = (120, 60, 200)
    image = torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 8).contiguous()
    label = torch.zeros(8, 8, dtype=torch.uint8)
    halved = {**STILL, "contrast": (0.5, 0.5), "saturation": (0.5, 0.5)}
    view = SegmentationView(SegmentationViews(**PLAIN, **halved))
    seen = {tuple(view(image, label, seed)[0][:, 0, 0].tolist()) for seed in range(60)}
    expected = []
    for contrast in (1.0, 0.5):
        for saturation in (1.0, 0.5):
            hue, strength, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in colour))
            turned = colorsys.hsv_to_rgb(hue, strength * saturation, value * contrast)
            expected.append(tuple(255 * channel for channel in turned))
    assert len(seen) >= 4
    for found in seen:
        assert min(max(abs(a - b) for a, b in zip(found, wanted, strict=True)) for wanted in expected) <= 3


def test_brightness_and_hue_stay_within_their_limits() -> None:
    image = torch.tensor([120, 60, 200], dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 8).contiguous()
    label = torch.zeros(8, 8, dtype=torch.uint8)
    bright = SegmentationView(SegmentationViews(**PLAIN, **{**STILL, "brightness": 32.0}))
    shifts = torch.stack([bright(image, label, seed)[0][:, 0, 0].int() - image[:, 0, 0].int() for seed in range(80)])
    assert (shifts == shifts[:, :1]).all()
    assert shifts.min() >= -32
    assert shifts.max() <= 32
    assert shifts.max() > 20
    assert shifts.min() < -20
    assert 20 < int((shifts[:, 0] == 0).sum()) < 60
    turned = SegmentationView(SegmentationViews(**PLAIN, **{**STILL, "hue": 36.0}))
    start = colorsys.rgb_to_hsv(120 / 255, 60 / 255, 200 / 255)[0]
    hues = [
        colorsys.rgb_to_hsv(*(turned(image, label, seed)[0][:, 0, 0] / 255).tolist())[0] - start for seed in range(80)
    ]
    assert max(map(abs, hues)) <= 38 / 360
    assert max(map(abs, hues)) > 25 / 360


def test_brightness_is_clipped_before_contrast() -> None:
    """As mmsegmentation does: 250 made brighter is 255 at most, and half of that is 127."""
    image = torch.full((3, 8, 8), 250, dtype=torch.uint8)
    view = SegmentationView(SegmentationViews(**PLAIN, **{**STILL, "brightness": 32.0, "contrast": (0.5, 0.5)}))
    levels = [int(view(image, torch.zeros(8, 8, dtype=torch.uint8), seed)[0][0, 0, 0]) for seed in range(80)]
    halved = [level for level in levels if level < 200]
    assert len(halved) > 10
    assert max(halved) <= 128
