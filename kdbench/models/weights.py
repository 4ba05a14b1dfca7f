"""Pretrained weights: found in a folder or on a hub, read without running anything, converted from authors' names."""

from __future__ import annotations

import copy
import hashlib
import inspect
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import huggingface_hub
import timm
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from kdbench.errors import KdbenchError, describe
from kdbench.identity import code_digest, digest
from kdbench.models.backbones import MIT, Encoder, ModuleEncoder, build_pretrained, unknown_weights
from kdbench.models.registry import ModelSpec
from kdbench.models.segmentor import seeded
from kdbench.types import FeatureSpec

State = dict[str, Tensor]
NESTS = ("model", "state_dict", "teacher", "module", "student")
"""Entries under which a checkpoint may keep the weights."""
PREFIXES = ("student.backbone.", "teacher.backbone.", "module.backbone.", "backbone.", "module.")
"""Before an encoder's names: GKD's first stage, segmentors of mmsegmentation, parallel training."""
DROPPED = (
    "head.", "head_dist.", "fc.", "classifier.", "dist_token", "lm_head.", "decode_head.", "rope.", "neck_mim.",
    "attn_pool.",
)  # fmt: skip
"""What a checkpoint may hold beside the encoder: classifiers, a distillation token, computed tables, pooling."""
LAYER_SCALES = {
    ".ls1.gamma": ".attn.proj", ".ls2.gamma": ".mlp.fc2", ".gamma_1": ".attn.proj", ".gamma_2": ".mlp.fc2"
}  # fmt: skip
"""A block's layer scales by timm's names, and the linear layer before each."""
BODY = "body."
SHOWN = 8
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
ENDINGS = ("safetensors", "pth", "pt", "bin")


class Model(Protocol):
    """A model of a run: how its encoder is built and where its pretrained weights come from."""

    def build(self) -> Encoder:
        """Build the network with random weights."""

    def key(self) -> str:
        """Identify the network and its pretrained weights in the keys of stages, without reading them if possible."""

    def weights(self) -> str:
        """Identify the pretrained weights in a record."""

    def load(self) -> State:
        """Read the encoder's state dict. Raises KdbenchError where it cannot be had, is damaged or does not fit."""

    def origin(self) -> str:
        """Say where the weights are; nothing is read."""

    def note(self, state: State) -> str:
        """Say what a student's loaded weights lack of what the authors published; empty as a rule."""
        return ""


class ModelSource(Protocol):
    """What a protocol's models are: toy models, or pretrained ones."""

    def find(self, spec: ModelSpec) -> Model:
        """Return the model for a name. Raises KdbenchError where this source does not have it."""


@dataclass(frozen=True)
class PretrainedModels:
    """Real networks. folder: `--weights-dir`; weights that are not there come from timm's and transformers' hub."""

    folder: Path | None = None

    def find(self, spec: ModelSpec) -> Model:
        """As ModelSource.find."""
        if spec.source is not None:
            return spec.source(spec, self.folder)
        return (MixTransformerModel if spec.network.startswith(MIT) else PretrainedModel)(spec, self.folder)


@dataclass(frozen=True)
class PretrainedModel:
    """A network of timm with its authors' weights."""

    spec: ModelSpec
    folder: Path | None = None

    def build(self) -> Encoder:
        """As Model.build."""
        return build_pretrained(self.spec)

    def key(self) -> str:
        """As Model.key."""
        return f"{self.spec.network}-{self.weights()}"

    def weights(self) -> str:
        """As Model.weights: a file's checksum, or the name on the hub."""
        file = self.file()
        return f"hub-{self.spec.weights}" if file is None else f"file-{checksum(file)}"

    def load(self) -> State:
        """As Model.load."""
        encoder, file = self.build(), self.file()
        state = unwrap(self._from_hub() if file is None else read_checkpoint(file))
        return convert(encoder, state, f"{file or self.spec.weights} for '{self.spec.name}'")

    def origin(self) -> str:
        """As Model.origin."""
        file, hub = self.file(), self._hub()
        if file:
            return str(file)
        return f"the hub: {hub} ({on_hub(hub)})" if hub else f"MISSING: {self._repair()}"

    def note(self, state: State) -> str:
        """As Model.note: the mask token, which copies made for other purposes leave out."""
        if not self.spec.masked or state["mask_token"].any():
            return ""
        return (
            f"the mask token of '{self.spec.name}' starts at zero: {self.file() or 'the hub'} has none. To start from "
            f"the published one, put its authors' file, {self.names()[-1]}, where --weights-dir points."
        )

    def file(self) -> Path | None:
        """Return the file in the folder that holds the weights, by the model's name or its authors' name for it."""
        return find_file(self.folder, self.names())

    def names(self) -> list[str]:
        """Return the names under which the weights are looked for."""
        own = self.spec.name.replace("/", "--")
        known = self._published()
        published = str(known.url).rpartition("/")[2] if known is not None and known.url else ""
        return [*(f"{own}.{ending}" for ending in ENDINGS), *filter(None, (published, self.spec.file))]

    def _published(self) -> Any:
        """Return what timm knows of the weights; None of a network that is not timm's."""
        if not timm.is_model(self.spec.weights):
            return None
        try:
            return timm.get_pretrained_cfg(self.spec.weights)
        except RuntimeError as error:
            raise unknown_weights(self.spec.weights) from error

    def _hub(self) -> str:
        """Return the name of the weights on the hub; empty where timm publishes none."""
        known = self._published()
        return str(known.hf_hub_id or "") if known is not None else ""

    def _from_hub(self) -> Mapping[str, Any]:
        hub = self._hub()
        if not hub:
            raise KdbenchError(f"timm publishes no weights '{self.spec.weights}'. {self._repair()}")
        try:
            return dict(timm.models.load_state_dict_from_hf(hub, weights_only=True))
        except Exception as error:  # whatever keeps the hub away, the repair is the same
            raise KdbenchError(
                f"the weights of '{self.spec.name}' ({hub}) cannot be had from the hub: {first_line(error)}. "
                f"{self._repair()}"
            ) from error

    def _repair(self) -> str:
        return where_to_put(self.folder, self.names())


