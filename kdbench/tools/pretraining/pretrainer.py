"""Pretrains toy models with the engine's loop; resumable, kept in the store, written with their cards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric
from safetensors.torch import save
from torch import Tensor

from kdbench.data.rendered import RenderedSet
from kdbench.engine.distributed import make_fabric
from kdbench.engine.environment import versions
from kdbench.engine.keys import key_of
from kdbench.engine.states import to_half
from kdbench.engine.store import StageFolder, Store
from kdbench.engine.trainer import LossModule, TrainingJob, train
from kdbench.errors import KdbenchError
from kdbench.files import write_atomically
from kdbench.models.backbones import TOY_IMAGE_SIZE, Encoder, build_toy
from kdbench.models.registry import ModelSpec
from kdbench.models.segmentor import seeded
from kdbench.models.toy import SHIPPED, Card, ToyModel, repair
from kdbench.progress import Progress
from kdbench.tools.pretraining.batches import pretrain_batches
from kdbench.tools.pretraining.configs import IMAGES, PretrainConfig, find_config
from kdbench.tools.pretraining.objectives import (
    FeatureModelling,
    InverseRendering,
    Objective,
    Objects,
    SelfDistillation,
)

CHECKPOINT_EVERY = 100
PRECISION = "bf16-mixed"
"""Products in bfloat16 take three quarters of the time, on processors that have it too."""


@dataclass(frozen=True)
class Pretrainer:
    """Pretrains toy models. folder: where finished ones are written, and teachers are read before the set's own."""

    store: Store
    folder: Path
    fabric: Fabric
    progress: Progress

    def train(self, config: PretrainConfig, command: str = "") -> Card:
        """Train a toy model to the end, from its checkpoint where there is one, and write it with its card."""
        samples, stage = self._samples(config), self._stage(config)
        with stage.locked(lambda: self.progress.note(f"another run is pretraining {config.name}; waiting")):
            objective = self._objective(config)
            summary = stage.summary
            if summary is None:
                if not samples.drawn:
                    self.progress.note(f"drawing {len(samples)} pictures of the collection {config.collection}, once")
                summary = train(self.fabric, self._job(config, objective, samples), stage, self.progress)
                stage.finish(summary)
            state = stage.load_snapshot(0, objective.result)
        return write_toy_model(
            self.folder,
            config.spec,
            state,
            data_source=samples.data_source,
            collection=config.collection,
            images=len(samples),
            objective=config.objective,
            teacher=config.teacher,
            recipe=config.recipe.model_dump(mode="json"),
            losses=summary.losses,
            seconds=round(summary.seconds, 1),
            made_with=versions(self.fabric.device, PRECISION),
            command=command or f"kdbench models train {config.name}",
        )

    def teacher(self, name: str) -> ToyModel:
        """Return a teacher from the folder at work, or else the shipped one."""
        there = (self.folder / f"{name}.json").is_file()
        return ToyModel(find_config(name).spec, self.folder if there else SHIPPED)

    def _samples(self, config: PretrainConfig) -> RenderedSet:
        name = config.collection
        return RenderedSet(name, name, "train", IMAGES[name], TOY_IMAGE_SIZE, self.store.renders)

    def _stage(self, config: PretrainConfig) -> StageFolder:
        spec = config.spec
        key = key_of(
            self.fabric.device,
            PRECISION,
            network=[spec.name, spec.kind, spec.toy],
            objective=config.objective,
            recipe=config.recipe.model_dump(mode="json"),
            teacher=self.teacher(config.teacher).card.sha256 if config.teacher else None,
            data=self._samples(config).identity,
        )
        return self.store.stage(f"pretrained-{config.name}-{key}")

    def _job(self, config: PretrainConfig, objective: Objective, samples: RenderedSet) -> TrainingJob:
        return TrainingJob(
            what=f"pretraining mini:{config.name} ({config.objective})",
            module=LossModule(dict(objective.named_children()), objective.loss),
            recipe=config.recipe,
            steps=config.recipe.steps,
            batches=lambda start: map(
                self.fabric.to_device,
                pretrain_batches(samples, config.recipe, TOY_IMAGE_SIZE, objective.views, start),
            ),
            randomness=("pretraining",),
            snapshots=(config.recipe.steps,),
            checkpoint_every=CHECKPOINT_EVERY,
        )

    def _objective(self, config: PretrainConfig) -> Objective:
        encoder = seeded(lambda: build_toy(config.spec), "pretraining", config.name)
        return seeded(lambda: self._heads(config, encoder), "pretraining", "heads")

    def _heads(self, config: PretrainConfig, encoder: Encoder) -> Objective:
        match config.objective:
            case "self-distillation":
                return SelfDistillation(encoder)
            case "class distillation":
                return SelfDistillation(encoder, tokens=False)
            case "rendering":
                return InverseRendering(encoder, ("depth", "albedo"))
            case "rendering + coarse":
                return InverseRendering(encoder, ("depth", "albedo", "coarse"))
            case "rendering + coarse + materials":
                return InverseRendering(encoder, ("depth", "albedo", "coarse", "material"))
            case "features":
                return FeatureModelling(encoder, self._teacher_encoder(config), hidden=0.0)
            case "masked features":
                return FeatureModelling(encoder, self._teacher_encoder(config), hidden=0.4)
            case "objects":
                return Objects(encoder)

    def _teacher_encoder(self, config: PretrainConfig) -> Encoder:
        assert config.teacher is not None
        teacher = self.teacher(config.teacher)
        encoder = teacher.build()
        encoder.load_state_dict(teacher.load())
        placed: Encoder = self.fabric.to_device(encoder)
        return placed


