"""Measures how far apart the synthetic domains lie: a small network trained on each, tested on all of its kind.

`write_distances(Path("docs/pictures"))` makes the matrices and pictures of docs/world.md in about an hour on one core.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from lightning.fabric import Fabric
from matplotlib.figure import Figure

from kdbench import synthetic
from kdbench.data.loading import training_batches
from kdbench.data.rendered import RenderedSet
from kdbench.engine.distributed import make_fabric
from kdbench.engine.evaluation import evaluate
from kdbench.engine.keys import key_of
from kdbench.engine.store import Store
from kdbench.engine.trainer import LossModule, TrainingJob, train
from kdbench.files import default_store, save_atomically, write_atomically
from kdbench.metrics import hits, miou
from kdbench.models.backbones import TOY_IMAGE_SIZE, build_toy
from kdbench.models.registry import MODELS
from kdbench.models.segmentor import SegmentationModel, build_decoder, seeded
from kdbench.progress import Progress, Silent
from kdbench.protocol import Augmentation, Evaluation, Recipe
from kdbench.types import Batch, Phase

REFERENCE = "resnet18"
"""The architecture of the reference network; it starts from random weights, so that no pretraining blurs a distance."""
IMAGES = {"train": 2000, "val": 96}
RECIPE = Recipe(
    steps=3000, batch=16, lr=2e-3, warmup=50, schedule="poly", clip=1.0, augmentation=Augmentation(scale=(0.6, 1.0))
)
WHOLE = Evaluation(window=TOY_IMAGE_SIZE, stride=TOY_IMAGE_SIZE, batch=16)


@dataclass(frozen=True)
class Distances:
    """Trains one reference network a domain, keeps it in the store, and tests it on every domain of the same kind."""

    store: Store
    fabric: Fabric
    progress: Progress

    def matrix(self, kind: str) -> pd.DataFrame:
        """Return mIoU in percent, rows: trained on, columns: tested on. kind: "street" or "aerial"."""
        names = [name for name, spec in synthetic.DOMAINS.items() if spec.kind == kind]
        rows = {}
        for name in names:
            model = self.trained(name)
            rows[name] = [self._score(model, other) for other in names]
        return pd.DataFrame.from_dict(rows, orient="index", columns=names)

    def trained(self, name: str) -> SegmentationModel:
        """Return the reference network of a domain, from the store where it is there."""
        samples, model = self.samples(name, "train"), _network(synthetic.DOMAINS[name].classes)
        recipe = RECIPE.model_dump(mode="json")
        key = key_of(self.fabric.device, "32-true", data=samples.identity, recipe=recipe, network=REFERENCE)
        folder = self.store.stage(f"distance-{name}-{key}")
        with folder.locked(lambda: self.progress.note(f"another run is at work on {name}; waiting")):
            if folder.summary is None:
                folder.finish(train(self.fabric, _job(name, model, samples, self.fabric.device), folder, self.progress))
        model.load_state_dict(folder.load_snapshot(0, "model"))
        placed: SegmentationModel = self.fabric.to_device(model)
        return placed

    def samples(self, name: str, split: str) -> RenderedSet:
        """Return the images of a domain."""
        return RenderedSet(name, name, split, IMAGES[split], TOY_IMAGE_SIZE, self.store.renders)

    def _score(self, model: SegmentationModel, name: str) -> float:
        classes = synthetic.DOMAINS[name].classes
        counts = evaluate(model, self.samples(name, "val"), classes, WHOLE, self.fabric.device)
        return miou(hits(counts.sum(0)))


def write_distances(output: Path, store: Path | None = None, device: str = "auto") -> None:
    """Write a matrix of mIoU (CSV) and its heat map (PNG) for each kind of domain into a folder."""
    measured = Distances(Store(store or default_store()), make_fabric(device, 1, "32-true"), Silent())
    for kind, world in synthetic.WORLDS.items():
        matrix = measured.matrix(kind).rename(index="{}-like".format, columns="{}-like".format)
        write_atomically(output / f"distances-{kind}.csv", matrix.round(1).to_csv().encode())
        title = f"mIoU (%) of a reference network, {kind} domains of {world}"
        save_atomically(output / f"distances-{kind}.png", heat_map(matrix, title).savefig)


def heat_map(matrix: pd.DataFrame, title: str) -> Figure:
    """Draw a matrix of percentages with its figures."""
    import seaborn

    figure = Figure(figsize=(1.9 + 0.85 * matrix.shape[1], 1.6 + 0.55 * len(matrix)), dpi=110, layout="constrained")
    axes = figure.subplots()
    seaborn.heatmap(matrix, annot=True, fmt=".0f", cmap="cividis", vmin=0, cbar=False, linewidths=1, ax=axes)
    axes.set(xlabel="tested on", ylabel="trained on")
    # Over the whole figure and in several lines where it must: a matrix of three is narrower than its title.
    figure.suptitle(title, fontsize=11, x=0.01, horizontalalignment="left", wrap=True)
    axes.tick_params(axis="x", rotation=35)
    axes.tick_params(axis="y", rotation=0)
    return figure


def _network(classes: int) -> SegmentationModel:
    encoder = seeded(lambda: build_toy(MODELS[REFERENCE]), "distances", "encoder")
    return SegmentationModel(
        encoder, seeded(lambda: build_decoder("light", encoder.spec, classes), "distances", "decoder")
    )


def _job(name: str, model: SegmentationModel, samples: RenderedSet, device: torch.device) -> TrainingJob:
    def loss(batch: Batch) -> dict[str, torch.Tensor]:
        assert batch.label is not None
        return model.task_loss(model(batch.image), batch.label)

    return TrainingJob(
        what=f"reference network on synthetic {name}-like",
        module=LossModule({"model": model}, loss),
        recipe=RECIPE,
        steps=RECIPE.steps,
        batches=lambda start: training_batches(
            [samples], RECIPE, RECIPE.steps, TOY_IMAGE_SIZE, 0, Phase.TASK, start, device=device
        ),
        randomness=("distances",),
        snapshots=(RECIPE.steps,),
        checkpoint_every=200,
    )
