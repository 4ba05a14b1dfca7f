"""A detectron2 config as a student: its ResNet-FPN as encoder, its SemSegFPNHead as decoder.

kdbench finds it by the entry point `detectron2/` of the group kdbench.models. detectron2 is optional: without it the
import of this module is a KdbenchError.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import KdbenchError
from kdbench.identity import digest
from kdbench.models.backbones import Encoder, cut, has_batch_norms, padded
from kdbench.models.registry import ModelSpec
from kdbench.models.segmentor import SegmentationModel, seeded
from kdbench.models.weights import ENDINGS, Model, State, checksum, find_file, read_checkpoint, where_to_put
from kdbench.types import IGNORE, Features, FeatureSpec, SegOutput

try:
    import detectron2
    from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
    from detectron2.config import CfgNode, get_cfg
    from detectron2.modeling import FPN, ResNet, build_backbone, build_sem_seg_head
    from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
except ImportError as error:
    raise KdbenchError(
        f"detectron2 cannot be imported ({error}): install it from its repository with `pip install "
        "--no-build-isolation git+https://github.com/facebookresearch/detectron2`."
    ) from error

PREFIX = "detectron2/"
BODY = "backbone."
HEAD = "sem_seg_head."
"""What detectron2 puts before the names of a backbone's and a semantic head's weights in a checkpoint."""
CONVERT = (
    "A .pkl is refused, since a pickle can run code. Convert it where it is trusted: "
    "torch.save({name: torch.as_tensor(array) for name, array in content.items()}, 'R-50.pth')."
)


def find(name: str) -> ModelSpec:
    """Return the student of a config: `detectron2/` and a file, or its name below detectron2's own configs/."""
    return ModelSpec(name, "local", network=name.removeprefix(PREFIX), decoder="its config's head", source=ConfigModel)


@dataclass(frozen=True)
class ConfigModel(Model):
    """A config's encoder, as kdbench.models.weights.Model.

    Its weights are a file in the folder of --weights-dir, else the local file that the config names; where it names
    none, they are random. An address is not downloaded.
    """

    spec: ModelSpec
    folder: Path | None = None

    def build(self) -> Encoder:
        """As Model.build."""
        return build_encoder(self.spec.network, trained=not self._random)

    def key(self) -> str:
        """As Model.key."""
        return f"{config_key(self.spec.network)}-{self.weights()}"

    def weights(self) -> str:
        """As Model.weights."""
        file = self._file
        return f"file-{checksum(file)}" if file else "random" if self._random else "missing"

    def load(self) -> State:
        """As Model.load. What the file lacks (the FPN, of an ImageNet model) is drawn alike for every seed."""
        file = self._file
        if file is None and not self._random:
            raise KdbenchError(
                f"'{self.spec.name}' starts from {self._stated}, which is no file here and is not downloaded. "
                f"{self._repair} {CONVERT}"
            )
        encoder = seeded(self.build, "detectron2", 0)
        if file is not None:
            load_encoder(encoder, file)
        return encoder.state_dict()

    def origin(self) -> str:
        """As Model.origin."""
        if self._random:
            return "nowhere, random: its config names none"
        return str(self._file or f"MISSING: {self._repair}")

    @property
    def _stated(self) -> str:
        """What the config says of its weights: an address, a file, or nothing."""
        return str(read_config(self.spec.network).MODEL.WEIGHTS)

    @property
    def _file(self) -> Path | None:
        found = find_file(self.folder, self._names)
        return found or (stated if (stated := Path(self._stated)).is_file() else None)

    @property
    def _random(self) -> bool:
        return not self._stated and self._file is None

    @property
    def _names(self) -> list[str]:
        """The file names under which the folder is searched: as the config or as the file that it names."""
        stems = dict.fromkeys(Path(name).stem for name in (self.spec.network, self._stated) if name)
        return [f"{stem}.{ending}" for stem in stems for ending in ENDINGS]

    @property
    def _repair(self) -> str:
        return where_to_put(self.folder, self._names)


