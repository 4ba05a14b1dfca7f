"""Names and amounts as shown: a toy model or synthetic domain never goes by the bare name of the real thing."""

from __future__ import annotations

from kdbench.identity import digest

REAL = "real"


def model_name(name: str, model_set: str) -> str:
    """Return a model's name, marked where it is a toy model."""
    return f"mini:{name}" if model_set.startswith("toy") else name


def file_name(model: str) -> str:
    """Return a model's name for a file's: without slashes; of a path its last part and a digest."""
    kind, _, rest = model.partition("/")
    last = rest.rpartition("/")[2]
    return "--".join(filter(None, (kind, last))) + (f"-{digest(model, 8)}" if last != rest else "")


def domain_name(name: str, data_source: str) -> str:
    """Return a domain's name, marked where it is synthetic."""
    return name if data_source == REAL else f"synthetic {name}-like"


def benchmark_title(title: str, data_source: str) -> str:
    """Return a benchmark's title, marked where its domains are synthetic."""
    return title if data_source == REAL else f"synthetic likeness of {title}"


def amount(number: float, unit: str) -> str:
    """Format a number from a thousandth on: 3.2 T, 41 G, 6.7 m."""
    number *= 1000
    for prefix in ("m", "", "k", "M", "G", "T", "P", "E"):
        shown = f"{number:.3g}"
        # What is rounded to a thousand has the next prefix.
        if float(shown) < 1000 and (prefix != "m" or number):
            return f"{shown} {prefix}{unit}"
        number /= 1000
    return f"{number:.3g} Z{unit}"
