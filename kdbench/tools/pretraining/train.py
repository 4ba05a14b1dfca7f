"""Pretrains one stand-in: the engine's loop, an objective, a collection; resumable, kept in the store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lightning.fabric import Fabric

from kdbench.data.rendered import RenderedSet
from kdbench.engine.distributed import make_fabric
from kdbench.engine.environment import versions
from kdbench.engine.keys import key_of
from kdbench.engine.store import StageFolder, Store
from kdbench.engine.trainer import LossModule, TrainingJob, train
from kdbench.models.backbones import TOY_IMAGE_SIZE, Encoder, build_toy
from kdbench.models.card import Card
from kdbench.models.registry import MODELS
from kdbench.models.segmentor import seeded
from kdbench.models.toy import ToyModels
from kdbench.progress import Progress
from kdbench.tools.pretraining.courses import IMAGES, Course
from kdbench.tools.pretraining.lessons import lessons
from kdbench.tools.pretraining.objectives import (
    FeatureModelling,
    InverseRendering,
    Objective,
    Objects,
    SelfDistillation,
)

CHECKPOINT_EVERY = 100


@dataclass(frozen=True)
class School:
    """Where pretraining happens. zoo: where finished stand-ins are written, and teachers are read."""

    store: Store
    models: ToyModels
    fabric: Fabric
    progress: Progress

    def train(self, course: Course, command: str = "") -> Card:
        """Trains a stand-in to the end, from its checkpoint where there is one, and writes it with its card."""
        samples, folder = self._samples(course), self._folder(course)
        with folder.locked(lambda: self.progress.note(f"another run is pretraining {course.role}; waiting")):
            objective = self._objective(course)
            summary = folder.summary
            if summary is None:
                if not samples.drawn:
                    self.progress.note(f"drawing {len(samples)} pictures of the collection {course.collection}, once")
                summary = train(self.fabric, self._job(course, objective, samples), folder, self.progress)
                folder.finish(summary)
            state = folder.load_snapshot(0, objective.result)
        return self.models.write(
            course.role,
            state,
            world=samples.data_source,
            collection=course.collection,
            images=len(samples),
            objective=course.objective,
            teacher=course.teacher,
            recipe=course.recipe.model_dump(mode="json"),
            losses=summary.losses,
            seconds=round(summary.seconds, 1),
            made_with=versions(self.fabric.device, "32-true"),
            command=command or f"kdbench models train {course.role}",
        )

    def teachers(self, role: str) -> ToyModels:
        """Where a teacher is read from: the folder at work, or else those shipped."""
        return self.models if (self.models.folder / f"{role}.json").is_file() else ToyModels()

    def _samples(self, course: Course) -> RenderedSet:
        name = course.collection
        return RenderedSet(name, name, "train", IMAGES[name], TOY_IMAGE_SIZE, self.store.renders)

    def _folder(self, course: Course) -> StageFolder:
        role, taught = MODELS[course.role], course.teacher
        key = key_of(
            self.fabric.device,
            "32-true",
            network=[role.name, role.kind, role.toy],
            objective=course.objective,
            recipe=course.recipe.model_dump(mode="json"),
            teacher=self.teachers(taught).card(taught).sha256 if taught else None,
            data=self._samples(course).identity,
        )
        return self.store.stage(f"pretrained-{course.role}-{key}")

    def _job(self, course: Course, objective: Objective, samples: RenderedSet) -> TrainingJob:
        return TrainingJob(
            what=f"pretraining mini:{course.role} ({course.objective})",
            module=LossModule(dict(objective.named_children()), objective.loss),
            recipe=course.recipe,
            steps=course.recipe.steps,
            batches=lambda start: map(
                self.fabric.to_device, lessons(samples, course.recipe, TOY_IMAGE_SIZE, objective.views, start)
            ),
            randomness=("pretraining",),
            snapshots=(course.recipe.steps,),
            checkpoint_every=CHECKPOINT_EVERY,
        )

    def _objective(self, course: Course) -> Objective:
        encoder = seeded(lambda: build_toy(MODELS[course.role]), "pretraining", course.role)
        return seeded(lambda: self._heads(course, encoder), "pretraining", "heads")

    def _heads(self, course: Course, encoder: Encoder) -> Objective:
        match course.objective:
            case "self-distillation":
                return SelfDistillation(encoder)
            case "class distillation":
                return SelfDistillation(encoder, tokens=False)
            case "rendering":
                return InverseRendering(encoder, ("depth", "albedo"))
            case "rendering + coarse":
                return InverseRendering(encoder, ("depth", "albedo", "coarse"))
            case "features":
                return FeatureModelling(encoder, self._teacher(course), hidden=0.0)
            case "masked features":
                return FeatureModelling(encoder, self._teacher(course), hidden=0.4)
            case "objects":
                return Objects(encoder)

    def _teacher(self, course: Course) -> Encoder:
        assert course.teacher is not None
        encoder = build_toy(MODELS[course.teacher])
        encoder.load_state_dict(self.teachers(course.teacher).load(course.teacher))
        placed: Encoder = self.fabric.to_device(encoder)
        return placed


def make_school(store: Path, models: Path, device: str, progress: Progress) -> School:
    """A school on this machine."""
    return School(Store(store), ToyModels(models), make_fabric(device, 1, "32-true"), progress)
