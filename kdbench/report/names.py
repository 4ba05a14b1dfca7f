"""What is small or drawn never goes by the bare name of the real thing that it stands for."""

from __future__ import annotations

REAL = "real"


def model_name(name: str, zoo: str) -> str:
    """A model's name, marked where it is a small stand-in."""
    return f"mini:{name}" if zoo.startswith("mini") else name


def domain_name(name: str, world: str) -> str:
    """A domain's name, marked where it is drawn."""
    return name if world == REAL else f"synthetic {name}-like"


def benchmark_title(title: str, world: str) -> str:
    """A benchmark's title, marked where its domains are drawn."""
    return title if world == REAL else f"synthetic likeness of {title}"
