"""The request: what was typed, and how text becomes knobs, variants and lists. No torch here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from kdbench.errors import KdbenchError, unknown
from kdbench.identity import digest

if TYPE_CHECKING:
    from kdbench.method import MethodConfig
    from kdbench.plugins import MethodPlugin


class RunSpec(BaseModel):
    """A `kdbench run` as typed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    methods: tuple[str, ...]
    pairs: tuple[str, ...]
    benchmarks: tuple[str, ...]
    protocol: str = "mini"
    budget: Literal["published", "equal"] = "published"
    resampling: Literal["bicubic", "pseudo-inverse"] = "bicubic"
    seeds: tuple[int, ...] = (0,)
    data_root: Path | None = None
    settings: tuple[str, ...] = ()
    label: str = ""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    workers: int | None = None
    weights_dir: Path | None = None
    label_fraction: str = "1"
    label_maps: tuple[str, ...] = ()
    results: Path
    store: Path
    fresh: bool = False
    references: bool = True
    compiled: bool = False
    watch: tuple[str, ...] = ()
    """The trackers that hear of losses and tests besides the JSON lines."""

    def passed(self) -> dict[str, Any]:
        """What a record keeps of the request: all but the places on this machine, and who looks on."""
        return self.model_dump(
            mode="json", exclude={"results", "store", "data_root", "workers", "devices", "weights_dir", "watch"}
        ) | {"real": bool(self.data_root)}


def split_list(text: str, everything: Iterable[str] | None = None) -> tuple[str, ...]:
    """A comma-separated list in its order, without repeats; `all` stands for everything."""
    if everything is not None and text.strip() == "all":
        return tuple(everything)
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise KdbenchError(f"'{text}' names nothing. Give one name or several, separated by commas.")
    return names


def assign_settings(settings: Sequence[str], methods: Sequence[str]) -> dict[str, dict[str, str]]:
    """`knob=value` texts by method; with several methods a knob is written `method.knob=value`."""
    assigned: dict[str, dict[str, str]] = {name: {} for name in methods}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not (name and equals):
            raise KdbenchError(f"--set {setting}: write knob=value, e.g. --set temperature=2.")
        method, dot, knob = name.rpartition(".")
        if not dot:
            if len(methods) > 1:
                raise KdbenchError(f"--set {setting}: several methods run, so write method.knob=value.")
            if not methods:
                raise KdbenchError(f"--set {setting}: no method runs.")
            method = methods[0]
        method = method.replace("-", "_")
        if method not in assigned:
            raise unknown(f"method (in --set {setting})", method, methods)
        assigned[method][knob] = value
    return assigned


def assign_label_maps(texts: Sequence[str]) -> dict[str, str]:
    """`dataset=table` texts by data set."""
    assigned = {}
    for text in texts:
        dataset, equals, table = text.partition("=")
        if not (dataset and equals and table):
            raise KdbenchError(f"--label-map {text}: write dataset=table, e.g. --label-map mapillary=robustnet.")
        assigned[dataset] = table
    return assigned


def make_config(plugin: MethodPlugin, values: Mapping[str, Any]) -> MethodConfig:
    """A method's knobs from text; an unknown one, a wrong type or a value out of range is an error with the limits."""
    config = plugin.method.Config
    for name in values:
        if name not in config.model_fields:
            raise unknown(f"knob of method '{plugin.name}'", name, config.model_fields)
    try:
        return config.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = str((*first["loc"], "")[0])
        if name not in config.model_fields:
            raise KdbenchError(f"the knobs of method '{plugin.name}' do not fit together: {first['msg']}.") from error
        raise KdbenchError(
            f"knob '{name}' of method '{plugin.name}' cannot be '{first['input']}': {first['msg']}. "
            f"The default is {config.model_fields[name].default}."
        ) from error


def variant(config: MethodConfig, label: str = "") -> str:
    """A variant's name: its label, or the sorted knobs that are off their defaults."""
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
