"""Every stand-in's course: collection, objective and numbers. The largest of a family comes first and teaches the rest.

Foundation models learn on "web", local ones on the proxy alone. None ever sees a benchmark's images or label maps; what
the coarse groups and the main objects have in common with a benchmark's classes is said in docs/mini.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kdbench.errors import unknown
from kdbench.protocol import Augmentation, Recipe

ObjectiveName = Literal[
    "self-distillation",
    "class distillation",
    "rendering",
    "rendering + coarse",
    "features",
    "masked features",
    "objects",
]
IMAGES = {"web": 16000, "proxy": 8000}


@dataclass(frozen=True)
class Course:
    """How one stand-in is pretrained. teacher: the role whose finished features it learns, where it does."""

    role: str
    collection: Literal["web", "proxy"]
    objective: ObjectiveName
    recipe: Recipe
    teacher: str | None = None


_COLOURS = Augmentation(hue=0.1, grey=0.1)
_VIEWS = Augmentation(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grey=0.15)


def _foundation(steps: int) -> Recipe:
    return Recipe(steps=steps, batch=16, lr=1.5e-3, warmup=100, clip=1.0, weight_decay=0.02, augmentation=_COLOURS)


def _local(steps: int) -> Recipe:
    return Recipe(steps=steps, batch=32, lr=1e-3, warmup=50, clip=1.0)


def _views(steps: int) -> Recipe:
    return Recipe(steps=steps, batch=24, lr=2e-3, warmup=100, clip=1.0, augmentation=_VIEWS)


COURSES = {
    course.role: course
    for course in (
        Course("dinov2-l", "web", "rendering + coarse", _foundation(5000)),
        Course("dinov2-b", "web", "features", _foundation(1500), "dinov2-l"),
        Course("dinov2-s", "web", "features", _foundation(1500), "dinov2-l"),
        Course("eva02-l", "web", "masked features", _foundation(1200), "dinov2-l"),
        Course("eva02-b", "web", "masked features", _foundation(1200), "eva02-l"),
        Course("eva02-s", "web", "masked features", _foundation(1200), "eva02-l"),
        Course("deit-b", "proxy", "objects", _local(600)),
        Course("deit-s", "proxy", "objects", _local(600)),
        Course("dino-b", "proxy", "class distillation", _views(500)),
        Course("dino-s", "proxy", "class distillation", _views(500)),
        Course("resnet18", "proxy", "objects", _local(600)),
        Course("resnet50", "proxy", "objects", _local(600)),
        Course("mit-b0", "proxy", "objects", _local(600)),
    )
}


LADDER: tuple[tuple[ObjectiveName, Recipe], ...] = (
    ("self-distillation", _views(1500)),
    ("rendering", _foundation(1500)),
    ("rendering + coarse", _foundation(1500)),
)
"""The objectives of a foundation stand-in, label-free first, each with the numbers that its kind has in COURSES."""


def find_course(role: str) -> Course:
    """The course of that stand-in; an unknown one is an error that lists those that exist."""
    if role not in COURSES:
        raise unknown("model of the mini zoo", role, COURSES)
    return COURSES[role]
