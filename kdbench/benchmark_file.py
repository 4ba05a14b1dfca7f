"""Reads a benchmark on a user's own images from a YAML file: classes, and the patterns of every domain's files."""

from __future__ import annotations

import colorsys
import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from kdbench.benchmark import (
    PROXY,
    WILDCARD,
    Benchmark,
    Colour,
    Domain,
    FilePatterns,
    InputSize,
    LabelSpace,
    ProtocolOverrides,
    RealData,
)
from kdbench.errors import KdbenchError, allowed, unknown
from kdbench.types import IGNORE

SUFFIXES = (".yaml", ".yml")
WHOLE = "all"
"""The part of files whose pattern has no {split}."""


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid")


Parts = Annotated[tuple[str, ...], BeforeValidator(lambda names: (names,) if isinstance(names, str) else names)]


class _Domain(_Content):
    images: str
    labels: str | None = None
    train: Parts | None = None
    val: Parts | None = None
    size: tuple[PositiveInt, PositiveInt] | None = None


class _File(_Content):
    title: str = ""
    classes: list[str] | dict[str, tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt]]
    values: dict[NonNegativeInt, str] | None = None
    ignored: tuple[NonNegativeInt, ...] = (IGNORE,)
    sources: dict[str, _Domain]
    targets: dict[str, _Domain]
    proxy: _Domain | None = None
    size: tuple[PositiveInt, PositiveInt] | None = None


def read_benchmark(path: Path) -> Benchmark:
    """Read the benchmark of a file, named as its stem; a fault is an error that says where."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        found = _File.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "the content"
        raise KdbenchError(f"benchmark file {path}: {where} cannot be {fault['input']!r}: {allowed(fault)}.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise KdbenchError(f"the benchmark file {path} cannot be read: {error}") from error
    if not (found.sources and found.targets):
        raise KdbenchError(f"benchmark file {path}: it needs a source and a target at least.")
    return _Reader(path.stem, path, found).benchmark()


class _Reader:
    """Makes the parts of one file's benchmark."""

    def __init__(self, name: str, path: Path, found: _File) -> None:
        self._name, self._path, self._found = name, path, found
        self._space = self._labels()

    def benchmark(self) -> Benchmark:
        found, labels = self._found, self._space
        values = self._values(labels)
        proxy = self._domain("proxy", found.proxy, {}, source=True) if found.proxy else PROXY
        return Benchmark(
            name=self._name,
            title=found.title or self._name,
            sources=tuple(self._domain(name, each, values, source=True) for name, each in found.sources.items()),
            targets=tuple(self._domain(name, each, values, source=False) for name, each in found.targets.items()),
            proxy=proxy,
            labels=labels,
        )

    def _labels(self) -> LabelSpace:
        given = self._found.classes
        names = tuple(given)
        if not 2 <= len(names) <= IGNORE or len(set(names)) != len(names):
            raise self._error(f"classes: two to {IGNORE} of different names are needed")
        palette = (
            tuple(given.values())
            if isinstance(given, dict)
            else tuple(_colour(index, len(names)) for index in range(len(names)))
        )
        if any(part > 255 for colour in palette for part in colour):
            raise self._error("classes: a colour has three numbers of 0 to 255")
        return LabelSpace(f"{self._name}-{len(names)}", names, palette)

    def _values(self, labels: LabelSpace) -> dict[int, int]:
        """Return stored value -> class: as stated, else the classes in their order."""
        stated = self._found.values
        if stated is None:
            return {index: index for index in range(len(labels))}
        for name in stated.values():
            if name not in labels.classes:
                raise unknown("class", name, labels.classes, where=f"in values of {self._path}")
        values = {stored: labels.classes.index(name) for stored, name in stated.items()}
        if max(values, default=0) > IGNORE or set(values) & set(self._found.ignored):
            raise self._error("values: a stored value is 0 to 255, and none of those ignored")
        return values

    def _domain(self, name: str, given: _Domain, values: dict[int, int], *, source: bool) -> Domain:
        split = "{split}" in given.images
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise self._error(f"domain '{name}': a name has letters, digits and . _ - only")
        if bool(given.labels) != bool(values):
            raise self._error(f"domain '{name}' " + ("needs labels" if values else "is a proxy, which has no labels"))
        if given.labels and WILDCARD.findall(given.labels) != WILDCARD.findall(given.images):
            raise self._error(f"domain '{name}': images and labels need the same wildcards, in the same order")
        if not split and (given.train or given.val):
            raise self._error(
                f"domain '{name}': train and val name what {{split}} stands for, and images has no {{split}}"
            )
        usual: tuple[Parts, Parts] = (("train",), ("val",)) if split else ((WHOLE,), () if source else (WHOLE,))
        size = given.size or self._found.size
        overrides = {"paper": ProtocolOverrides(InputSize(*size))} if size else {}
        space = self._space if given.labels else None
        patterns = FilePatterns(given.images, given.labels, space, values, self._found.ignored)
        train, val = (
            ours if theirs is None else theirs for ours, theirs in zip(usual, (given.train, given.val), strict=True)
        )
        real = RealData(f"{self._name}-{name}", train if source else (), val, overrides, patterns)
        return Domain(name, real=real)

    def _error(self, fault: str) -> KdbenchError:
        return KdbenchError(f"benchmark file {self._path}: {fault}.")


def _colour(index: int, count: int) -> Colour:
    """Return one of so many colours: their hues go around the circle, bright and dark in turn."""
    red, green, blue = colorsys.hsv_to_rgb(index / count, 0.65, 0.6 + 0.35 * (index % 2))
    return round(255 * red), round(255 * green), round(255 * blue)


def is_benchmark_file(name: Any) -> bool:
    """Say whether a benchmark is named by such a file."""
    return Path(str(name)).suffix in SUFFIXES
