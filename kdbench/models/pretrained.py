"""Pretrained weights: from a folder of files in their authors' layouts, or from timm's and transformers' hub.

A detectron2 config's are a file in the folder, or the local file that it names; where it names none at all, random.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import timm

from kdbench.errors import KdbenchError
from kdbench.models.backbones import Encoder
from kdbench.models.checkpoint import State, checksum, first_line, read_checkpoint, unwrap
from kdbench.models.conversion import convert, some, with_mask_token
from kdbench.models.real import MIT, build_real, unknown_weights
from kdbench.models.registry import ModelSpec, find_model
from kdbench.models.segmentor import seeded

ENDINGS = ("safetensors", "pth", "pt", "bin")
BAD = ("missing_keys", "mismatched_keys")


class Weights(Protocol):
    """Where encoders and their pretrained weights come from."""

    def build(self, role: ModelSpec) -> Encoder:
        """The network of a role, with random weights."""

    def key(self, role: ModelSpec) -> str:
        """What the pretrained weights are, known without reading them where that is possible."""

    def weights(self, role: ModelSpec) -> str:
        """The same in words for a record, whatever code reads them."""

    def load(self, name: str) -> State:
        """An encoder's state dict, by its role's name."""

    def check(self, name: str) -> object:
        """Raises where the weights cannot be had, or are damaged or another model's."""

    def origin(self, role: ModelSpec) -> str:
        """Where a role's weights are, in words; nothing is read."""

    def remark(self, role: ModelSpec, state: State) -> str:
        """What a student's weights, as loaded, lack of what its authors published; empty as a rule."""


@dataclass(frozen=True)
class Pretrained:
    """The real weights. folder: `--weights-dir`; without a file there, from the hub."""

    folder: Path | None = None

    def build(self, role: ModelSpec) -> Encoder:
        """As Weights.build."""
        return build_real(role, trained=not self.random(role))

    def key(self, role: ModelSpec) -> str:
        """The network and its weights."""
        network = _detectron2().config_key(role.network) if role.of_detectron2 else role.network
        return f"{network}-{self.weights(role)}"

    def weights(self, role: ModelSpec) -> str:
        """A file's checksum, or the name on the hub, or `random`."""
        if self.random(role):
            return "random"
        file = self.find(role)
        return f"hub-{role.weights}" if file is None else f"file-{checksum(file)}"

    def load(self, name: str) -> State:
        """As Weights.load."""
        role = find_model(name)
        if role.of_detectron2:
            return _of_config(self, role)
        encoder, file = build_real(role), self.find(role)
        if role.network.startswith(MIT):
            return with_mask_token(encoder, _mit(role, file), None)
        state = unwrap(_from_hub(self, role) if file is None else read_checkpoint(file))
        return convert(encoder, state, f"{file or role.weights} for '{role.name}'")

    def check(self, name: str) -> None:
        """As Weights.check."""
        self.load(name)

    def origin(self, role: ModelSpec) -> str:
        """As Weights.origin: a file, a name on the hub, or that there are none."""
        file = self.find(role)
        if file is not None:
            return str(file)
        if role.of_detectron2:
            return "nowhere, random: its config names none" if self.random(role) else f"MISSING: {_put(self, role)}"
        hub = role.network if role.network.startswith(MIT) else _hub_name(role)
        return f"the hub: {hub}" if hub else f"MISSING: {_put(self, role)}"

    def remark(self, role: ModelSpec, state: State) -> str:
        """As Weights.remark: the mask token, which copies made for other ends leave out."""
        if not role.masked or state["mask_token"].any():
            return ""
        return (
            f"the mask token of '{role.name}' starts at zero: {self.find(role) or 'the hub'} has none. To start from "
            f"the published one, put its authors' file, {self.names(role)[-1]}, where --weights-dir points."
        )

    def random(self, role: ModelSpec) -> bool:
        """Whether a role has no pretrained weights: a detectron2 config that names none, without a file of its own."""
        return role.of_detectron2 and not _stated(role) and self.find(role) is None

    def find(self, role: ModelSpec) -> Path | None:
        """The file in the folder that holds a role's weights, by the role's name or its authors' name for it.

        Without one, the local file that a detectron2 config names.
        """
        if self.folder is not None:
            if not self.folder.is_dir():
                raise KdbenchError(f"--weights-dir {self.folder} is not a folder.")
            for name in self.names(role):
                if (self.folder / name).exists():
                    return self.folder / name
        return stated if role.of_detectron2 and (stated := Path(_stated(role))).is_file() else None

    def names(self, role: ModelSpec) -> list[str]:
        """The names under which a role's weights are looked for."""
        if role.of_detectron2:
            stems = dict.fromkeys(Path(name).stem for name in (role.network, _stated(role)) if name)
            return [f"{stem}.{ending}" for stem in stems for ending in ENDINGS]
        own = role.name.replace("/", "--")
        if role.network.startswith(MIT):
            return [own]
        known = _published(role)
        published = str(known.url).rpartition("/")[2] if known is not None and known.url else ""
        return [*(f"{own}.{ending}" for ending in ENDINGS), *filter(None, (published, role.file))]


