"""Pretraining of the mini zoo's stand-ins, on first use, kept in the store.

Foundation stand-ins learn dense targets that the renderer knows (coarse groups of materials, depth) on the widest
collection of styles, so they are not label-free; local ones learn to name the main object of the proxy's pictures.
Neither ever sees a benchmark's classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import Tensor, nn

from kdbench.data.loading import Order
from kdbench.data.rendered import RenderedSet
from kdbench.data.synthetic import COARSE, OBJECTS
from kdbench.data.transforms import RandomView
from kdbench.data.worlds import Worlds
from kdbench.engine.keys import PRETRAINING, environment, harness_code
from kdbench.engine.parts import Origin
from kdbench.engine.progress import Progress
from kdbench.engine.store import Store
from kdbench.engine.trainer import Job, LossModule, train
from kdbench.identity import digest, seed_from
from kdbench.models.backbones import build_stand_in
from kdbench.models.segmentor import seeded
from kdbench.models.zoo import Role
from kdbench.protocol import Protocol, Recipe
from kdbench.types import IGNORE

COLLECTION = {"foundation": "web", "local": "proxy"}
DETAIL = 4
"""Predictions a token and side: dense targets finer than the grid make tokens carry what lies inside their patch."""


@dataclass
class Lesson:
    """A batch: image (B, 3, H, W); coarse (B, H, W), 255 = ignore; depth (B, H, W) in [0, 1]; object (B,)."""

    image: Tensor
    coarse: Tensor
    depth: Tensor
    object: Tensor


class DenseHead(nn.Module):
    """Coarse groups and depth from the final map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.predict = nn.Conv2d(channels, (len(COARSE) + 1) * DETAIL**2, 1)

    def loss(self, final: Tensor, lesson: Lesson) -> dict[str, Tensor]:
        """Cross-entropy of the groups and mean absolute error of the depth, at DETAIL times the grid."""
        fine = F.pixel_shuffle(self.predict(final), DETAIL)
        size = fine.shape[-2:]
        coarse = F.interpolate(lesson.coarse[:, None].float(), size=size, mode="nearest")[:, 0].long()
        depth = F.interpolate(lesson.depth[:, None], size=size, mode="nearest")[:, 0]
        return {
            "coarse": F.cross_entropy(fine[:, :-1], coarse, ignore_index=IGNORE),
            "depth": F.l1_loss(fine[:, -1], depth),
        }


class ObjectHead(nn.Module):
    """The main object from the pooled feature."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.predict = nn.Linear(channels, OBJECTS)

    def loss(self, pooled: Tensor, lesson: Lesson) -> dict[str, Tensor]:
        """Cross-entropy."""
        return {"object": F.cross_entropy(self.predict(pooled), lesson.object)}


@dataclass(frozen=True)
class Pretraining:
    """How a protocol's stand-ins come by their weights."""

    protocol: Protocol
    worlds: Worlds
    store: Store
    fabric: Fabric
    progress: Progress

    def origin(self, role: Role) -> Origin:
        """The stand-in's pretrained weights: their key now; their content, trained where missing, on use."""
        key = digest([
            role.name, role.family, role.kind, role.stand_in, self._samples(role).identity,
            self._recipe(role).model_dump(mode="json"), harness_code(PRETRAINING),
            environment(self.fabric.device, self.protocol.precision),
        ])  # fmt: skip
        return Origin(f"pretrained-{key}", lambda: self._weights(role, key))

    def _weights(self, role: Role, key: str) -> dict[str, Tensor]:
        folder = self.store.stage(f"pretrained-{key}")
        if not folder.done:
            waiting = f"waiting for another run that is pretraining {role.name}'s stand-in"
            with folder.locked(lambda: self.progress.note(waiting)):
                if not folder.done:
                    folder.finish(train(self.fabric, self._job(role), folder, self.progress))
        return folder.load_point(0, "encoder")

    def _job(self, role: Role) -> Job:
        encoder = seeded(lambda: build_stand_in(role, self.protocol.image_size), "pretraining", role.name)
        dense = role.family == "foundation"
        width = encoder.spec.final_channels
        head = seeded(lambda: DenseHead(width) if dense else ObjectHead(width), "pretraining", "head")
        recipe = self._recipe(role)

        def loss(lesson: Lesson) -> dict[str, Tensor]:
            features = encoder(lesson.image)
            return head.loss(features.final if dense else features.pooled, lesson)

        return Job(
            what=f"pretraining mini:{role.name} (once)",
            module=LossModule({"encoder": encoder, "head": head}, loss),
            recipe=recipe,
            steps=recipe.steps,
            batches=lambda start: self._lessons(role, recipe, start),
            randomness=("pretraining",),
            keep=(1.0,),
            checkpoint_every=self.protocol.checkpoint_every,
        )

    def _recipe(self, role: Role) -> Recipe:
        return self.protocol.pretraining[role.family]

    def _samples(self, role: Role) -> RenderedSet:
        return self.worlds.collection(COLLECTION[role.family], self.protocol.proxy_images)

    def _lessons(self, role: Role, recipe: Recipe, start: int) -> Iterator[Lesson]:
        arrays = self._samples(role).arrays
        view = RandomView(recipe.augmentation, self.protocol.image_size)
        order = Order(len(arrays["image"]), recipe.batch, 0, "pretraining")
        for step in range(start, recipe.steps):
            chosen = [draw.sample for draw in order.step(step)]
            pairs = []
            for sample in chosen:
                image = torch.from_numpy(arrays["image"][sample].transpose(2, 0, 1).copy())
                targets = torch.stack([torch.from_numpy(arrays[name][sample].copy()) for name in ("coarse", "depth")])
                pairs.append(view(image, targets, seed_from("pretraining", step, sample)))
            images, targets = (torch.stack(group) for group in zip(*pairs, strict=True))
            yield Lesson(
                image=images.float().div_(255),
                coarse=targets[:, 0].long(),
                depth=targets[:, 1].float().div_(255),
                object=torch.from_numpy(arrays["object"][chosen].astype("int64")),
            )
