"""How far apart the built-in world's domains lie: a small network trained on each and tested on all of its kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from kdbench import synthetic
from kdbench.data.loading import training_batches
from kdbench.data.rendered import RenderedSet
from kdbench.engine.distributed import make_fabric
from kdbench.engine.evaluation import evaluate
from kdbench.engine.keys import key_of
from kdbench.engine.store import Store
from kdbench.engine.trainer import LossModule, TrainingJob, train
from kdbench.metrics import hits, miou
from kdbench.models.backbones import TOY_IMAGE_SIZE, build_toy
from kdbench.models.registry import MODELS
from kdbench.models.segmentor import Segmentor, build_decoder, seeded
from kdbench.progress import Progress
from kdbench.protocol import Augmentation, Evaluation, Recipe
from kdbench.types import Batch, Phase

REFERENCE = "resnet18"
"""The architecture of the reference network; it starts from random weights, so that no pretraining blurs a distance."""
IMAGES = {"train": 2000, "val": 96}
RECIPE = Recipe(
    steps=3000, batch=16, lr=2e-3, warmup=50, schedule="poly", clip=1.0, augmentation=Augmentation(scale=(0.6, 1.0))
)
WHOLE = Evaluation(window=TOY_IMAGE_SIZE, stride=TOY_IMAGE_SIZE, batch=16)


class Distances:
    """Trains one reference network a domain, keeps it in the store, and tests it on every domain of the same kind."""

    def __init__(self, store: Path, device: str, progress: Progress) -> None:
        self._store, self._progress = Store(store), progress
        self._fabric = make_fabric(device, 1, "32-true")

    def matrix(self, kind: str) -> pd.DataFrame:
        """mIoU in percent; rows: trained on, columns: tested on."""
        names = [name for name, spec in synthetic.DOMAINS.items() if spec.kind == kind]
        rows = {name: self._row(name, names) for name in names}
        return pd.DataFrame.from_dict(rows, orient="index", columns=names)

    def _row(self, trained_on: str, tested_on: Sequence[str]) -> list[float]:
        model = self._trained(trained_on)
        return [self._score(model, name) for name in tested_on]

    def _score(self, model: Segmentor, name: str) -> float:
        classes = synthetic.DOMAINS[name].classes
        counts = evaluate(model, self._samples(name, "val"), classes, WHOLE, self._fabric.device)
        return miou(hits(counts.sum(0)))

    def _trained(self, name: str) -> Segmentor:
        samples, model = self._samples(name, "train"), _network(synthetic.DOMAINS[name].classes)
        recipe = RECIPE.model_dump(mode="json")
        key = key_of(self._fabric.device, "32-true", data=samples.identity, recipe=recipe, network=REFERENCE)
        folder = self._store.stage(f"distance-{name}-{key}")
        with folder.locked(lambda: self._progress.note(f"another run is at work on {name}; waiting")):
            if folder.summary is None:
                folder.finish(train(self._fabric, _job(name, model, samples), folder, self._progress))
        model.load_state_dict(folder.load_snapshot(0, "model"))
        placed: Segmentor = self._fabric.to_device(model)
        return placed

    def _samples(self, name: str, split: str) -> RenderedSet:
        return RenderedSet(name, name, split, IMAGES[split], TOY_IMAGE_SIZE, self._store.renders)


def _network(classes: int) -> Segmentor:
    encoder = seeded(lambda: build_toy(MODELS[REFERENCE]), "distances", "encoder")
    return Segmentor(encoder, seeded(lambda: build_decoder("light", encoder.spec, classes), "distances", "decoder"))


def _job(name: str, model: Segmentor, samples: RenderedSet) -> TrainingJob:
    def loss(batch: Batch) -> dict[str, torch.Tensor]:
        assert batch.label is not None
        return model.task_loss(model(batch.image), batch.label)

    return TrainingJob(
        what=f"reference network on synthetic {name}-like",
        module=LossModule({"model": model}, loss),
        recipe=RECIPE,
        steps=RECIPE.steps,
        batches=lambda start: training_batches([samples], RECIPE, RECIPE.steps, TOY_IMAGE_SIZE, 0, Phase.TASK, start),
        randomness=("distances",),
        snapshots=(RECIPE.steps,),
        checkpoint_every=200,
    )