def _detectron2() -> Any:
    # Optional, and seconds to load.
    from kdbench.integrations.detectron2 import student as detectron2

    return detectron2


def _stated(role: ModelSpec) -> str:
    """What a detectron2 config says of its weights: an address, a file, or nothing."""
    return str(_detectron2().read_config(role.network).MODEL.WEIGHTS)


def _of_config(weights: Pretrained, role: ModelSpec) -> State:
    """A detectron2 config's encoder. What its file lacks (the FPN, of an ImageNet model) is the same for every seed."""
    file = weights.find(role)
    if file is None and not weights.random(role):
        raise KdbenchError(
            f"'{role.name}' starts from {_stated(role)}, which is no file here and is not downloaded. "
            f"{_put(weights, role)} {_detectron2().CONVERT}"
        )
    encoder = seeded(lambda: weights.build(role), "detectron2", 0)
    if file is not None:
        _detectron2().load_encoder(encoder, file)
    return encoder.state_dict()


def _from_hub(weights: Pretrained, role: ModelSpec) -> Mapping[str, Any]:
    hub = _hub_name(role)
    if not hub:
        raise KdbenchError(f"timm publishes no weights '{role.weights}'. {_put(weights, role)}")
    try:
        found: Mapping[str, Any] = timm.models.load_state_dict_from_hf(hub, weights_only=True)
    except Exception as error:  # whatever keeps the hub away, the repair is the same
        raise KdbenchError(
            f"the weights of '{role.name}' ({hub}) cannot be had from the hub: {first_line(error)}. "
            f"{_put(weights, role)}"
        ) from error
    return found


def _hub_name(role: ModelSpec) -> str:
    """Where timm finds a role's weights; empty where it publishes none."""
    known = _published(role)
    return str(known.hf_hub_id or "") if known is not None else ""


def _published(role: ModelSpec) -> Any:
    """What timm knows of a role's weights; None of a network that is not timm's."""
    if not timm.is_model(role.weights):
        return None
    try:
        return timm.get_pretrained_cfg(role.weights)
    except RuntimeError as error:
        raise unknown_weights(role.weights) from error


def _put(weights: Pretrained, role: ModelSpec) -> str:
    where = weights.folder or "a folder that --weights-dir names"
    return f"Put one of these into {where}: {', '.join(weights.names(role))}."


def _mit(role: ModelSpec, folder: Path | None) -> State:
    from transformers import SegformerModel

    try:
        model, report = SegformerModel.from_pretrained(folder or role.network, output_loading_info=True)
    except Exception as error:
        raise KdbenchError(
            f"the weights of '{role.name}' cannot be had from {folder or 'the hub'}: {first_line(error)}. "
            f"Put the folder of {role.network} (config.json, model.safetensors) as {role.name} where --weights-dir "
            "points."
        ) from error
    # The library fills what is missing with random numbers, and says so in a log alone.
    faults = [f"{kind.partition('_')[0]}: {some(sorted(map(str, report[kind])))}" for kind in BAD if report.get(kind)]
    if faults:
        raise KdbenchError(f"{folder or role.network} does not fit '{role.name}'. {'; '.join(faults)}.")
    return {f"network.{name}": tensor for name, tensor in model.state_dict().items()}
