"""A detectron2 config as a student: its ResNet-FPN as encoder, its SemSegFPNHead as decoder.

Import this module where it is needed: detectron2 is optional, and without it the import is a KdbenchError.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import KdbenchError
from kdbench.identity import digest
from kdbench.models.backbones import Encoder, cut, has_batch_norms, padded
from kdbench.models.checkpoint import read_checkpoint
from kdbench.models.segmentor import Segmentor, seeded
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

BODY = "backbone."
HEAD = "sem_seg_head."
"""What detectron2 puts before the names of a backbone's and a semantic head's weights in a checkpoint."""
CONVERT = (
    "A .pkl is refused, since a pickle can run code. Convert it where it is trusted: "
    "torch.save({name: torch.as_tensor(array) for name, array in content.items()}, 'R-50.pth')."
)


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
        """(3, 1, 1) in RGB and for images in [0, 1]."""
        return torch.tensor(numbers[::-1] if self._bgr else numbers).view(3, 1, 1) / 255

    def own_decoder(self, classes: int) -> SemanticFPN:
        """The config's head with random weights, for our number of classes in place of the config's."""
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
        """Logits (B, K, h, w) at the head's common stride, 4 as a rule, in training mode and out of it."""
        by_name = dict(zip(self.head.in_features, features.levels, strict=True))
        return SegOutput(features, self.head.layers(by_name))

    def loss(self, output: SegOutput, label: Tensor) -> dict[str, Tensor]:
        """The head's cross-entropy, a plain mean over labelled pixels with the config's weight; 0 where none is."""
        losses: dict[str, Tensor] = self.head.losses(output.logits, label)
        labelled = (label != IGNORE).any()
        # A mean over no pixel is not a number; selected without asking the device.
        return {name: loss.where(labelled, output.logits.sum() * 0) for name, loss in losses.items()}


def student_from_config(
    config: CfgNode | Path | str, classes: int, weights: Path | None = None, seed: int = 0
) -> Segmentor:
    """The semantic part of a detectron2 model: its FPN and its semantic head, for images (B, 3, H, W) in [0, 1].

    config: a node, a file, or a file's name below detectron2's own configs/, e.g. `Misc/semantic_R_50_FPN_1x.yaml`.
    classes: in place of the config's number; FREEZE_AT is ignored too, since a stage says what trains. weights: a
    checkpoint (.safetensors, or .pth, of which tensors alone are read); where None, the config's file if MODEL.WEIGHTS
    is one. Where that is an address, weights are drawn from the seed (nothing is downloaded), and FrozenBN becomes BN.
    """
    node = read_config(config)
    stated = "" if "://" in node.MODEL.WEIGHTS else node.MODEL.WEIGHTS
    path = Path(weights or stated) if weights or stated else None

    def build() -> Segmentor:
        encoder = build_encoder(node, trained=path is not None)
        return Segmentor(encoder, encoder.own_decoder(classes))

    student = seeded(build, "detectron2", seed)
    if path is not None:
        _load_head(student.decoder, load_encoder(student.encoder, path), path)
    return student


def read_config(config: CfgNode | Path | str) -> CfgNode:
    """A copy of a config, as a student takes it; a name is a file's, or that of one below detectron2's own configs/."""
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
    """A config's encoder with random weights. trained: whether weights from a file follow; else FrozenBN becomes BN."""
    node = read_config(config)
    if not trained and node.MODEL.RESNETS.NORM == "FrozenBN":
        # Its statistics come with pretrained weights; without any, features grow a thousandfold.
        node.MODEL.RESNETS.NORM = "BN"
    return FPNEncoder(node)


def config_key(config: CfgNode | Path | str) -> str:
    """What a config's network computes, wherever the file and its weights lie: its model, and detectron2's version."""
    node = read_config(config)
    node.MODEL.WEIGHTS = ""
    return f"detectron2-{digest([detectron2.__version__, node.MODEL.dump(), node.INPUT.FORMAT])}"


def load_encoder(encoder: Encoder, path: Path) -> Mapping[str, Tensor]:
    """Fills an encoder from a checkpoint, which it returns: the ResNet has to be there whole, the FPN may be missing.

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
    """A checkpoint under our names by detectron2's own rules; what is of nothing here keeps its name."""
    try:
        # Names in Caffe2 have no dots.
        found: dict[str, Tensor] = align_and_update_state_dicts(own, state, not any("." in name for name in state))
    except (AssertionError, ValueError) as error:
        raise KdbenchError(f"{path} has names that detectron2 cannot match with a ResNet-FPN ({error}).") from error
    return found


def _fill(module: nn.Module, state: Mapping[str, Tensor], prefix: str, path: Path) -> list[str]:
    """Loads what stands behind a prefix; returns what was missing, save the statistics that FrozenBN can do without."""
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
