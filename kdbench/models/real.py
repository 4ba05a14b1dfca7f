"""The real networks by role: timm's, wrapped as encoders, MiT from transformers, and detectron2's by their configs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn

from kdbench.errors import KdbenchError, unknown
from kdbench.errors import describe as describe_error
from kdbench.models.backbones import Encoder, PyramidEncoder, TokenEncoder, cut, padded
from kdbench.models.geometry import PositionRule
from kdbench.models.registry import ModelSpec
from kdbench.types import Features, FeatureSpec

STEMS = ("maxpool", "stem", "bn1", "patch_embed")
"""Attributes of timm's networks whose output a mask hides, the first that is there."""
STRIDES = (4, 8, 16, 32)
MIT = "nvidia/mit-"
# Width and depths of MiT-B0 to B5 (Xie et al., SegFormer, NeurIPS 2021, table 6).
_MIT_SIZES = {
    "b0": (32, (2, 2, 2, 2)), "b1": (64, (2, 2, 2, 2)), "b2": (64, (3, 4, 6, 3)), "b3": (64, (3, 4, 18, 3)),
    "b4": (64, (3, 8, 27, 3)), "b5": (64, (3, 6, 40, 3)),
}  # fmt: skip

POSITION_RULES: dict[str, PositionRule] = {"14_dinov2": "offset", "14_reg4_dinov2": "antialiased"}
"""How authors resample positions, by what timm's name of a network holds; else plainly."""


def build_real(role: ModelSpec, trained: bool = True) -> Encoder:
    """The network that a role names, with random weights, for images of the size that it was pretrained on.

    trained: whether pretrained weights follow, without which a detectron2 config's frozen norms would be of no use.
    """
    if role.of_detectron2:
        # Optional, and seconds to load.
        from kdbench.integrations.detectron2.student import build_encoder

        return build_encoder(role.network, trained)
    if role.network.startswith(MIT):
        body = MixTransformer(role.network.removeprefix(MIT))
        return PyramidEncoder(body, body.stem, body.widths[0], "NCHW", (0, 1, 2, 3), convolutional=False)
    name = role.network.partition(".")[0]
    if not timm.is_model(role.network):
        near = get_close_matches(name, timm.list_models(), n=8, cutoff=0.5)
        raise unknown("network of timm", name, near, "These are the nearest; timm.list_models() has all.")
    try:
        with torch.device("meta"):
            plain = timm.create_model(role.network, num_classes=0)
    except RuntimeError as error:
        raise unknown_weights(role.network) from error
    if isinstance(plain, VisionTransformer | Eva):
        # Any size of image, and the norm before the pooling: what follows is a map of normed tokens.
        pooling = "token" if plain.cls_token is not None else "avg"
        more = {} if pooling == "token" else {"fc_norm": False}
        tokens = timm.create_model(role.network, num_classes=0, dynamic_img_size=True, global_pool=pooling, **more)
        rule: PositionRule = next((rule for mark, rule in POSITION_RULES.items() if mark in role.network), "plain")
        return TokenEncoder(tokens, tokens.patch_embed.patch_size[0], rule)
    if isinstance(plain, VisionTransformerSAM):
        return SamEncoder(timm.create_model(role.network, num_classes=0))
    return _pyramid(timm.create_model(role.network, num_classes=0), role.network)


def unknown_weights(network: str) -> KdbenchError:
    """An error for a network of timm with a tag of weights that it does not have."""
    name, _, tag = network.partition(".")
    known = [each.partition(".")[2] for each in timm.list_models(f"{name}.*", pretrained=True)]
    return unknown(f"weights of timm's '{name}'", tag, known)


def describe(role: ModelSpec) -> dict[str, str]:
    """A role's network and weights in words; nothing is allocated."""
    with torch.device("meta"):
        encoder = build_real(role)
    known: Any = timm.get_pretrained_cfg(role.weights) if timm.is_model(role.weights) else None
    spec, taps = encoder.spec, getattr(encoder, "taps", ())
    licence = str(known.license or "?") if known is not None else "NVIDIA source code licence"
    mean = known.mean if known is not None and known.mean else IMAGENET_DEFAULT_MEAN
    return {
        "network": role.network,
        "weights": role.weights,
        "licence": f"{licence}, gated" if "dinov3" in role.weights else licence,
        "parameters": f"{sum(p.numel() for p in encoder.parameters()) / 1e6:.1f} M",
        "patch or strides": str(spec.final_stride) if taps else ", ".join(map(str, spec.strides)),
        "levels from blocks": ", ".join(map(str, taps)) or "every step",
        "normalised as": "ImageNet" if tuple(mean) == IMAGENET_DEFAULT_MEAN else "CLIP",
    }


