"""Names in files, and as shown: what is small or drawn never goes by the bare name of the real thing."""

from __future__ import annotations

from kdbench.identity import digest

REAL = "real"


def model_name(name: str, model_set: str) -> str:
    """A model's name, marked where it is a small stand-in."""
    return f"mini:{name}" if model_set.startswith("toy") else name


def file_name(model: str) -> str:
    """A model's name as part of a file's: without slashes, and of a path the last part alone, with a digest."""
    kind, _, rest = model.partition("/")
    last = rest.rpartition("/")[2]
    return "--".join(filter(None, (kind, last))) + (f"-{digest(model, 8)}" if last != rest else "")


def domain_name(name: str, data_source: str) -> str:
    """A domain's name, marked where it is drawn."""
    return name if data_source == REAL else f"synthetic {name}-like"


def benchmark_title(title: str, data_source: str) -> str:
    """A benchmark's title, marked where its domains are drawn."""
    return title if data_source == REAL else f"synthetic likeness of {title}"