class MixTransformerModel(PretrainedModel):
    """A MiT with transformers' weights: a folder named as the model (config.json, model.safetensors), or the hub's."""

    def load(self) -> State:
        """As Model.load."""
        from transformers import SegformerModel

        spec, folder = self.spec, self.file()
        try:
            model, report = SegformerModel.from_pretrained(folder or spec.network, output_loading_info=True)
        except Exception as error:
            raise KdbenchError(
                f"the weights of '{spec.name}' cannot be had from {folder or 'the hub'}: {first_line(error)}. Put the "
                f"folder of {spec.network} (config.json, model.safetensors) as {spec.name} where --weights-dir points."
            ) from error
        # The library fills what is missing with random numbers, and says so in a log alone.
        kinds = ("missing", "mismatched")
        faults = _listed({kind: sorted(map(str, report.get(f"{kind}_keys") or ())) for kind in kinds})
        if faults:
            raise KdbenchError(f"{folder or spec.network} does not fit '{spec.name}'. {faults}.")
        body = {f"network.{name}": tensor for name, tensor in model.state_dict().items()}
        return with_mask_token(self.build(), body, None)

    def names(self) -> list[str]:
        """As PretrainedModel.names."""
        return [self.spec.name]

    def _hub(self) -> str:
        return self.spec.network


@dataclass(frozen=True)
class GivenWeights(Model):
    """Another model's network with the weights of a user's file, e.g. a student that GKD's authors released."""

    model: Model = field(hash=False)
    path: Path

    def __call__(self, spec: ModelSpec, folder: Path | None) -> Model:
        """Return itself: a ModelSpec's source."""
        return self

    def build(self) -> Encoder:
        """As Model.build."""
        return self.model.build()

    def key(self) -> str:
        """As Model.key."""
        return f"given-{self.model.key()}-{self.weights()}"

    def weights(self) -> str:
        """As Model.weights."""
        return f"file-{checksum(self.path)}"

    def load(self) -> State:
        """As Model.load: names of timm, of the authors, of GKD's first stage, or kdbench's own."""
        encoder, state = self.build(), unwrap(read_checkpoint(self.path))
        return state if state.keys() == encoder.state_dict().keys() else convert(encoder, state, str(self.path))

    def origin(self) -> str:
        """As Model.origin."""
        return str(self.path) if self.path.is_file() else f"MISSING: {self.path}"


