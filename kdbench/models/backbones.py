"""Encoders: timm's networks, MiT from transformers and modules of users, each wrapped to give Features."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import GroupNorm1
from timm.models.eva import Eva
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdbench.errors import KdbenchError, unknown
from kdbench.errors import describe as describe_error
from kdbench.models.geometry import Geometry, PositionRule, resample_kernel, resample_positions
from kdbench.models.registry import TOY_MODELS, ModelSpec
from kdbench.types import Features, FeatureSpec

Layout = Literal["NHWC", "NCHW"]
PATCH = 8
TOY_IMAGE_SIZE = (64, 128)
"""Height and width of the images that toy models are pretrained on; other sizes resample the positions."""
TRIAL_SIZE = (64, 96)
"""Height and width of the image by which a network's maps are measured."""
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
"""How authors resample positions, by a part of the network's name in timm; plainly where none is there."""


class Encoder(nn.Module):
    """A network that gives Features for images in [0, 1] and can hide parts of its input behind a mask token.

    A subclass sets `spec` and implements `_features`.

    Args:
        body: the network. Its `pretrained_cfg`, if it has one as timm's do, gives mean and std of the colours.
        stem: the module of body whose output (B, h, w, C) or (B, C, h, w) a mask replaces by the mask token.
        width: C of the stem's output.
    """

    spec: FeatureSpec
    mean: Tensor
    std: Tensor
    decoder: Callable[[FeatureSpec, int], nn.Module] | None = None
    """Builds the decoder that takes the place of the protocol's; None as a rule."""

    def __init__(self, body: nn.Module, stem: nn.Module, width: int, stem_layout: Layout) -> None:
        super().__init__()
        self.body = body
        self.mask_token = nn.Parameter(torch.zeros(width))
        described = getattr(body, "pretrained_cfg", None) or {}
        for name, usual in (("mean", IMAGENET_DEFAULT_MEAN), ("std", IMAGENET_DEFAULT_STD)):
            self.register_buffer(name, torch.tensor(described.get(name, usual)).view(3, 1, 1), persistent=False)
        self._mask: Tensor | None = None
        self._stem_layout = stem_layout
        stem.register_forward_hook(self._hide)

    def normalise_as(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take other colours than those of the pretraining, by channel in [0, 1]."""
        for held, colour in ((self.mean, mean), (self.std, std)):
            held.copy_(torch.tensor(colour).view(3, 1, 1))

    def adapt(self, geometry: Geometry) -> None:
        """Bring the network to a patch size and a size of images; one without patches stays as it is."""

    def take_geometry(self, state: Mapping[str, Tensor]) -> None:
        """Bring the network to the patch size and the grid of a state dict; one without patches stays as it is."""

    def own_decoder(self, classes: int) -> nn.Module | None:
        """Build the decoder that takes the place of the protocol's; None where the network brings none."""
        return None if self.decoder is None else self.decoder(self.spec, classes)

    def forward(self, image: Tensor, mask: Tensor | None = None, blocks: Sequence[int] = ()) -> Features:
        """Return the features of images.

        Args:
            image: (B, 3, H, W) in [0, 1].
            mask: (B, h, w) bool, True = hidden.
            blocks: numbers of the extra block outputs, from 0 on or from -1 back; another number is a KdbenchError.
        """
        numbers = {block: self._number(block) for block in blocks}
        self._mask = mask
        try:
            return self._features((image - self.mean) / self.std, numbers)
        finally:
            self._mask = None

    def _number(self, block: int) -> int:
        count, name = len(self.spec.blocks), type(self.body).__name__
        if -count <= block < count:
            return block % count
        asked = f"Ask for 0 to {count - 1}, or from the end for -1 to -{count}."
        raise KdbenchError(f"block {block} is not among the {count} blocks of {name}. {asked}")

    def _features(self, image: Tensor, blocks: Mapping[int, int]) -> Features:
        """Return the features of normalised images. blocks: asked number -> number from 0 on."""
        raise NotImplementedError

    def _select(
        self,
        maps: Mapping[int, Tensor],
        levels: Sequence[int],
        blocks: Mapping[int, int],
        final: Tensor | None = None,
        pooled: Tensor | None = None,
    ) -> Features:
        """Make features of block outputs by number; final is the last level, and pooled its mean, where not given."""
        last = maps[levels[-1]] if final is None else final
        return Features(
            levels=tuple(maps[level] for level in levels),
            final=last,
            pooled=last.mean((2, 3)) if pooled is None else pooled,
            blocks={asked: maps[number] for asked, number in blocks.items()},
        )

    def _hide(self, stem: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Replace the stem's output by the mask token where the mask is set, before positions are added."""
        if self._mask is None:
            return output
        nhwc = output if self._stem_layout == "NHWC" else output.movedim(1, -1)
        hidden = F.interpolate(self._mask[:, None].float(), size=nhwc.shape[1:3], mode="nearest")[:, 0].bool()
        masked = torch.where(hidden[..., None], self.mask_token.to(nhwc.dtype), nhwc)
        return masked if self._stem_layout == "NHWC" else masked.movedim(-1, 1)


def has_batch_norms(network: nn.Module) -> bool:
    """Return whether a network has norms over the batch; frozen ones do not count."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())


KERNEL, POSITIONS = "body.patch_embed.proj.weight", "body.pos_embed"


class TokenEncoder(Encoder):
    """A plain transformer (ViT, EVA-02). Levels are four blocks before the final norm, as GKD's decoders read them.

    An image that its patches do not divide is padded at the right and the bottom with the mean colour, and its maps are
    cut back to the image; a mask's cells are then patches of the padded image.
    """

    def __init__(self, body: nn.Module, patch: int, positions: PositionRule = "plain") -> None:
        width, depth = int(body.embed_dim), len(body.blocks)  # type: ignore[arg-type]
        super().__init__(body, body.patch_embed, width, "NHWC")  # type: ignore[arg-type]
        self.taps = _taps(depth)
        self._width, self._depth, self._positions = width, depth, positions
        self._class_token = getattr(body, "cls_token", None) is not None
        self._set_patch(patch)

    def _set_patch(self, patch: int) -> None:
        self.patch = patch
        blocks = (self._width,) * self._depth
        self.spec = FeatureSpec((self._width,) * 4, (patch,) * 4, self._width, patch, self._class_token, blocks=blocks)

    def adapt(self, geometry: Geometry) -> None:
        """Resample the patch kernel and the positions; timm does the rest."""
        body: Any = self.body
        embed, grid = body.patch_embed, geometry.grid
        if geometry.patch == self.patch and grid == embed.grid_size:
            return
        kernel = resample_kernel(embed.proj.weight.detach(), geometry.patch, geometry.how)
        # The authors' own rule goes with their own patches; where those change, GKD resamples both plainly.
        rule: PositionRule = self._positions if geometry.patch == self.patch else "plain"
        positions = body.pos_embed
        if positions is not None:
            positions = resample_positions(positions.detach(), grid, embed.grid_size, geometry.how, rule)
        body.set_input_size((grid[0] * geometry.patch, grid[1] * geometry.patch), (geometry.patch, geometry.patch))
        body.patch_embed.proj.weight.data.copy_(kernel)
        if positions is not None:
            body.pos_embed.data.copy_(positions)
        self._set_patch(geometry.patch)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load as torch does, after taking on the patch size and the grid of what is loaded."""
        self.take_geometry(state_dict)
        return super().load_state_dict(state_dict, strict, assign)

    def take_geometry(self, state: Mapping[str, Tensor]) -> None:
        """Take on a state's patch size and grid; grids are square where they are not the network's own."""
        own = self.state_dict()
        found = {name: state[name] for name in (KERNEL, POSITIONS) if name in state and name in own}
        if KERNEL in found and any(tensor.shape != own[name].shape for name, tensor in found.items()):
            patch = found[KERNEL].shape[-1]
            side = self._grid_side(found.get(POSITIONS)) * patch
            self.adapt(Geometry(patch, (side, side), "bicubic"))

    def _grid_side(self, positions: Tensor | None) -> int:
        """Return the tokens on a side of the square images that a position embedding is for."""
        body: Any = self.body
        if positions is None:
            return int(body.patch_embed.grid_size[0])
        prefix = 0 if body.no_embed_class else body.num_prefix_tokens
        return math.isqrt(positions.shape[1] - prefix)

    def _features(self, image: Tensor, blocks: Mapping[int, int]) -> Features:
        wanted = sorted({*self.taps, *blocks.values()})
        size, whole = (image.shape[-2], image.shape[-1]), padded(image, self.patch)
        if self._mask is not None:
            # Convolutions of an embedding reach over a patch's edge: its neighbours must not see what is hidden either.
            whole = whole * (1 - F.interpolate(self._mask[:, None].float(), size=whole.shape[-2:], mode="nearest"))
        last, maps = self.body.forward_intermediates(whole, indices=wanted, norm=False)  # type: ignore[operator]
        by_block = {block: cut(map_, size, self.patch) for block, map_ in zip(wanted, maps, strict=True)}
        prefix = int(self.body.num_prefix_tokens)  # type: ignore[arg-type]
        grid = (whole.shape[-2] // self.patch, whole.shape[-1] // self.patch)
        final = cut(last[:, prefix:].transpose(1, 2).unflatten(2, grid), size, self.patch)
        return self._select(by_block, self.taps, blocks, final, last[:, 0] if self._class_token else None)


def _taps(depth: int) -> tuple[int, int, int, int]:
    """Return the blocks that decoders read: GKD's 3/5/7/11 of 12 and 7/11/15/23 of 24 as fractions of the depth."""
    return depth // 3 - 1, depth // 2 - 1, 2 * depth // 3 - 1, depth - 1


def padded(image: Tensor, patch: int) -> Tensor:
    """Pad normalised images (B, 3, H, W) with the mean colour to sides that the patch divides."""
    bottom, right = (-side % patch for side in image.shape[-2:])
    return F.pad(image, (0, right, 0, bottom)) if bottom or right else image


def cut(map_: Tensor, size: tuple[int, int], patch: int) -> Tensor:
    """Resample a padded image's map (B, C, h, w) to as many cells that cover the image (height, width) alone.

    The last cells reach over the image's edge: without this, decoders would take the map for the image's and shift what
    they find by up to a patch less a pixel.
    """
    rows, columns = (side / (patch * cells) for side, cells in zip(size, map_.shape[-2:], strict=True))
    if rows == columns == 1:
        return map_
    # Coordinates of a whole map go from -1 to 1; the image ends before that.
    to_image = torch.tensor([[columns, 0, columns - 1], [0, rows, rows - 1]], device=map_.device)
    places = F.affine_grid(to_image.expand(len(map_), 2, 3), list(map_.shape), align_corners=False)
    return F.grid_sample(map_.float(), places, padding_mode="border", align_corners=False).to(map_)


class PyramidEncoder(Encoder):
    """A network in resolution steps (ResNet, PVT as MiT's kind). Without a class token, pooled is the mean of final."""

    def __init__(
        self,
        body: nn.Module,
        stem: nn.Module,
        width: int,
        layout: Layout,
        stages: tuple[int, ...],
        convolutional: bool,
    ) -> None:
        described: Any = body.feature_info
        info = [described[stage] for stage in stages]
        channels = tuple(int(entry["num_chs"]) for entry in info)
        blocks = tuple(int(entry["num_chs"]) for entry in described)
        super().__init__(body, stem, width, layout)
        strides = tuple(int(entry["reduction"]) for entry in info)
        self.stages = stages
        self.spec = FeatureSpec(
            channels, strides, channels[-1], strides[-1], class_token=False, convolutional=convolutional,
            batch_norms=has_batch_norms(body), blocks=blocks,
        )  # fmt: skip

    def _features(self, image: Tensor, blocks: Mapping[int, int]) -> Features:
        wanted = sorted({*self.stages, *blocks.values()})
        maps = self.body.forward_intermediates(image, indices=wanted, intermediates_only=True)  # type: ignore[operator]
        return self._select(dict(zip(wanted, maps, strict=True)), self.stages, blocks)


class SamEncoder(Encoder):
    """Segment Anything's image encoder: maps in place of tokens, no class token, a neck behind the last block."""

    def __init__(self, body: Any) -> None:
        width, depth, patch = int(body.embed_dim), len(body.blocks), int(body.patch_embed.patch_size[0])
        super().__init__(body, body.patch_embed, width, "NHWC")
        self.taps = _taps(depth)
        self.spec = FeatureSpec(
            (width,) * 4, (patch,) * 4, int(body.num_features), patch, class_token=False, blocks=(width,) * depth
        )

    def _features(self, image: Tensor, blocks: Mapping[int, int]) -> Features:
        wanted = sorted({*self.taps, *blocks.values()})
        size, patch = (image.shape[-2], image.shape[-1]), self.spec.final_stride
        whole, maps = self.body.forward_intermediates(padded(image, patch), indices=wanted)  # type: ignore[operator]
        by_block = {block: cut(map_, size, patch) for block, map_ in zip(wanted, maps, strict=True)}
        return self._select(by_block, self.taps, blocks, cut(whole, size, patch))


class ModuleEncoder(Encoder):
    """Any module that maps images to feature maps (B, C, h, w), a list or dict from fine to coarse.

    Channels and strides are measured on a trial image. A mask replaces pixels by a learnt colour, which starts as the
    mean; blocks are the maps.
    """

    def __init__(self, body: nn.Module) -> None:
        pixels = nn.Identity()
        super().__init__(body, pixels, 3, "NCHW")
        self.pixels = pixels
        channels, strides = self._measure()
        self.spec = FeatureSpec(
            channels, strides, channels[-1], strides[-1], class_token=False, convolutional=has_batch_norms(body),
            batch_norms=has_batch_norms(body), blocks=channels,
        )  # fmt: skip

    def _maps(self, image: Tensor) -> tuple[Tensor, ...]:
        found = self.body(self.pixels(image))
        if isinstance(found, Tensor):
            return (found,)
        return tuple(found.values() if isinstance(found, Mapping) else found)

    def _measure(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return channels and strides of the maps. Raises KdbenchError where the module gives none."""
        name, (height, width) = type(self.body).__name__, TRIAL_SIZE
        first = next(self.body.parameters(), torch.empty(0))
        try:
            with in_eval_mode(self.body):
                maps = self._maps(torch.zeros(1, 3, height, width, device=first.device))
            channels = tuple(int(map_.shape[1]) for map_ in maps)
            strides = tuple(height // map_.shape[-2] for map_ in maps)
            fitting = [(height // stride, width // stride) for stride in strides]
        except Exception as error:  # a user's own code
            raise KdbenchError(
                f"{name} gives no maps (B, C, h, w) of an image of {height} x {width} pixels "
                f"({describe_error(error)}). Return a list of them, from fine to coarse, or an Encoder of your own."
            ) from error
        if not maps or [tuple(map_.shape[2:]) for map_ in maps] != fitting or list(strides) != sorted(strides):
            shapes = ", ".join(str(tuple(map_.shape)) for map_ in maps) or "nothing"
            raise KdbenchError(
                f"{name} gives {shapes} of an image of {height} x {width} pixels. Return maps (B, C, h, w) from fine "
                "to coarse whose sides divide the image's evenly, or an Encoder of your own."
            )
        return channels, strides

    def _features(self, image: Tensor, blocks: Mapping[int, int]) -> Features:
        return self._select(dict(enumerate(self._maps(image))), range(len(self.spec.channels)), blocks)


@contextlib.contextmanager
def in_eval_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode without gradients, and back into its own mode afterwards."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


class MixTransformer(nn.Module):
    """SegFormer's encoder (MiT) under the interface by which timm's networks give their maps."""

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

    def forward_intermediates(
        self, image: Tensor, indices: Sequence[int] = (0, 1, 2, 3), intermediates_only: bool = True
    ) -> list[Tensor]:
        """Return the maps of the steps that are asked for."""
        maps, x = [], image
        for stage in self.network.stages:
            x = stage(x)
            maps.append(x)
        return [maps[index] for index in indices]


def build_toy(spec: ModelSpec) -> Encoder:
    """Build a model's toy network with random weights; a ViT's grid is the image at stride 8."""
    if not spec.toy:
        raise unknown("toy model", spec.name, TOY_MODELS)
    size = dict(spec.toy)
    if spec.kind in ("vit", "eva"):
        common = {"img_size": TOY_IMAGE_SIZE, "patch_size": PATCH, "num_classes": 0, "global_pool": "token"}
        network = VisionTransformer if spec.kind == "vit" else Eva
        convolutions = size.pop("embedding", "") == "convolutions"
        body = network(**common, **size, dynamic_img_size=True)
        if convolutions:
            body.patch_embed.proj = _convolutions(size["embed_dim"])
        return TokenEncoder(body, PATCH)
    if spec.kind == "resnet":
        block = {"basic": BasicBlock, "bottleneck": Bottleneck}[size.pop("block")]
        # Output stride 8: at these image sizes a stride of 32 would leave no grid to distil.
        resnet = ResNet(block, **size, num_classes=0, output_stride=8)
        return PyramidEncoder(resnet, resnet.maxpool, 64, "NCHW", (1, 2, 3, 4), convolutional=True)
    pvt = PyramidVisionTransformerV2(num_classes=0, **size, sr_ratios=(4, 2, 1), mlp_ratios=(4.0, 4.0, 4.0))
    return PyramidEncoder(pvt, pvt.patch_embed, size["embed_dims"][0], "NHWC", (0, 1, 2), convolutional=False)


def _convolutions(width: int) -> nn.Module:
    """Build a patch embedding of three convolutions of stride 2 (Xiao et al., NeurIPS 2021), without batch norms."""
    channels = (width // 4, width // 2, width)
    stem: nn.Module = ConvStem(channels=channels, norm_layer=GroupNorm1, act_layer=nn.GELU)
    for module in stem.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return stem


def build_pretrained(spec: ModelSpec) -> Encoder:
    """Build a model's real network with random weights, for images of the size that it was pretrained on."""
    if spec.network.startswith(MIT):
        body = MixTransformer(spec.network.removeprefix(MIT))
        # Before the norm of the first patch embedding.
        stem: Any = body.network.stages[0]
        embed = stem.patch_embeddings.proj
        return PyramidEncoder(body, embed, body.widths[0], "NCHW", (0, 1, 2, 3), convolutional=False)
    name = spec.network.partition(".")[0]
    if not timm.is_model(spec.network):
        near = get_close_matches(name, timm.list_models(), n=8, cutoff=0.5)
        raise unknown("network of timm", name, near, "These are the nearest; timm.list_models() has all.")
    try:
        with torch.device("meta"):
            plain = timm.create_model(spec.network, num_classes=0)
    except RuntimeError as error:
        raise unknown_weights(spec.network) from error
    if isinstance(plain, VisionTransformer | Eva):
        # Any size of image, and the norm before the pooling: what follows is a map of normed tokens.
        pooling = "token" if plain.cls_token is not None else "avg"
        more = {} if pooling == "token" else {"fc_norm": False}
        tokens = timm.create_model(spec.network, num_classes=0, dynamic_img_size=True, global_pool=pooling, **more)
        rule: PositionRule = next((rule for mark, rule in POSITION_RULES.items() if mark in spec.network), "plain")
        return TokenEncoder(tokens, tokens.patch_embed.patch_size[0], rule)
    if isinstance(plain, VisionTransformerSAM):
        return SamEncoder(timm.create_model(spec.network, num_classes=0))
    return _pyramid(timm.create_model(spec.network, num_classes=0), spec.network)


def unknown_weights(network: str) -> KdbenchError:
    """Return an error for a tag of weights that timm does not have for a network, with those that it has."""
    name, _, tag = network.partition(".")
    known = [each.partition(".")[2] for each in timm.list_models(f"{name}.*", pretrained=True)]
    return unknown("weights", tag, known, where=f"of timm's '{name}'")


def describe_network(spec: ModelSpec) -> dict[str, str]:
    """Describe a model's network and weights for a list; nothing is allocated."""
    with torch.device("meta"):
        encoder = build_pretrained(spec)
    known: Any = timm.get_pretrained_cfg(spec.weights) if timm.is_model(spec.weights) else None
    features, taps = encoder.spec, getattr(encoder, "taps", ())
    licence = str(known.license or "?") if known is not None else "NVIDIA source code licence"
    mean = known.mean if known is not None and known.mean else IMAGENET_DEFAULT_MEAN
    return {
        "network": spec.network,
        "weights": spec.weights,
        "licence": f"{licence}, gated" if "dinov3" in spec.weights else licence,
        "parameters": f"{sum(p.numel() for p in encoder.parameters()) / 1e6:.1f} M",
        "patch or strides": str(features.final_stride) if taps else ", ".join(map(str, features.strides)),
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


def _stem_output(body: nn.Module, stem: nn.Module) -> tuple[int, Layout]:
    """Return channels and layout of a stem's output."""
    seen: list[torch.Size] = []
    hook = stem.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    with in_eval_mode(body):
        body.forward_intermediates(torch.zeros(1, 3, *TRIAL_SIZE))  # type: ignore[operator]
    hook.remove()
    _, a, b, c = seen[0]
    # Height to width is 2 to 3, as in the trial image, wherever they stand.
    return (c, "NHWC") if 3 * a == 2 * b else (a, "NCHW")
