"""Random views of training samples: image and label cut alike, each view a function of its seed."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as vision

from kdbench.data.sizing import nearest
from kdbench.protocol import Augmentation, DistillationViews, SegmentationViews
from kdbench.types import IGNORE

MEAN_COLOUR = [round(255 * mean) for mean in IMAGENET_DEFAULT_MEAN]
REDRAWN = 10
"""How often a crop is drawn again at most."""


Sample = tuple[Tensor, Tensor]
"""Image (3, h, w) and label (..., h', w'), uint8."""
Views = Callable[[Sequence[Sample], Sequence[int]], Sample]
"""Brings samples of any sizes to one and stacks them, (B, 3, H, W) and (B, ..., H, W), uint8. A view is a function of
its sample and its seed, whatever stands beside it."""


def make_views(augmentation: Augmentation | DistillationViews | SegmentationViews, size: tuple[int, int]) -> Views:
    """Return the views that a recipe asks for; size is the protocol's, for recipes that name none."""
    match augmentation:
        case DistillationViews():
            return partial(_one_by_one, DistillationView(augmentation))
        case SegmentationViews():
            return partial(_one_by_one, SegmentationView(augmentation))
        case Augmentation():
            return RandomViews(augmentation, size)


def _one_by_one(
    view: Callable[[Tensor, Tensor, int], Sample], samples: Sequence[Sample], seeds: Sequence[int]
) -> Sample:
    return _stacked([view(*sample, seed) for sample, seed in zip(samples, seeds, strict=True)])


def _stacked(samples: Sequence[Sample]) -> Sample:
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.stack(labels)


class RandomViews:
    """Crops, flips and jitters colours with torchvision's draws, crops and formulas.

    The colours of a whole batch change at once, so the four operations of the jitter have one order in all images, and
    levels are rounded after the last of them.
    """

    def __init__(self, augmentation: Augmentation, size: tuple[int, int]) -> None:
        aspect = size[1] / size[0]
        self._size, self._flip, self._grey = list(size), augmentation.flip, augmentation.grey
        self._crop = v2.RandomResizedCrop(size, augmentation.scale, ratio=(0.8 * aspect, 1.25 * aspect))
        self._jitter = v2.ColorJitter(
            augmentation.brightness, augmentation.contrast, augmentation.saturation, augmentation.hue
        )

    def __call__(self, samples: Sequence[Sample], seeds: Sequence[int]) -> Sample:
        views, changes = [], []
        for (image, label), seed in zip(samples, seeds, strict=True):
            with torch.random.fork_rng(devices=[]):
                _seed_cpu(seed)
                box = self._crop.make_params([image])
                flipped = bool(torch.rand(1) < self._flip)
                jitter = self._jitter.make_params([image])
                grey = bool(torch.rand(1) < self._grey)
            views.append(self._cut(image, label, box, flipped))
            drawn = {name: jitter[f"{name}_factor"] for name in NEUTRAL}
            # What is not asked for is not drawn.
            changes.append([NEUTRAL[name] if each is None else each for name, each in drawn.items()] + [1.0 - grey])
        images, labels = _stacked(views)
        return change_colours(images, torch.tensor(changes)), labels

    def _cut(self, image: Tensor, label: Tensor, box: dict[str, int], flipped: bool) -> Sample:
        mask = tv_tensors.Mask(nearest(label, image.shape[-2:]))
        view = vision.resized_crop(image, **box, size=self._size, antialias=True)
        mask = vision.resized_crop(mask, **box, size=self._size).as_subclass(Tensor)
        return (view.flip(-1), mask.flip(-1)) if flipped else (view, mask)


NEUTRAL = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}