class RegisteredModel(Model):
    """A model of `register_model`: a user's own network, whose arguments are explained there."""

    def __init__(
        self,
        name: str,
        build: Callable[[], nn.Module],
        weights: Path | str | Callable[[], Mapping[str, Tensor]] | None,
        key: str,
        decoder: Callable[[FeatureSpec, int], nn.Module] | None,
    ) -> None:
        self._name, self._build, self._weights, self._key, self._decoder = name, build, weights, key, decoder
        self._file = Path(weights) if isinstance(weights, Path | str) else None

    def build(self) -> Encoder:
        """As Model.build. The network is a copy: a builder may return the same one every time."""
        built = copy.deepcopy(self._call(self._build))
        if not isinstance(built, nn.Module):
            raise KdbenchError(f"the builder of model '{self._name}' returned {built!r}, not a torch.nn.Module.")
        encoder = built if isinstance(built, Encoder) else ModuleEncoder(built)
        if self._decoder is not None:
            encoder.decoder = self._decoder
        return encoder

    def key(self) -> str:
        """As Model.key."""
        return f"registered-{self._name}-{self._key or digest([self.weights(), self._code])}"

    def weights(self) -> str:
        """As Model.weights: a file's checksum, the user's key, or the hash of the weights' content."""
        if self._file is not None:
            return f"file-{checksum(self._file)}"
        return f"key-{self._key}" if self._key else f"state-{self._content}"

    def load(self) -> State:
        """As Model.load. What is drawn at random is the same for every seed of a run."""
        encoder = seeded(self.build, "registered", self._name)
        if self._weights is None:
            return encoder.state_dict()
        state = read_checkpoint(self._file) if self._file else self._call(self._weights)  # type: ignore[arg-type]
        return convert(encoder, unwrap(state), f"what is registered as the weights of '{self._name}'")

    def origin(self) -> str:
        """As Model.origin."""
        if self._file is not None:
            return str(self._file) if self._file.is_file() else f"MISSING: {self._file}"
        return f"the code that registered '{self._name}'"

    def _call(self, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except Exception as error:  # a user's own code
            raise KdbenchError(f"model '{self._name}' cannot be used: {describe(error)}") from error

    @cached_property
    def _content(self) -> str:
        # Copies, because safetensors refuses tensors that share memory.
        return hashlib.sha256(save({name: tensor.clone() for name, tensor in self.load().items()})).hexdigest()[:16]

    @cached_property
    def _code(self) -> str:
        """The digest of the file that defines the builder; of a builder without one (an interpreter's), its name."""
        try:
            return code_digest(Path(inspect.getsourcefile(self._build) or ""))
        except (OSError, TypeError, SyntaxError):
            return getattr(self._build, "__qualname__", type(self._build).__name__)


def find_file(folder: Path | None, names: list[str]) -> Path | None:
    """Return the first of these names that is in the folder of --weights-dir; None without a folder."""
    if folder is None:
        return None
    if not folder.is_dir():
        raise KdbenchError(f"--weights-dir {folder} is not a folder.")
    return next((folder / name for name in names if (folder / name).exists()), None)


def on_hub(repository: str) -> str:
    """Say whether this disk or the hub holds a repository's weights; nothing is downloaded."""
    if any(isinstance(huggingface_hub.try_to_load_from_cache(repository, name), str) for name in HUB_FILES):
        return "on this disk already"
    try:
        there = any(huggingface_hub.file_exists(repository, name) for name in HUB_FILES)
    except Exception as error:  # whatever keeps the hub away
        return f"not checked: {first_line(error)}"
    return "which has it" if there else "MISSING there"


def where_to_put(folder: Path | None, names: list[str]) -> str:
    """Say how to provide weights that are missing."""
    return f"Put one of these into {folder or 'a folder that --weights-dir names'}: {', '.join(names)}."


class Unread:
    """Stands for an object that is no tensor; nothing of it is built."""

    def __new__(cls, *args: Any) -> Unread:
        """Ignore what it was made of."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Ignore what it held."""


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """Read a file's content without running anything in it.

    What training scripts keep beside the weights (arguments in GKD's and DeiT's files, buffers of losses in mmengine's)
    becomes Unread; what torch cannot replace so (subclasses of dict and list) is an error.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with torch.serialization.safe_globals([(Unread, name) for name in _foreign(path)]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken, of another format, or of objects that are not tensors
        # torch's own words would advise to run what is in the file.
        beside = type(error).__name__ == "UnpicklingError" and zipfile.is_zipfile(path)
        reason = "beside tensors it holds objects that cannot be passed over" if beside else first_line(error)
        raise KdbenchError(
            f"{path} cannot be read as weights: {reason}. Download it again; if it holds other objects than tensors, "
            "save its state dict alone with safetensors."
        ) from error
    if not isinstance(found, Mapping):
        kind = "an object" if isinstance(found, Unread) else f"a {type(found).__name__}"
        raise KdbenchError(f"{path} holds {kind}, not a state dict. Save the model's state dict.")
    return found


def first_line(error: Exception) -> str:
    """Return an error's message without what a library adds below."""
    return str(error).strip().partition("\n")[0]


def _foreign(path: Path) -> list[str]:
    """Return the classes and functions that a file names beside those of tensors."""
    if not zipfile.is_zipfile(path):
        # PyTorch's format before 1.6 cannot be asked.
        return ["argparse.Namespace"]
    return torch.serialization.get_unsafe_globals_in_checkpoint(path)


def unwrap(checkpoint: Mapping[str, Any]) -> State:
    """Return the encoder's tensors without a training run's nesting and prefixes."""
    for name in NESTS:
        if isinstance(checkpoint.get(name), Mapping):
            return unwrap(checkpoint[name])
    state = {name: tensor for name, tensor in checkpoint.items() if isinstance(tensor, Tensor)}
    for prefix in PREFIXES:
        inside = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
        if inside:
            return unwrap(inside)
    return state


def checksum(path: Path) -> str:
    """Return the sha256 of a file's or a folder's content, its first 16 digits."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return _digest(tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()))


@lru_cache(maxsize=64)
def _digest(files: tuple[tuple[str, int, int], ...]) -> str:
    """Hash the files' content; sizes and times make a changed file be read again."""
    whole = hashlib.sha256()
    for name, _, _ in files:
        with Path(name).open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:16]


