"""Encoders on timm: one wrapper for token networks and one for convolutional or pyramid ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.eva import Eva
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdbench.errors import KdbenchError, unknown
from kdbench.models.geometry import Geometry, PositionRule, resample_kernel, resample_positions
from kdbench.models.registry import TOY_MODELS, ModelSpec
from kdbench.types import Features, FeatureSpec

REAL = "With its real weights it runs under --protocol paper."
PATCH = 8
TOY_IMAGE_SIZE = (64, 128)
"""Height and width of the images that the stand-ins are pretrained on; other sizes resample the positions."""


class Encoder(nn.Module):
    """A timm network that gives Features for images in [0, 1], and can hide parts of its input behind a mask token."""

    spec: FeatureSpec
    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, stem: nn.Module, width: int, stem_layout: Literal["NHWC", "NCHW"]) -> None:
        super().__init__()
        self.body = body
        self.mask_token = nn.Parameter(torch.zeros(width))
        described = getattr(body, "pretrained_cfg", None) or {}
        for name, usual in (("mean", IMAGENET_DEFAULT_MEAN), ("std", IMAGENET_DEFAULT_STD)):
            self.register_buffer(name, torch.tensor(described.get(name, usual)).view(3, 1, 1), persistent=False)
        self._mask: Tensor | None = None
        self._stem_layout = stem_layout
        stem.register_forward_hook(self._hide)

    def adapt(self, geometry: Geometry) -> None:
        """Brings the network to a patch size and a size of images; one without patches stays as it is."""

    def take_geometry(self, state: Mapping[str, Tensor]) -> None:
        """Brings the network to the patch size and the grid of a state dict; one without patches stays as it is."""

    def own_decoder(self, classes: int) -> nn.Module | None:
        """The decoder that comes with the network and takes the place of the protocol's; None, as a rule."""
        return None

    def forward(self, image: Tensor, mask: Tensor | None = None, blocks: Sequence[int] = ()) -> Features:
        """image (B, 3, H, W) in [0, 1]; mask (B, h, w) bool, True = hidden; blocks: which extra block outputs.

        Blocks are counted from 0 on, or from -1 back; a number that the network does not have is a KdbenchError.
        """
        numbers = {block: self._number(block) for block in blocks}
        self._mask = mask
        try:
            return self._features((image - self.mean) / self.std, numbers)
        finally:
            self._mask = None

    def _number(self, block: int) -> int:
        count = len(self.spec.blocks)
        if not -count <= block < count:
            raise KdbenchError(
                f"block {block} is not among the {count} blocks of {type(self.body).__name__}. "
                f"Ask for 0 to {count - 1}, or from the end for -1 to -{count}."
            )
        return block % count

    def _features(self, image: Tensor, blocks: Mapping[int, int]) -> Features:
        """blocks: the extra block outputs, as they were asked for and as counted from 0 on."""
        raise NotImplementedError

    def _hide(self, stem: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Replaces the stem's output where the mask is set, before any position embedding (formula sheet, 5.3)."""
        if self._mask is None:
            return output
        nhwc = output if self._stem_layout == "NHWC" else output.movedim(1, -1)
        hidden = F.interpolate(self._mask[:, None].float(), size=nhwc.shape[1:3], mode="nearest")[:, 0].bool()
        masked = torch.where(hidden[..., None], self.mask_token.to(nhwc.dtype), nhwc)
        return masked if self._stem_layout == "NHWC" else masked.movedim(-1, 1)


def has_batch_norms(network: nn.Module) -> bool:
    """Whether a network has norms over the batch; frozen ones, which are no such modules, do not count."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())


KERNEL, POSITIONS = "body.patch_embed.proj.weight", "body.pos_embed"


class TokenEncoder(Encoder):
    """A plain transformer (ViT, EVA-02). Levels are four blocks before the final norm, as GKD's decoders read them.

    An image that its patches do not divide is padded at the right and the bottom with the mean colour, and the maps are
    cut back to the image; a mask's cells are then patches of the padded image.
    """

    def __init__(self, body: nn.Module, patch: int, positions: PositionRule = "plain") -> None:
        width, depth = int(body.embed_dim), len(body.blocks)  # type: ignore[arg-type]
        super().__init__(body, body.patch_embed, width, "NHWC")  # type: ignore[arg-type]
        # GKD's taps, 3/5/7/11 of 12 and 7/11/15/23 of 24, as fractions of the depth.
        self.taps = (depth // 3 - 1, depth // 2 - 1, 2 * depth // 3 - 1, depth - 1)
        self._width, self._depth, self._positions = width, depth, positions
        self._class_token = getattr(body, "cls_token", None) is not None
        self._set_patch(patch)

    def _set_patch(self, patch: int) -> None:
        self.patch = patch
        blocks = (self._width,) * self._depth
        self.spec = FeatureSpec((self._width,) * 4, (patch,) * 4, self._width, patch, self._class_token, blocks=blocks)

    def adapt(self, geometry: Geometry) -> None:
        """As Encoder.adapt. The kernel and the positions are resampled; timm keeps the rest of the books."""
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
        """As in torch; the network first takes on the patch size and the grid of what it loads."""
        self.take_geometry(state_dict)
        return super().load_state_dict(state_dict, strict, assign)

    def take_geometry(self, state: Mapping[str, Tensor]) -> None:
        """As Encoder.take_geometry; grids are square where they are not the network's own."""
        own = self.state_dict()
        found = {name: state[name] for name in (KERNEL, POSITIONS) if name in state and name in own}
        if KERNEL in found and any(tensor.shape != own[name].shape for name, tensor in found.items()):
            patch = found[KERNEL].shape[-1]
            side = self._grid_side(found.get(POSITIONS)) * patch
            self.adapt(Geometry(patch, (side, side), "bicubic"))

    def _grid_side(self, positions: Tensor | None) -> int:
        """Tokens on a side of the square images that a position embedding is for."""
        body: Any = self.body
        if positions is None:
            return int(body.patch_embed.grid_size[0])
        prefix = 0 if body.no_embed_class else body.num_prefix_tokens
        return math.isqrt(positions.shape[1] - prefix)

    def _features(self, image: Tensor, blocks: Mapping[int, int]) -> Features:
        wanted = sorted({*self.taps, *blocks.values()})
        size, whole = (image.shape[-2], image.shape[-1]), padded(image, self.patch)
        last, maps = self.body.forward_intermediates(whole, indices=wanted, norm=False)  # type: ignore[operator]
        by_block = {block: cut(map_, size, self.patch) for block, map_ in zip(wanted, maps, strict=True)}
        prefix = int(self.body.num_prefix_tokens)  # type: ignore[arg-type]
        grid = (whole.shape[-2] // self.patch, whole.shape[-1] // self.patch)
        final = cut(last[:, prefix:].transpose(1, 2).unflatten(2, grid), size, self.patch)
        return Features(
            levels=tuple(by_block[tap] for tap in self.taps),
            final=final,
            pooled=last[:, 0] if self._class_token else final.mean((2, 3)),
            blocks={block: by_block[number] for block, number in blocks.items()},
        )


def padded(image: Tensor, patch: int) -> Tensor:
    """Normalised images (B, 3, H, W), filled up with the mean colour to sides that the patch divides."""
    bottom, right = (-side % patch for side in image.shape[-2:])
    return F.pad(image, (0, right, 0, bottom)) if bottom or right else image


def cut(map_: Tensor, size: tuple[int, int], patch: int) -> Tensor:
    """A padded image's map (B, C, h, w), to cells in the same number that cover the image (height, width) alone.

    The last cells reach over the image's edge: without a resampling, decoders would take the map for the image's and
    shift what they find by up to a patch less a pixel.
    """
    rows, columns = (side / (patch * cells) for side, cells in zip(size, map_.shape[-2:], strict=True))
    if rows == columns == 1:
        return map_
    # Coordinates of a map's whole are from -1 to 1; the image ends before that.
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
        layout: Literal["NHWC", "NCHW"],
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
        by_stage = dict(zip(wanted, maps, strict=True))
        final = by_stage[self.stages[-1]]
        return Features(
            levels=tuple(by_stage[stage] for stage in self.stages),
            final=final,
            pooled=final.mean((2, 3)),
            blocks={block: by_stage[number] for block, number in blocks.items()},
        )


def build_toy(role: ModelSpec) -> Encoder:
    """The small stand-in that plays a role, with random weights; a ViT's grid is the image at stride 8."""
    if not role.toy:
        raise unknown("stand-in of the mini zoo", role.name, TOY_MODELS, REAL)
    size = dict(role.toy)
    if role.kind in ("vit", "eva"):
        common = {"img_size": TOY_IMAGE_SIZE, "patch_size": PATCH, "num_classes": 0, "global_pool": "token"}
        network = VisionTransformer if role.kind == "vit" else Eva
        return TokenEncoder(network(**common, **size, dynamic_img_size=True), PATCH)
    if role.kind == "resnet":
        block = {"basic": BasicBlock, "bottleneck": Bottleneck}[size.pop("block")]
        # Output stride 8: at these image sizes a stride of 32 would leave no grid to distil.
        resnet = ResNet(block, **size, num_classes=0, output_stride=8)
        return PyramidEncoder(resnet, resnet.maxpool, 64, "NCHW", (1, 2, 3, 4), convolutional=True)
    pvt = PyramidVisionTransformerV2(num_classes=0, **size, sr_ratios=(4, 2, 1), mlp_ratios=(4.0, 4.0, 4.0))
    return PyramidEncoder(pvt, pvt.patch_embed, size["embed_dims"][0], "NHWC", (0, 1, 2), convolutional=False)