def change_colours(images: Tensor, changes: Tensor) -> Tensor:
    """Change the colours of images (B, 3, H, W), uint8, as torchvision's functions of these names do, in this order.

    changes: (B, 5), factors on brightness, contrast and saturation, a shift of the hue in circles, and a last factor on
    the saturation: 0 makes an image grey.
    """
    brightness, contrast, saturation, hue, colour = changes.view(-1, 5, 1, 1, 1).unbind(1)
    # In place where that is plain: new memory costs more time than the arithmetic.
    levels = images.float().div_(255).mul_(brightness).clamp_(0, 1)
    # In double precision: the order of summation, which the batch and the threads decide, is not to be seen.
    mean = vision.rgb_to_grayscale(levels).mean((1, 2, 3), keepdim=True, dtype=torch.float64).float()
    _blend(levels, mean, contrast)
    _blend(levels, vision.rgb_to_grayscale(levels), saturation)
    if hue.any():
        levels = _shift_hue(levels, hue)
    _blend(levels, vision.rgb_to_grayscale(levels), colour)
    return levels.mul_(255).round_().to(torch.uint8)


def _blend(levels: Tensor, other: Tensor, share: Tensor) -> None:
    levels.mul_(share).add_(other * (1 - share)).clamp_(0, 1)


def _shift_hue(levels: Tensor, shift: Tensor) -> Tensor:
    """Shift the hue of images (B, 3, H, W) in [0, 1], whatever the value V and the chroma C.

    Channel n of (R, G, B) is V - C + C clamp(|(H + (0, 4, 2)_n) mod 6 - 3| - 1, 0, 1), H the hue in sixths of a circle.
    """
    low, high = levels.amin(1, keepdim=True), levels.amax(1, keepdim=True)
    red, green, blue = levels.chunk(3, 1)
    chroma = high - low
    scale = chroma.clamp(min=1e-6)
    hue = torch.where(
        high == red, (green - blue) / scale,
        torch.where(high == green, (blue - red) / scale + 2, (red - green) / scale + 4),
    )  # fmt: skip
    sixths = hue + (6 * shift + torch.tensor([0.0, 4.0, 2.0]).view(3, 1, 1))
    return sixths.remainder_(6).sub_(3).abs_().sub_(1).clamp_(0, 1).mul_(chroma).add_(low)