def convert(encoder: Encoder, state: State, what: str) -> State:
    """Convert its authors' names into an encoder's state dict (timm's conversion), at the file's patch size and grid.

    Raises KdbenchError with the names that are missing or unknown. what: the weights in words.
    """
    state = _without_distillation_token(dict(state), encoder)
    mask_token = state.get("mask_token")
    body = encoder.body
    _take_geometry(encoder, state)
    rename = getattr(inspect.getmodule(type(body)), "checkpoint_filter_fn", None)
    named = dict(rename(dict(state), body)) if rename is not None else state
    expected = set(body.state_dict())
    for name in [name for name in named if name.startswith("fc_norm.")]:
        if (plain := name.replace("fc_norm", "norm", 1)) in expected - set(named):
            named[plain] = named.pop(name)
    _fold_layer_scales(named, expected)
    # Files of before torch 0.4.1, torchvision's first ResNets among them, do not count batches, and nothing reads it.
    counters = {name: tensor for name, tensor in body.state_dict().items() if name.endswith(".num_batches_tracked")}
    named = {**counters, **named}
    missing = sorted(expected - set(named))
    unknown = sorted(n for n in set(named) - expected if not n.startswith(DROPPED) and n != "mask_token")
    shapes = [
        f"{name} {tuple(named[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in body.state_dict().items()
        if name in named and named[name].shape != tensor.shape
    ]
    faults = _listed({"missing": missing, "unknown": unknown, "shapes": shapes})
    if faults:
        raise KdbenchError(f"{what} does not fit {type(body).__name__}. {faults}. Is it another model's file?")
    return with_mask_token(encoder, {name: named[name] for name in expected}, mask_token)


def _fold_layer_scales(state: State, expected: set[str]) -> None:
    """Fold layer scales that the network lacks (GKD's DINO) into the linear layer before each: gamma (W x + b)."""
    for scale, layer in LAYER_SCALES.items():
        for name in [name for name in state if name.endswith(scale) and name not in expected]:
            linear = f"{name.removesuffix(scale)}{layer}"
            if f"{linear}.weight" not in state:
                continue
            gamma = state.pop(name)
            for part in (f"{linear}.{kind}" for kind in ("weight", "bias") if f"{linear}.{kind}" in state):
                state[part] = gamma.view(-1, *[1] * (state[part].ndim - 1)) * state[part]


def with_mask_token(encoder: Encoder, body: State, mask_token: Tensor | None) -> State:
    """Make an encoder's state of its body's and a mask token, which is zero where none of its width is given."""
    token = encoder.mask_token.detach().clone()
    # GKD's rule: the file's, where it has one, as DINOv2's and EVA-02's do; else zero, as for DeiT and DINO.
    if mask_token is not None and mask_token.numel() == token.numel():
        token = mask_token.detach().reshape(token.shape)
    return {f"{BODY}{name}": tensor for name, tensor in body.items()} | {"mask_token": token.float()}


def _without_distillation_token(state: State, encoder: Encoder) -> State:
    """Drop the second token of DeiT's distilled checkpoints and the second row of the positions."""
    if "dist_token" in state and not hasattr(encoder.body, "dist_token"):
        positions = state["pos_embed"]
        state["pos_embed"] = torch.cat((positions[:, :1], positions[:, 2:]), 1)
    return state


def _take_geometry(encoder: Encoder, state: State) -> None:
    """Bring the network to the file's patch size and grid, so that loading resamples nothing."""
    found = {f"{BODY}{name}": state[name] for name in ("patch_embed.proj.weight", "pos_embed") if name in state}
    registers = state.get("register_tokens")
    if f"{BODY}pos_embed" in found and registers is not None:
        # DINOv2 with registers: its positions have a row for the class token, which timm folds into the token.
        found[f"{BODY}pos_embed"] = found[f"{BODY}pos_embed"][:, 1:]
    encoder.take_geometry(found)


def _listed(faults: Mapping[str, list[str]]) -> str:
    """Return the first names of each kind of fault and how many more there are; empty without any."""
    more = {kind: f" and {len(names) - SHOWN} more" * (len(names) > SHOWN) for kind, names in faults.items()}
    return "; ".join(f"{kind}: {', '.join(names[:SHOWN])}{more[kind]}" for kind, names in faults.items() if names)
