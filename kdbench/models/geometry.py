"""Resamples a transformer's patch kernel and position embedding to another patch size and grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

Resampling = Literal["bicubic", "pseudo-inverse"]
"""bicubic: as GKD does it, which scales the kernel's response by about (new / old)^2. pseudo-inverse: as FlexiViT
(Beyer et al., CVPR 2023), which keeps the response to a resized image; positions are then resampled with antialiasing.
"""


@dataclass(frozen=True)
class Geometry:
    """A patch size, and the image size (height, width) that positions fit."""

    patch: int
    size: tuple[int, int]
    how: Resampling

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens (h, w) of an image."""
        return self.size[0] // self.patch, self.size[1] // self.patch


PositionRule = Literal["plain", "offset", "antialiased"]
"""How authors resample positions, always bicubic. DINOv2: by the factor (new + OFFSET) / old, a guard against rounding;
DINOv2 with registers: with antialiasing (its hub's settings)."""
OFFSET = 0.1


def resample_kernel(kernel: Tensor, patch: int, how: Resampling) -> Tensor:
    """Resample a patch kernel (D, 3, k, k) to (D, 3, patch, patch)."""
    if kernel.shape[-1] == patch:
        return kernel
    if how == "bicubic":
        return F.interpolate(kernel.float(), size=(patch, patch), mode="bicubic", align_corners=False).to(kernel)
    resized: Tensor = resample_patch_embed(kernel, [patch, patch])
    return resized.to(kernel)


def resample_positions(
    positions: Tensor, grid: tuple[int, int], old: tuple[int, int], how: Resampling, rule: PositionRule = "plain"
) -> Tensor:
    """Resample positions (1, P + h w, D) from the grid old = (h, w) to another; the P rows of prefix tokens stay."""
    if grid == old:
        return positions
    prefix = positions.shape[1] - old[0] * old[1]
    if how == "pseudo-inverse" or rule == "antialiased":
        resampled: Tensor = resample_abs_pos_embed(positions, list(grid), list(old), num_prefix_tokens=prefix)
        return resampled
    kept, rest = positions[:, :prefix], positions[:, prefix:]
    as_map = rest.float().transpose(1, 2).reshape(1, -1, *old)
    if rule == "offset":
        factors = [(new + OFFSET) / side for new, side in zip(grid, old, strict=True)]
        as_map = F.interpolate(as_map, scale_factor=factors, mode="bicubic", align_corners=False)
    else:
        as_map = F.interpolate(as_map, size=grid, mode="bicubic", align_corners=False)
    return torch.cat((kept, as_map.flatten(2).transpose(1, 2).to(positions)), 1)