def _pyramid(body: nn.Module, network: str) -> Encoder:
    stem = next((getattr(body, name) for name in STEMS if isinstance(getattr(body, name, None), nn.Module)), None)
    described: Any = getattr(body, "feature_info", None)
    if stem is None or described is None or not hasattr(body, "forward_intermediates"):
        raise KdbenchError(
            f"timm's network '{network}' gives no maps of its steps (feature_info, forward_intermediates) or has no "
            f"stem by a known name ({', '.join(STEMS)}). Choose another network."
        )
    reductions = [int(entry["reduction"]) for entry in described]
    # The last step of each stride: some networks have several.
    stages = tuple(
        max(i for i, r in enumerate(reductions) if r == stride) for stride in STRIDES if stride in reductions
    )
    try:
        width, layout = _stem_output(body, stem)
    except Exception as error:  # whatever a network's own code does with images of another size than its own
        raise KdbenchError(
            f"timm's network '{network}' gives no maps of images of 64 x 96 pixels ({describe_error(error)}). Choose "
            "one that takes images of any size."
        ) from error
    return PyramidEncoder(body, stem, width, layout, stages, convolutional=layout == "NCHW")


def _stem_output(body: nn.Module, stem: nn.Module) -> tuple[int, Literal["NHWC", "NCHW"]]:
    """Channels and layout of the map that a stem gives."""
    seen: list[torch.Size] = []
    hook = stem.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    training = body.training
    with torch.no_grad():
        body.eval().forward_intermediates(torch.zeros(1, 3, 64, 96))  # type: ignore[operator]
    body.train(training)
    hook.remove()
    _, a, b, c = seen[0]
    # 64 x 96 pixels: height and width are two to three wherever they stand.
    return (c, "NHWC") if 3 * a == 2 * b else (a, "NCHW")


class SamEncoder(Encoder):
    """Segment Anything's image encoder: maps in place of tokens, no class token, a neck behind the last block."""

    def __init__(self, body: Any) -> None:
        width, depth, patch = int(body.embed_dim), len(body.blocks), int(body.patch_embed.patch_size[0])
        super().__init__(body, body.patch_embed, width, "NHWC")
        self.taps = (depth // 3 - 1, depth // 2 - 1, 2 * depth // 3 - 1, depth - 1)
        self.spec = FeatureSpec(
            (width,) * 4, (patch,) * 4, int(body.num_features), patch, class_token=False, blocks=(width,) * depth
        )

    def _features(self, image: Tensor, blocks: Mapping[int, int]) -> Features:
        wanted = sorted({*self.taps, *blocks.values()})
        size, patch = (image.shape[-2], image.shape[-1]), self.spec.final_stride
        whole, maps = self.body.forward_intermediates(padded(image, patch), indices=wanted)  # type: ignore[operator]
        by_block = {block: cut(map_, size, patch) for block, map_ in zip(wanted, maps, strict=True)}
        final = cut(whole, size, patch)
        return Features(
            levels=tuple(by_block[tap] for tap in self.taps),
            final=final,
            pooled=final.mean((2, 3)),
            blocks={block: by_block[number] for block, number in blocks.items()},
        )


class MixTransformer(nn.Module):
    """SegFormer's encoder with the two members by which timm's networks give their maps."""

    def __init__(self, size: str) -> None:
        super().__init__()
        from transformers import SegformerConfig, SegformerModel

        if size not in _MIT_SIZES:
            raise unknown("size of MiT", size, _MIT_SIZES)
        width, depths = _MIT_SIZES[size]
        self.widths = [width, 2 * width, 5 * width, 8 * width]
        self.network = SegformerModel(SegformerConfig(hidden_sizes=self.widths, depths=list(depths)))
        self.feature_info = [
            {"num_chs": channels, "reduction": stride} for channels, stride in zip(self.widths, STRIDES, strict=True)
        ]

    @property
    def stem(self) -> nn.Module:
        """The first overlapping patches, before their norm."""
        first: Any = self.network.stages[0]
        stem: nn.Module = first.patch_embeddings.proj
        return stem

    def forward_intermediates(
        self, image: Tensor, indices: Sequence[int] = (0, 1, 2, 3), intermediates_only: bool = True
    ) -> list[Tensor]:
        """The maps of the steps that are asked for."""
        maps, x = [], image
        for stage in self.network.stages:
            x = stage(x)
            maps.append(x)
        return [maps[index] for index in indices]