class FPNEncoder(Encoder):
    """detectron2's ResNet-FPN.

    Levels are the maps that the head reads, p2 to p5 as a rule; final is the last, pooled its mean. Blocks are the
    ResNet's: 0 the stem, 1 to 4 its stages.
    """

    def __init__(self, config: CfgNode) -> None:
        body = build_backbone(config)
        if not isinstance(body, FPN) or not isinstance(body.bottom_up, ResNet):
            raise KdbenchError(
                f"MODEL.BACKBONE.NAME is '{config.MODEL.BACKBONE.NAME}'; a student needs an FPN on a ResNet, e.g. "
                "'build_resnet_fpn_backbone'."
            )
        stem = body.bottom_up.stem
        super().__init__(body, stem, int(stem.out_channels), "NCHW")
        self._config = config
        self._bgr = config.INPUT.FORMAT == "BGR"
        # The config's numbers are for levels of 0 to 255, in its own order of channels.
        self.mean = self._per_channel(config.MODEL.PIXEL_MEAN)
        self.std = self._per_channel(config.MODEL.PIXEL_STD)
        self._blocks = (stem, *body.bottom_up.stages)
        read = {name: s for name, s in body.output_shape().items() if name in config.MODEL.SEM_SEG_HEAD.IN_FEATURES}
        # The head's own order.
        self._levels = sorted(read, key=lambda name: read[name].stride)
        channels = tuple(int(read[name].channels) for name in self._levels)
        strides = tuple(int(read[name].stride) for name in self._levels)
        self.spec = FeatureSpec(
            channels, strides, channels[-1], strides[-1], class_token=False, convolutional=True,
            batch_norms=has_batch_norms(body),
            blocks=tuple(int(part.out_channels) for part in (stem, *(stage[-1] for stage in body.bottom_up.stages))),
        )  # fmt: skip

    def _per_channel(self, numbers: Sequence[float]) -> Tensor:
        """Return numbers of the config as (3, 1, 1), in RGB and for images in [0, 1]."""
        return torch.tensor(numbers[::-1] if self._bgr else numbers).view(3, 1, 1) / 255

    def own_decoder(self, classes: int) -> SemanticFPN:
        """Build the config's head with random weights, for our number of classes in place of the config's."""
        config = self._config.clone()
        config.MODEL.SEM_SEG_HEAD.NUM_CLASSES = classes
        config.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = IGNORE
        head = build_sem_seg_head(config, self.body.output_shape())  # type: ignore[operator]
        if not isinstance(head, SemSegFPNHead):
            raise KdbenchError(f"MODEL.SEM_SEG_HEAD.NAME is '{config.MODEL.SEM_SEG_HEAD.NAME}', not 'SemSegFPNHead'.")
        return SemanticFPN(head)

    def _features(self, image: Tensor, blocks: Mapping[int, int]) -> Features:
        size, whole = (image.shape[-2], image.shape[-1]), padded(image, int(self.body.size_divisibility))  # type: ignore[arg-type]
        kept: dict[int, Tensor] = {}
        hooks = [
            self._blocks[number].register_forward_hook(partial(_keep, kept, block)) for block, number in blocks.items()
        ]
        try:
            maps = self.body(whole.flip(1) if self._bgr else whole)
        finally:
            for hook in hooks:
                hook.remove()

        def fitted(map_: Tensor) -> Tensor:
            return cut(map_, size, whole.shape[-1] // map_.shape[-1])

        levels = tuple(fitted(maps[level]) for level in self._levels)
        blocks_kept = {block: fitted(map_) for block, map_ in kept.items()}
        return Features(levels, final=levels[-1], pooled=levels[-1].mean((2, 3)), blocks=blocks_kept)


def _keep(kept: dict[int, Tensor], block: int, module: nn.Module, inputs: Any, output: Tensor) -> None:
    kept[block] = output


class SemanticFPN(nn.Module):
    """detectron2's SemSegFPNHead as a decoder."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head: Any = head

    def forward(self, features: Features) -> SegOutput:
        """Return logits (B, K, h, w) at the head's common stride, 4 as a rule, in training mode and out of it."""
        by_name = dict(zip(self.head.in_features, features.levels, strict=True))
        return SegOutput(features, self.head.layers(by_name))

    def loss(self, output: SegOutput, label: Tensor) -> dict[str, Tensor]:
        """Return the head's cross-entropy, a mean over labelled pixels times the config's weight; 0 without any."""
        losses: dict[str, Tensor] = self.head.losses(output.logits, label)
        labelled = (label != IGNORE).any()
        # A mean over no pixel is not a number; selected without asking the device.
        return {name: loss.where(labelled, output.logits.sum() * 0) for name, loss in losses.items()}


def student_from_config(
    config: CfgNode | Path | str, classes: int, weights: Path | None = None, seed: int = 0
) -> SegmentationModel:
    """Build the semantic part of a detectron2 model, FPN and semantic head, for images (B, 3, H, W) in [0, 1].

    config: a node, a file, or a file's name below detectron2's own configs/, e.g. `Misc/semantic_R_50_FPN_1x.yaml`.
    classes: in place of the config's number; FREEZE_AT is ignored too, since a stage says what trains. weights: a
    checkpoint (.safetensors, or .pth, of which tensors alone are read); where None, the config's file if MODEL.WEIGHTS
    is one. Where that is an address, weights are drawn from the seed (nothing is downloaded), and FrozenBN becomes BN.
    """
    node = read_config(config)
    stated = "" if "://" in node.MODEL.WEIGHTS else node.MODEL.WEIGHTS
    path = Path(weights or stated) if weights or stated else None

    def build() -> SegmentationModel:
        encoder = build_encoder(node, trained=path is not None)
        return SegmentationModel(encoder, encoder.own_decoder(classes))

    student = seeded(build, "detectron2", seed)
    if path is not None:
        _load_head(student.decoder, load_encoder(student.encoder, path), path)
    return student


def read_config(config: CfgNode | Path | str) -> CfgNode:
    """Return a copy of a config as a student takes it, from a node, a file, or a name below detectron2's configs/."""
    node = _read(Path(config)) if isinstance(config, str | os.PathLike) else config.clone()
    node.defrost()
    if node.INPUT.FORMAT not in ("BGR", "RGB"):
        raise KdbenchError(f"INPUT.FORMAT is '{node.INPUT.FORMAT}'; a student is given colours: RGB or BGR.")
    node.MODEL.BACKBONE.FREEZE_AT = 0
    return node


def _read(path: Path) -> CfgNode:
    # Found without importing detectron2.model_zoo, which needs the pkg_resources of an old setuptools.
    shipped = Path(detectron2.__file__).parent / "model_zoo" / "configs" / path
    found = path if path.is_file() else shipped
    if not found.is_file():
        raise KdbenchError(f"there is no config {path}, nor {shipped}. Give a .yaml file, or its name below there.")
    node = get_cfg()
    try:
        # detectron2's own default lets a file run code.
        node.merge_from_file(str(found), allow_unsafe=False)
    except Exception as error:
        raise KdbenchError(f"{found} is no config that detectron2 reads ({type(error).__name__}: {error}).") from error
    return node


def build_encoder(config: CfgNode | Path | str, trained: bool) -> FPNEncoder:
    """Build a config's encoder with random weights. trained: weights from a file follow; else FrozenBN becomes BN."""
    node = read_config(config)
    if not trained and node.MODEL.RESNETS.NORM == "FrozenBN":
        # Its statistics come with pretrained weights; without any, features grow a thousandfold.
        node.MODEL.RESNETS.NORM = "BN"
    return FPNEncoder(node)


def config_key(config: CfgNode | Path | str) -> str:
    """Identify what a config's network computes, wherever its file lies: its model, and detectron2's version."""
    node = read_config(config)
    node.MODEL.WEIGHTS = ""
    return f"detectron2-{digest([detectron2.__version__, node.MODEL.dump(), node.INPUT.FORMAT])}"


def load_encoder(encoder: Encoder, path: Path) -> Mapping[str, Tensor]:
    """Fill an encoder from a checkpoint and return that; the ResNet has to be there whole, the FPN may be missing.

    Names are those of detectron2's checkpoints or of its ImageNet models, Caffe2's among them.
    """
    body = encoder.body
    state = _named(_read_weights(path), {f"{BODY}{name}": tensor for name, tensor in body.state_dict().items()}, path)
    missing = [name for name in _fill(body, state, BODY, path) if name.startswith("bottom_up.")]
    if missing:
        raise KdbenchError(f"{path} lacks {BODY}{missing[0]} (and {len(missing) - 1} more): it is of another backbone.")
    return state


def _load_head(decoder: Any, state: Mapping[str, Tensor], path: Path) -> None:
    there = state.get(f"{HEAD}predictor.weight")
    if there is not None and there.shape != decoder.head.predictor.weight.shape:
        # Trained for other classes: the last layer stays random, as in detectron2's own fine-tuning.
        state = {name: tensor for name, tensor in state.items() if not name.startswith(f"{HEAD}predictor.")}
    _fill(decoder.head, state, HEAD, path)


def _named(state: dict[str, Tensor], own: dict[str, Tensor], path: Path) -> Mapping[str, Tensor]:
    """Rename a checkpoint's tensors to ours by detectron2's own rules; what is of nothing here keeps its name."""
    try:
        # Names in Caffe2 have no dots.
        found: dict[str, Tensor] = align_and_update_state_dicts(own, state, not any("." in name for name in state))
    except (AssertionError, ValueError) as error:
        raise KdbenchError(f"{path} has names that detectron2 cannot match with a ResNet-FPN ({error}).") from error
    return found


def _fill(module: nn.Module, state: Mapping[str, Tensor], prefix: str, path: Path) -> list[str]:
    """Load what stands behind a prefix; return what was missing, save statistics that FrozenBN can do without."""
    own = module.state_dict()
    given = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    wrong = sorted(name for name, tensor in given.items() if name not in own or own[name].shape != tensor.shape)
    if wrong:
        shown = f"{prefix}{wrong[0]} {tuple(given[wrong[0]].shape)}"
        raise KdbenchError(f"{path} does not fit the config: {shown} (and {len(wrong) - 1} more).")
    missing: list[str] = module.load_state_dict(given, strict=False).missing_keys
    return missing


def _read_weights(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".pkl":
        raise KdbenchError(f"{path} cannot be read. {CONVERT}")
    content = read_checkpoint(path)
    state = content.get("model", content)
    if not isinstance(state, Mapping):
        raise KdbenchError(f"{path} cannot be read as weights: its 'model' is a {type(state).__name__}.")
    # A counter, which FrozenBN does not have and BN does not need.
    names = [name for name in state if isinstance(state[name], Tensor) and not name.endswith("num_batches_tracked")]
    return {name: state[name] for name in names}
