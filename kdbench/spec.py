"""The request of a run, parsed once from text; and how options become a method's Config and a variant's name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, PositiveFloat, ValidationError

from kdbench.errors import KdbenchError, allowed, unknown
from kdbench.identity import digest
from kdbench.protocol import Protocol, find_protocol, read_protocol

if TYPE_CHECKING:
    from kdbench.method import MethodConfig
    from kdbench.plugins import MethodPlugin


def split_list(text: str, everything: Iterable[str] | None = None) -> tuple[str, ...]:
    """Split a comma-separated list, without repeats; `all` stands for everything."""
    if everything is not None and text.strip() == "all":
        return tuple(everything)
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise KdbenchError(f"'{text}' names nothing. Give one name or several, separated by commas.")
    return names


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parse seeds from numbers and ranges: `0,1` or `0-4`."""
    seeds: list[int] = []
    for part in split_list(text):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
            raise KdbenchError(f"--seed '{text}': seeds are whole numbers from 0 on, separated by commas, or 0-4.")
        seeds += range(int(first), int(last) + 1)
    return tuple(dict.fromkeys(seeds))


def parse_fraction(value: str | Fraction) -> Fraction:
    """Parse `1/16` or `0.25`; above 0 and at most 1."""
    try:
        fraction = Fraction(value)
    except (ValueError, ZeroDivisionError):
        fraction = Fraction(0)
    if not 0 < fraction <= 1:
        raise KdbenchError(f"--label-fraction '{value}': write a part of the labelled images such as 1/16, at most 1.")
    return fraction


def parse_label_maps(texts: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Parse `dataset=table` texts."""
    return _parse_assignments(texts, "--label-map", "dataset=table, e.g. --label-map mapillary=robustnet")


def parse_settings(texts: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Parse `option=value` and `method.option=value` texts."""
    return _parse_assignments(texts, "--set", "option=value, e.g. --set temperature=2")


def _parse_assignments(texts: Sequence[str] | Mapping[str, str], flag: str, form: str) -> dict[str, str]:
    if isinstance(texts, Mapping):
        return {name: str(value) for name, value in texts.items()}
    assigned = {}
    for text in [texts] if isinstance(texts, str) else texts:
        name, _, value = text.partition("=")
        if not (name and value):
            raise KdbenchError(f"{flag} {text}: write {form}.")
        assigned[name] = value
    return assigned


Names = Annotated[
    tuple[str, ...], BeforeValidator(lambda names: split_list(names) if isinstance(names, str) else names)
]
Seeds = Annotated[
    tuple[int, ...], BeforeValidator(lambda seeds: parse_seeds(str(seeds)) if isinstance(seeds, str | int) else seeds)
]
_AsTexts = PlainSerializer(lambda assigned: [f"{name}={value}" for name, value in assigned.items()])


class RunSpec(BaseModel):
    """What a run was asked for. Fields take text as the command line has it, or parsed values."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    methods: Names
    pairs: Names
    benchmarks: Names
    protocol: Annotated[str | dict[str, Any], BeforeValidator(read_protocol)] = "mini"
    """A shipped one's name, or the content of a user's file, so that a record holds it."""
    budget: Literal["published", "equal"] = "published"
    resampling: Literal["bicubic", "pseudo-inverse"] = "bicubic"
    seeds: Seeds = (0,)
    data_root: Path | None = None
    settings: Annotated[dict[str, str], BeforeValidator(parse_settings), _AsTexts] = {}
    """`option` or `method.option` -> value."""
    label: str = ""
    """The variant's name in place of its settings (`--as`)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    workers: int | None = None
    weights_dir: Path | None = None
    label_fraction: Annotated[Fraction, BeforeValidator(parse_fraction), PlainSerializer(str)] = Fraction(1)
    label_maps: Annotated[dict[str, str], BeforeValidator(parse_label_maps), _AsTexts] = {}
    """Data set -> table of its labels."""
    steps_scale: PositiveFloat = 1.0
    """Factor on the steps of every stage."""
    student_from: Path | None = None
    """A file with the weights from which the requested methods' student starts."""
    stages_done: Names = ()
    """Stages that those weights have been through already."""
    until: str = ""
    """The stage after which cells stop, without a record."""
    results: Path
    store: Path
    fresh: bool = False
    references: bool = True
    compiled: bool = False
    watch: tuple[str, ...] = ()
    """Trackers that get losses and scores."""

    def passed(self) -> dict[str, Any]:
        """Return what a record keeps of the request: all but places on this machine and trackers."""
        return self.model_dump(
            mode="json",
            exclude={"results", "store", "data_root", "workers", "devices", "weights_dir", "watch", "until"},
        ) | {"real": bool(self.data_root)}


def recorded_protocol(name: str, passed: Mapping[str, Any]) -> Protocol:
    """Return the protocol that a record's request chose, as it is today. name: what the record says for older ones."""
    own = passed.get("protocol")
    return find_protocol(
        own if isinstance(own, Mapping) else name,
        passed.get("budget", "published"),
        parse_label_maps(passed.get("label_maps", ())),
        passed.get("resampling", "bicubic"),
        passed.get("steps_scale", 1.0),
    )


def assign_settings(settings: Mapping[str, str], methods: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return each method's options; with several methods an option is written `method.option`."""
    assigned: dict[str, dict[str, str]] = {name: {} for name in methods}
    for name, value in settings.items():
        method, dot, option = name.rpartition(".")
        if not dot:
            if len(methods) != 1:
                repair = "several methods run, so write method.option=value" if methods else "no method runs"
                raise KdbenchError(f"--set {name}={value}: {repair}.")
            method = methods[0]
        method = method.replace("-", "_")
        if method not in assigned:
            raise unknown("method", method, methods, where=f"in --set {name}={value}")
        assigned[method][option] = value
    return assigned


def make_config(plugin: MethodPlugin, values: Mapping[str, Any]) -> MethodConfig:
    """Return a method's Config; an unknown option, a wrong type or a value out of range raises KdbenchError."""
    config = plugin.method.Config
    for name in values:
        if name not in config.model_fields:
            raise unknown("option", name, config.model_fields, where=f"of method '{plugin.name}'")
    try:
        return config.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = str((*first["loc"], "")[0])
        if name not in config.model_fields:
            raise KdbenchError(f"the options of method '{plugin.name}' do not fit together: {first['msg']}.") from error
        raise KdbenchError(
            f"option '{name}' of method '{plugin.name}' cannot be '{first['input']}': {allowed(first)}. "
            f"The default is {config.model_fields[name].default}."
        ) from error


def variant(config: MethodConfig, label: str = "") -> str:
    """Return a variant's name: its label, or the sorted options that are off their defaults."""
    if label and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=+-]*", label):
        raise KdbenchError(f"--as '{label}': a label has letters, digits and . _ = + - only.")
    changed = {
        name: getattr(config, name)
        for name, field in type(config).model_fields.items()
        if getattr(config, name) != field.default
    }
    name = ",".join(f"{name}={changed[name]}" for name in sorted(changed))
    # A variant is part of a file's name; what such a name cannot hold is replaced, and a digest keeps it distinct.
    safe = re.sub(r"[^A-Za-z0-9._=,+-]", "_", name)[:100]
    return label or (name if safe == name else f"{safe}-{digest(name, 6)}")
