"""A detectron2 config as a local student: its ResNet-FPN as encoder, its SemSegFPNHead as decoder."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import FPN, ResNet, build_backbone, build_sem_seg_head
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from safetensors.torch import load_file
from torch import Tensor, nn

from kdbench.errors import KdbenchError
from kdbench.models.backbones import Encoder
from kdbench.models.segmentor import Segmentor, seeded
from kdbench.types import IGNORE, Features, FeatureSpec, SegOutput

BODY = "backbone."
HEAD = "sem_seg_head."
"""What detectron2 puts before the names of a backbone's and a semantic head's weights in a checkpoint."""


class FPNEncoder(Encoder):
    """detectron2's ResNet-FPN.

    Levels are the maps that the head reads, p2 to p5 as a rule; final is the last, pooled its mean. Blocks are the
    ResNet's: 0 the stem, 1 to 4 its stages.
    """

    def __init__(self, body: nn.Module, levels: Sequence[str], config: CfgNode) -> None:
        bottom_up: Any = body.bottom_up
        stem = bottom_up.stem
        super().__init__(body, stem, int(stem.out_channels), "NCHW")
        self._bgr = config.INPUT.FORMAT == "BGR"
        # The config's numbers are for levels of 0 to 255, in its own order of channels.
        self.mean = self._per_channel(config.MODEL.PIXEL_MEAN)
        self.std = self._per_channel(config.MODEL.PIXEL_STD)
        self._levels = tuple(levels)
        self._blocks = (stem, *bottom_up.stages)
        shapes = [body.output_shape()[level] for level in levels]  # type: ignore[operator]
        channels, strides = tuple(int(s.channels) for s in shapes), tuple(int(s.stride) for s in shapes)
        self.spec = FeatureSpec(channels, strides, channels[-1], strides[-1], class_token=False, convolutional=True)

    def _per_channel(self, numbers: Sequence[float]) -> Tensor:
        """(3, 1, 1) in RGB and for images in [0, 1]."""
        return torch.tensor(numbers[::-1] if self._bgr else numbers).view(3, 1, 1) / 255

    def _features(self, image: Tensor, blocks: Sequence[int]) -> Features:
        divisor = int(self.body.size_divisibility)  # type: ignore[arg-type]
        if image.shape[-2] % divisor or image.shape[-1] % divisor:
            raise KdbenchError(
                f"detectron2's FPN needs image sides that are multiples of {divisor}, got {tuple(image.shape[-2:])}. "
                "Evaluate and train it with windows and crops of such a size."
            )
        kept: dict[int, Tensor] = {}
        hooks = [self._blocks[block].register_forward_hook(partial(_keep, kept, block)) for block in blocks]
        try:
            maps = self.body(image.flip(1) if self._bgr else image)
        finally:
            for hook in hooks:
                hook.remove()
        levels = tuple(maps[level] for level in self._levels)
        return Features(levels, final=levels[-1], pooled=levels[-1].mean((2, 3)), blocks=kept)


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
    checkpoint (.safetensors, or .pth without pickled objects); where None, the config's file if MODEL.WEIGHTS is one.
    Where that is an address, weights are drawn from the seed (nothing is downloaded), and FrozenBN becomes BN.
    """
    node = _prepared(config, classes)
    stated = "" if "://" in node.MODEL.WEIGHTS else node.MODEL.WEIGHTS
    path = Path(weights or stated) if weights or stated else None
    if path is None and node.MODEL.RESNETS.NORM == "FrozenBN":
        # Its statistics come with pretrained weights; without any, features grow a thousandfold.
        node.MODEL.RESNETS.NORM = "BN"
    student = seeded(partial(_build, node), "detectron2", seed)
    if path is not None:
        _load_weights(student, path)
    return student


def _prepared(config: CfgNode | Path | str, classes: int) -> CfgNode:
    node = _read(Path(config)) if isinstance(config, str | os.PathLike) else config.clone()
    node.defrost()
    if node.INPUT.FORMAT not in ("BGR", "RGB"):
        raise KdbenchError(f"INPUT.FORMAT is '{node.INPUT.FORMAT}'; a student is given colours: RGB or BGR.")
    node.MODEL.BACKBONE.FREEZE_AT = 0
    node.MODEL.SEM_SEG_HEAD.NUM_CLASSES = classes
    node.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = IGNORE
    return node


def _read(path: Path) -> CfgNode:
    shipped = _configs() / path
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


def _configs() -> Path:
    """Found without importing detectron2.model_zoo, which needs the pkg_resources of an old setuptools."""
    spec = importlib.util.find_spec("detectron2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model_zoo" / "configs"


def _build(config: CfgNode) -> Segmentor:
    body = build_backbone(config)
    if not isinstance(body, FPN) or not isinstance(body.bottom_up, ResNet):
        raise KdbenchError(
            f"MODEL.BACKBONE.NAME is '{config.MODEL.BACKBONE.NAME}'; a student needs an FPN on a ResNet, e.g. "
            "'build_resnet_fpn_backbone'."
        )
    head = build_sem_seg_head(config, body.output_shape())
    if not isinstance(head, SemSegFPNHead):
        raise KdbenchError(f"MODEL.SEM_SEG_HEAD.NAME is '{config.MODEL.SEM_SEG_HEAD.NAME}', not 'SemSegFPNHead'.")
    return Segmentor(FPNEncoder(body, head.in_features, config), SemanticFPN(head))


def _load_weights(student: Segmentor, path: Path) -> None:
    """Fills the student from a checkpoint: the ResNet has to be there whole, the FPN and the head may be missing."""
    state = _read_weights(path)
    body: Any = student.encoder.body
    head: Any = student.decoder.head
    wanted = {f"{BODY}{name}" for name in body.state_dict() if name.startswith("bottom_up.")}
    missing = sorted(name for name in wanted - set(state) if not name.endswith("num_batches_tracked"))
    if missing:
        raise KdbenchError(f"{path} lacks {missing[0]} (and {len(missing) - 1} more): it is of another backbone.")
    _fill(body, state, BODY, path)
    if (there := state.get(f"{HEAD}predictor.weight")) is not None and there.shape != head.predictor.weight.shape:
        # Trained for other classes: the last layer stays random, as in detectron2's own fine-tuning.
        state = {name: tensor for name, tensor in state.items() if not name.startswith(f"{HEAD}predictor.")}
    _fill(head, state, HEAD, path)


def _fill(module: nn.Module, state: Mapping[str, Tensor], prefix: str, path: Path) -> None:
    own = module.state_dict()
    given = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    wrong = sorted(name for name, tensor in given.items() if name not in own or own[name].shape != tensor.shape)
    if wrong:
        shown = f"{prefix}{wrong[0]} {tuple(given[wrong[0]].shape)}"
        raise KdbenchError(f"{path} does not fit the config: {shown} (and {len(wrong) - 1} more).")
    module.load_state_dict(given, strict=False)


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    if path.suffix not in (".safetensors", ".pth"):
        raise KdbenchError(
            f"weights are read from .safetensors or .pth, not from {path}: a pickle can run code. Convert it where it "
            "is trusted: torch.save({name: torch.as_tensor(array)}, 'converted.pth')."
        )
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = content.get("model", content)
        return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    except Exception as error:
        raise KdbenchError(f"{path} cannot be read as weights ({type(error).__name__}: {error}).") from error
