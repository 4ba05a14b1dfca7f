"""The built-in world: street and aerial domains with labels, and two collections without, drawn on the fly."""

from kdbench.synthetic.domains import (
    CATEGORIES,
    DOMAINS,
    NEUTRAL,
    OBJECTS,
    WORLDS,
    Scene,
    causes,
    check_adjustment,
    describe,
    draw,
)
from kdbench.synthetic.vocabulary import COARSE, MATERIALS

__all__ = [
    "CATEGORIES",
    "COARSE",
    "DOMAINS",
    "MATERIALS",
    "NEUTRAL",
    "OBJECTS",
    "WORLDS",
    "Scene",
    "causes",
    "check_adjustment",
    "describe",
    "draw",
]
