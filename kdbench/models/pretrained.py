"""Pretrained weights: from a folder of files in their authors' layouts, or from timm's and transformers' hub.

A detectron2 config's are a file in the folder, or the local file that it names; where it names none at all, random.
"""

from __future__ import annotations

import hashlib
import inspect
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from kdbench.errors import KdbenchError, unknown
from kdbench.identity import code_digest, digest
from kdbench.models import real
from kdbench.models.backbones import Encoder
from kdbench.models.real import MIT, build_real
from kdbench.models.segmentor import seeded
from kdbench.models.zoo import Role, find_role

State = dict[str, Tensor]
ENDINGS = ("safetensors", "pth", "pt", "bin")
NESTS = ("model", "state_dict", "teacher", "module", "student")
"""Under which of its entries a checkpoint may keep the weights."""
PREFIXES = ("student.backbone.", "teacher.backbone.", "module.backbone.", "backbone.", "module.")
"""What stands before an encoder's names: GKD's first stage, segmentors of mmsegmentation, parallel training."""
DROPPED = (
    "head.",
    "head_dist.",
    "fc.",
    "classifier.",
    "dist_token",
    "lm_head.",
    "decode_head.",
    "rope.",
    "neck_mim.",
    "attn_pool.",
)
"""What a checkpoint may hold beside the encoder: classifiers, a distillation token, computed tables, pooling."""
LAYER_SCALES = {
    ".ls1.gamma": ".attn.proj", ".ls2.gamma": ".mlp.fc2", ".gamma_1": ".attn.proj", ".gamma_2": ".mlp.fc2"
}  # fmt: skip
"""A block's layer scales by timm's names, and the linear layer before each."""
BODY = "body."
SHOWN = 8
BAD = ("missing_keys", "mismatched_keys")


class Weights(Protocol):
    """Where encoders and their pretrained weights come from."""

    def build(self, role: Role) -> Encoder:
        """The network of a role, with random weights."""

    def key(self, role: Role) -> str:
        """What the pretrained weights are, known without reading them where that is possible."""

    def weights(self, role: Role) -> str:
        """The same in words for a record, whatever code reads them."""

    def load(self, name: str) -> State:
        """An encoder's state dict, by its role's name."""

    def check(self, name: str) -> object:
        """Raises where the weights cannot be had, or are damaged or another model's."""

    def origin(self, role: Role) -> str:
        """Where a role's weights are, in words; nothing is read."""

    def remark(self, role: Role, state: State) -> str:
        """What a student's weights, as loaded, lack of what its authors published; empty as a rule."""


@dataclass(frozen=True)
class Pretrained:
    """The real weights. folder: `--weights-dir`; without a file there, from the hub."""

    folder: Path | None = None

    def build(self, role: Role) -> Encoder:
        """As Weights.build."""
        return build_real(role, trained=not self.random(role))

    def key(self, role: Role) -> str:
        """The network, its weights, and the code that reads them."""
        network = _detectron2().config_key(role.network) if role.of_detectron2 else role.network
        code = digest([code_digest(Path(path)) for path in (__file__, real.__file__)], 8)
        return f"{network}-{self.weights(role)}-{code}"

    def weights(self, role: Role) -> str:
        """A file's checksum, or the name on the hub, or `random`."""
        if self.random(role):
            return "random"
        file = self.find(role)
        return f"hub-{role.weights}" if file is None else f"file-{_checksum(file)}"

    def load(self, name: str) -> State:
        """As Weights.load."""
        role = find_role(name)
        if role.of_detectron2:
            return _of_config(self, role)
        encoder, file = build_real(role), self.find(role)
        if role.network.startswith(MIT):
            return _with_mask_token(encoder, _mit(role, file), None)
        state = unwrap(_from_hub(self, role) if file is None else read_checkpoint(file))
        return convert(encoder, state, f"{file or role.weights} for '{role.name}'")

    def check(self, name: str) -> None:
        """As Weights.check."""
        self.load(name)

    def origin(self, role: Role) -> str:
        """As Weights.origin: a file, a name on the hub, or that there are none."""
        file = self.find(role)
        if file is not None:
            return str(file)
        if role.of_detectron2:
            return "nowhere, random: its config names none" if self.random(role) else f"MISSING: {_put(self, role)}"
        hub = role.network if role.network.startswith(MIT) else _hub_name(role)
        return f"the hub: {hub}" if hub else f"MISSING: {_put(self, role)}"

    def remark(self, role: Role, state: State) -> str:
        """As Weights.remark: the mask token, which copies made for other ends leave out."""
        if not role.masked or state["mask_token"].any():
            return ""
        return (
            f"the mask token of '{role.name}' starts at zero: {self.find(role) or 'the hub'} has none. To start from "
            f"the published one, put its authors' file, {self.names(role)[-1]}, where --weights-dir points."
        )

    def random(self, role: Role) -> bool:
        """Whether a role has no pretrained weights: a detectron2 config that names none, without a file of its own."""
        return role.of_detectron2 and not _stated(role) and self.find(role) is None

    def find(self, role: Role) -> Path | None:
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

    def names(self, role: Role) -> list[str]:
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
    from kdbench.models import detectron2

    return detectron2