class DistillationView:
    """timm's training view with the numbers of GKD's first stage. Labels do not follow: they are withheld.

    Erased pixels are noise around ImageNet's mean, clipped to the range of an image.
    """

    def __init__(self, views: DistillationViews) -> None:
        self._size = (views.crop, views.crop)
        self._transform = create_transform(
            (3, *self._size),
            is_training=True,
            scale=views.scale,
            ratio=views.ratio,
            hflip=views.flip,
            auto_augment=views.rand_augment,
            interpolation="bicubic",
            re_prob=views.erase,
            re_mode="pixel",
            re_count=1,
        )
        for policy in self._transform.transforms:
            for operation in getattr(policy, "ops", ()):
                if operation.name.startswith("Posterize"):
                    operation.aug_fn = _posterize
        self._mean = torch.tensor(IMAGENET_DEFAULT_MEAN).view(3, 1, 1)
        self._std = torch.tensor(IMAGENET_DEFAULT_STD).view(3, 1, 1)

    def __call__(self, image: Tensor, label: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Return the view; its label is ignored everywhere."""
        with _seeded(seed):
            view = self._transform(Image.fromarray(image.permute(1, 2, 0).numpy()))
        levels = (view * self._std + self._mean).clamp(0, 1).mul(255).round().to(torch.uint8)
        return levels, torch.full(self._size, IGNORE, dtype=torch.uint8)


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep the upper bits of each channel; none leave black, which Pillow refuses to draw from version 13 on."""
    return ImageOps.posterize(image, bits) if bits else Image.new(image.mode, image.size)


class SegmentationView:
    """mmsegmentation's pipeline with the numbers of GKD's second stage: scale, crop, flip, photometry, padding."""

    def __init__(self, views: SegmentationViews) -> None:
        self._views = views

    def __call__(self, image: Tensor, label: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        rng = torch.Generator().manual_seed(seed)
        label = nearest(label, image.shape[-2:])
        image, label = self._scaled(image, label, rng)
        image, label = self._cropped(image, label, rng)
        if _chance(rng, self._views.flip):
            image, label = image.flip(-1), label.flip(-1)
        return _padded(self._photometry(image, rng), label, self._views.crop)

    def _scaled(self, image: Tensor, label: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        height, width = image.shape[-2:]
        edges = self._views.short_edges
        edge = edges[int(torch.randint(len(edges), (), generator=rng))]
        factor = min(edge / min(height, width), self._views.long_edge / max(height, width))
        size = [int(side * factor + 0.5) for side in (height, width)]
        return vision.resize(image, size, antialias=False), nearest(label, size)

    def _cropped(self, image: Tensor, label: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        crop = self._views.crop
        for _ in range(1 + REDRAWN):
            top, left = (int(torch.randint(max(0, side - crop) + 1, (), generator=rng)) for side in label.shape)
            chosen = label[top : top + crop, left : left + crop]
            counts = torch.bincount(chosen[chosen != IGNORE], minlength=1)
            if (counts > 0).sum() > 1 and counts.max() < self._views.largest_class * counts.sum():
                break
        return image[:, top : top + crop, left : left + crop], chosen

    def _photometry(self, image: Tensor, rng: torch.Generator) -> Tensor:
        """Change, each with a chance of one half: brightness, contrast before or after the rest, saturation, hue."""
        views, levels = self._views, image.float()
        if _chance(rng):
            levels = (levels + _between(rng, -views.brightness, views.brightness)).clamp(0, 255)
        late, contrast = _chance(rng), _between(rng, *views.contrast) if _chance(rng) else 1.0
        levels = (levels * (1.0 if late else contrast)).clamp(0, 255)
        saturation = _between(rng, *views.saturation) if _chance(rng) else 1.0
        hue = _between(rng, -views.hue, views.hue) if _chance(rng) else 0.0
        if saturation != 1.0 or hue != 0.0:
            levels = _in_hsv(levels, saturation, hue)
        return (levels * (contrast if late else 1.0)).clamp(0, 255).round().to(torch.uint8)


def _padded(image: Tensor, label: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Fill up to side x side at the right and the bottom: with ImageNet's mean colour (0 for a network), and IGNORE."""
    frame = [0, 0, side - image.shape[-1], side - image.shape[-2]]
    return vision.pad(image, frame, fill=MEAN_COLOUR), vision.pad(label[None], frame, fill=IGNORE)[0]


def _in_hsv(levels: Tensor, saturation: float, hue: float) -> Tensor:
    """Multiply saturation by a factor and turn the hue by degrees; levels (3, H, W) in [0, 255]."""
    picture = Image.fromarray(levels.round().to(torch.uint8).permute(1, 2, 0).numpy()).convert("HSV")
    planes = np.array(picture, dtype=np.float32)
    planes[..., 0] = (planes[..., 0] + hue * 256 / 360) % 256
    planes[..., 1] = np.clip(planes[..., 1] * saturation, 0, 255)
    turned = Image.fromarray(planes.astype(np.uint8), mode="HSV").convert("RGB")
    return torch.from_numpy(np.array(turned)).permute(2, 0, 1).float()


def _chance(rng: torch.Generator, chance: float = 0.5) -> bool:
    return float(torch.rand((), generator=rng)) < chance


def _between(rng: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=rng))


def _seed_cpu(seed: int) -> None:
    # torch.manual_seed would reseed a GPU's generator too, which the trained stage draws from; and where there is no
    # GPU it notes a stack trace for each kind of device, a third of a view's time.
    torch.default_generator.manual_seed(seed)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the three global generators that timm draws from, and put them back."""
    kept, numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            _seed_cpu(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(kept)
        np.random.set_state(numbers)