def make_pretrainer(store: Path, folder: Path, device: str, progress: Progress) -> Pretrainer:
    """Return a pretrainer on this machine."""
    return Pretrainer(Store(store), folder, make_fabric(device, 1, PRECISION), progress)


def write_toy_model(folder: Path, spec: ModelSpec, state: Mapping[str, Tensor], **facts: Any) -> Card:
    """Write weights in half precision with their card; running statistics and counters stay as they are."""
    content = save({name: tensor.contiguous() for name, tensor in to_half(state).items()})
    card = Card.model_validate({
        "name": spec.name,
        "family": spec.family,
        "architecture": _architecture(spec),
        "parameters": sum(p.numel() for p in build_toy(spec).parameters()),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        **facts,
    })  # fmt: skip
    write_atomically(folder / f"{spec.name}.safetensors", content)
    write_card(folder, card)
    return card


def write_card(folder: Path, card: Card) -> None:
    """Write a card as JSON; only foundation models have an ablation, and others no empty one."""
    facts = card.model_dump(mode="json", by_alias=True, exclude=None if card.ablation else {"ablation"})
    write_atomically(folder / f"{card.name}.json", (json.dumps(facts, indent=1) + "\n").encode())


def verify_toy_model(spec: ModelSpec, folder: Path = SHIPPED) -> Card:
    """Compare a toy model's weights with its card and its architecture; a fault is an error that says the repair."""
    name = spec.name
    model = ToyModel(spec, folder)
    card, state, expected = model.card, model.load(), build_toy(spec).state_dict()
    fault = ""
    if card.architecture != _architecture(spec):
        fault = f"{folder / name}.json describes another architecture: {card.architecture}, not {_architecture(spec)}"
    elif broken := [key for key, tensor in state.items() if not tensor.isfinite().all()]:
        fault = f"{model.path} is not finite in {broken[0]}"
    else:
        found, wanted = ({key: tuple(t.shape) for key, t in each.items()} for each in (state, expected))
        if wrong := sorted({key for key, _ in wanted.items() ^ found.items()}):
            shown = ", ".join(f"{key} {found.get(key, ())}" for key in wrong[:5])
            fault = f"{model.path} does not fit '{name}': {shown}"
    if fault:
        raise KdbenchError(f"{fault}. {repair(folder, name)}")
    return card


def _architecture(spec: ModelSpec) -> dict[str, Any]:
    """Return what decides how weights are used, as JSON writes it."""
    found: dict[str, Any] = json.loads(json.dumps({"kind": spec.kind, **spec.toy}))
    return found