def _stated(role: Role) -> str:
    """What a detectron2 config says of its weights: an address, a file, or nothing."""
    return str(_detectron2().read_config(role.network).MODEL.WEIGHTS)


def _of_config(weights: Pretrained, role: Role) -> State:
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


def _from_hub(weights: Pretrained, role: Role) -> Mapping[str, Any]:
    hub = _hub_name(role)
    if not hub:
        raise KdbenchError(f"timm publishes no weights '{role.weights}'. {_put(weights, role)}")
    try:
        found: Mapping[str, Any] = timm.models.load_state_dict_from_hf(hub, weights_only=True)
    except Exception as error:  # whatever keeps the hub away, the repair is the same
        raise KdbenchError(
            f"the weights of '{role.name}' ({hub}) cannot be had from the hub: {_first_line(error)}. "
            f"{_put(weights, role)}"
        ) from error
    return found


def _hub_name(role: Role) -> str:
    """Where timm finds a role's weights; empty where it publishes none."""
    known = _published(role)
    return str(known.hf_hub_id or "") if known is not None else ""


def _published(role: Role) -> Any:
    """What timm knows of a role's weights; None of a network that is not timm's."""
    if not timm.is_model(role.weights):
        return None
    try:
        return timm.get_pretrained_cfg(role.weights)
    except RuntimeError as error:
        network, _, tag = role.weights.partition(".")
        known = [name.partition(".")[2] for name in timm.list_models(f"{network}.*", pretrained=True)]
        raise unknown(f"weights of timm's '{network}'", tag, known) from error


def _put(weights: Pretrained, role: Role) -> str:
    where = weights.folder or "a folder that --weights-dir names"
    return f"Put one of these into {where}: {', '.join(weights.names(role))}."


def _mit(role: Role, folder: Path | None) -> State:
    from transformers import SegformerModel

    try:
        model, report = SegformerModel.from_pretrained(folder or role.network, output_loading_info=True)
    except Exception as error:
        raise KdbenchError(
            f"the weights of '{role.name}' cannot be had from {folder or 'the hub'}: {_first_line(error)}. "
            f"Put the folder of {role.network} (config.json, model.safetensors) as {role.name} where --weights-dir "
            "points."
        ) from error
    # The library fills what is missing with random numbers, and says so in a log alone.
    faults = [f"{kind.partition('_')[0]}: {_some(sorted(map(str, report[kind])))}" for kind in BAD if report.get(kind)]
    if faults:
        raise KdbenchError(f"{folder or role.network} does not fit '{role.name}'. {'; '.join(faults)}.")
    return {f"network.{name}": tensor for name, tensor in model.state_dict().items()}


