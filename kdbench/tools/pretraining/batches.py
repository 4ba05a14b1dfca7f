"""Batches of the synthetic collections, with what the renderer knows about each picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdbench.data.loading import Sampler
from kdbench.data.rendered import RenderedSet
from kdbench.data.transforms import make_views
from kdbench.identity import seed_from
from kdbench.protocol import Recipe

PLANES = {"coarse": 1, "material": 1, "depth": 1, "albedo": 3}


@dataclass
class PretrainBatch:
    """One step's pictures.

    views: V random views of the same B pictures, (V, B, 3, H, W) in [0, 1]. Of the first view, by the renderer: coarse
    (B, H, W) int64, index into COARSE, 255 = ignore; material (B, H, W) int64, below MATERIALS; depth (B, 1, H, W) and
    albedo (B, 3, H, W) in [0, 1]. object (B,): index into CATEGORIES. progress: 0 to 1 through the training.
    """

    views: Tensor
    coarse: Tensor
    material: Tensor
    depth: Tensor
    albedo: Tensor
    object: Tensor
    progress: float


def pretrain_batches(
    samples: RenderedSet, recipe: Recipe, size: tuple[int, int], views: int, start: int = 0
) -> Iterator[PretrainBatch]:
    """Yield the batches from step `start` to the recipe's end; each is a function of its step alone."""
    random_views = make_views(recipe.augmentation, size)
    sampler = Sampler(len(samples), recipe, 0, "pretraining")
    for step in range(start, recipe.steps):
        chosen = [draw.sample for draw in sampler.step(step)]
        read = [_read(samples, index) for index in chosen]
        drawn = [
            random_views(read, [seed_from("pretraining", step, index, number) for index in chosen])
            for number in range(views)
        ]
        images, targets = torch.stack([images for images, _ in drawn]), drawn[0][1]
        coarse, material, depth, albedo = torch.split(targets, list(PLANES.values()), 1)
        yield PretrainBatch(
            views=images.float().div_(255),
            coarse=coarse[:, 0].long(),
            material=material[:, 0].long(),
            depth=depth.float().div_(255),
            albedo=albedo.float().div_(255),
            object=torch.from_numpy(np.asarray(samples.arrays["object"])[chosen].astype(np.int64)),
            progress=step / recipe.steps,
        )


def _read(samples: RenderedSet, index: int) -> tuple[Tensor, Tensor]:
    arrays = samples.arrays
    planes = [np.atleast_3d(arrays[name][index]) for name in PLANES]
    image = torch.from_numpy(arrays["image"][index].transpose(2, 0, 1).copy())
    return image, torch.from_numpy(np.concatenate(planes, 2).transpose(2, 0, 1).copy())