class Unread:
    """In place of an object that is no tensor: nothing of it is built."""

    def __new__(cls, *args: Any) -> Unread:
        """Whatever it was made of."""
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        """As __new__."""

    def __setstate__(self, state: Any) -> None:
        """Whatever it held."""


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """A file's content; nothing in it is run. What training scripts keep beside the weights is passed over.

    That is their arguments in GKD's and DeiT's files; buffers of losses, with numpy's arrays, in mmengine's. What torch
    cannot pass over (kinds of dict and list) is an error.
    """
    try:
        if path.suffix == ".safetensors":
            tensors: State = load_file(path)
            return tensors
        with torch.serialization.safe_globals([(Unread, name) for name in _foreign(path)]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken, of another format, or of objects that are not tensors
        # torch's own words would advise to run what is in the file.
        beside = type(error).__name__ == "UnpicklingError" and zipfile.is_zipfile(path)
        reason = "beside tensors it holds objects that cannot be passed over" if beside else _first_line(error)
        raise KdbenchError(
            f"{path} cannot be read as weights: {reason}. Download it again; if it holds other objects than tensors, "
            "save its state dict alone with safetensors."
        ) from error
    if not isinstance(found, Mapping):
        kind = "an object" if isinstance(found, Unread) else f"a {type(found).__name__}"
        raise KdbenchError(f"{path} holds {kind}, not a state dict. Save the model's state dict.")
    return found


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _foreign(path: Path) -> list[str]:
    """The classes and functions that a file names beside those of tensors."""
    if not zipfile.is_zipfile(path):
        # PyTorch's format before 1.6 cannot be asked.
        return ["argparse.Namespace"]
    return torch.serialization.get_unsafe_globals_in_checkpoint(path)


def unwrap(checkpoint: Mapping[str, Any]) -> State:
    """The encoder's tensors, out of the nesting and from behind the prefixes of a training run."""
    for name in NESTS:
        if isinstance(checkpoint.get(name), Mapping):
            return unwrap(checkpoint[name])
    state = {name: tensor for name, tensor in checkpoint.items() if isinstance(tensor, Tensor)}
    for prefix in PREFIXES:
        inside = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
        if inside:
            return unwrap(inside)
    return state


def convert(encoder: Encoder, state: State, what: str) -> State:
    """An encoder's state dict from its authors' names (timm's conversion); at the patch size and grid of the file.

    Raises KdbenchError with the names that are missing or unknown.
    """
    state = _without_distillation_token(dict(state), encoder)
    mask_token = state.get("mask_token")
    body = encoder.body
    _take_geometry(encoder, state)
    rename = getattr(inspect.getmodule(type(body)), "checkpoint_filter_fn", None)
    named = dict(rename(dict(state), body)) if rename is not None else state
    expected = set(body.state_dict())
    for name in [
        n for n in named if n.startswith("fc_norm.") and n.replace("fc_norm", "norm", 1) in expected - set(named)
    ]:
        named[name.replace("fc_norm", "norm", 1)] = named.pop(name)
    _fold_layer_scales(named, expected)
    missing = sorted(expected - set(named))
    unknown = sorted(n for n in set(named) - expected if not n.startswith(DROPPED) and n != "mask_token")
    shapes = [
        f"{name} {tuple(named[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in body.state_dict().items()
        if name in named and named[name].shape != tensor.shape
    ]
    faults = [
        f"{kind}: {_some(names)}"
        for kind, names in (("missing", missing), ("unknown", unknown), ("shapes", shapes))
        if names
    ]
    if faults:
        raise KdbenchError(
            f"{what} does not fit {type(body).__name__}. {'; '.join(faults)}. Is it another model's file?"
        )
    return _with_mask_token(encoder, {name: named[name] for name in expected}, mask_token)


def _fold_layer_scales(state: State, expected: set[str]) -> None:
    """Layer scales that the network lacks go into the linear layer before each: gamma (W x + b), as GKD's DINO has."""
    for scale, layer in LAYER_SCALES.items():
        for name in [name for name in state if name.endswith(scale) and name not in expected]:
            linear = f"{name.removesuffix(scale)}{layer}"
            if f"{linear}.weight" not in state:
                continue
            gamma = state.pop(name)
            for part in (f"{linear}.{kind}" for kind in ("weight", "bias") if f"{linear}.{kind}" in state):
                state[part] = gamma.view(-1, *[1] * (state[part].ndim - 1)) * state[part]


def _with_mask_token(encoder: Encoder, body: State, mask_token: Tensor | None) -> State:
    token = encoder.mask_token.detach().clone()
    # GKD's rule: the file's, where it has one, as DINOv2's and EVA-02's do; else zero, as for DeiT and DINO.
    if mask_token is not None and mask_token.numel() == token.numel():
        token = mask_token.detach().reshape(token.shape)
    return {f"{BODY}{name}": tensor for name, tensor in body.items()} | {"mask_token": token.float()}


def _without_distillation_token(state: State, encoder: Encoder) -> State:
    """DeiT's distilled checkpoints: the second token goes, and with it the second row of the positions."""
    if "dist_token" in state and not hasattr(encoder.body, "dist_token"):
        positions = state["pos_embed"]
        state["pos_embed"] = torch.cat((positions[:, :1], positions[:, 2:]), 1)
    return state


def _take_geometry(encoder: Encoder, state: State) -> None:
    """Brings the network to the file's patch size and grid, so that loading resamples nothing."""
    found = {f"{BODY}{name}": state[name] for name in ("patch_embed.proj.weight", "pos_embed") if name in state}
    registers = state.get("register_tokens")
    if f"{BODY}pos_embed" in found and registers is not None:
        # DINOv2 with registers: its positions have a row for the class token, which timm folds into the token.
        found[f"{BODY}pos_embed"] = found[f"{BODY}pos_embed"][:, 1:]
    encoder.take_geometry(found)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _checksum(path: Path) -> str:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return _digest(tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()))


@lru_cache(maxsize=64)
def _digest(files: tuple[tuple[str, int, int], ...]) -> str:
    """Of the content; sizes and times are there so that a changed file is read again."""
    whole = hashlib.sha256()
    for name, _, _ in files:
        with Path(name).open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:16]
