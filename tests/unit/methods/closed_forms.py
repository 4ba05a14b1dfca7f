"""References in float64 numpy that share no code with what they check. Maps are (B, C, h, w)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.special import rel_entr, softmax
from torch import Tensor, nn

GRID = (4, 6)
"""The grid of a teacher's map, beside the grids of the fixture student_grid."""


def array(tensor: Any) -> np.ndarray:
    return np.asarray(tensor.detach() if isinstance(tensor, Tensor) else tensor).astype(np.float64)


def rows(map_: Any) -> np.ndarray:
    """(B, C, ...) as row-major tokens (B, N, C)."""
    flat = array(map_)
    return flat.reshape(*flat.shape[:2], -1).swapaxes(1, 2)


def maps(tokens: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Row-major tokens (B, N, C) as (B, C, h, w)."""
    return tokens.swapaxes(1, 2).reshape(len(tokens), tokens.shape[2], *grid)


def divergence(student: Any, teacher: Any, temperature: float = 1.0, axis: int = -1) -> np.ndarray:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) along an axis."""
    p, q = (softmax(array(logits) / temperature, axis) for logits in (teacher, student))
    return temperature**2 * rel_entr(p, q).sum(axis)


def unit(vectors: Any, axis: int = -1) -> np.ndarray:
    """Vectors of length 1 along an axis; one that is zero stays so."""
    return array(vectors) / np.sqrt((array(vectors) ** 2).sum(axis, keepdims=True)).clip(min=1e-12)


def convolve(map_: Any, layer: nn.Conv2d) -> np.ndarray:
    """A convolution with zeros around the map, offset by offset."""
    weight, (height, width) = array(layer.weight), map_.shape[-2:]
    side = weight.shape[-1]
    padded = np.pad(array(map_), ((0, 0), (0, 0), (side // 2,) * 2, (side // 2,) * 2))
    out = sum(
        np.einsum("oc,bchw->bohw", weight[:, :, y, x], padded[:, :, y : y + height, x : x + width])
        for y in range(side)
        for x in range(side)
    )
    return out if layer.bias is None else out + array(layer.bias)[:, None, None]


def batch_norm(map_: np.ndarray, norm: nn.BatchNorm2d) -> np.ndarray:
    """Batch norm by the batch's own statistics."""
    normed = (map_ - map_.mean((0, 2, 3), keepdims=True)) / np.sqrt(map_.var((0, 2, 3), keepdims=True) + 1e-5)
    return normed * array(norm.weight)[:, None, None] + array(norm.bias)[:, None, None]


def norm_and_map(tokens: np.ndarray, branch: nn.Module) -> np.ndarray:
    """A LayerNorm and a linear map, whose parameters are gain, shift, weight and bias, of each token (..., C)."""
    gain, shift, weight, bias = map(array, branch.parameters())
    centred = tokens - tokens.mean(-1, keepdims=True)
    return (centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * gain + shift) @ weight.T + bias


def pooled(map_: Any, window: tuple[int, int]) -> np.ndarray:
    """Means over windows that fill the map."""
    batch, channels, height, width = map_.shape
    blocks = array(map_).reshape(batch, channels, height // window[0], window[0], width // window[1], window[1])
    return blocks.mean((3, 5))


def roughen(module: Any, deviation: float = 0.3) -> Any:
    """Move all parameters away from their start, at which norms and biases hide what they do."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(deviation * torch.randn(parameter.shape, generator=generator))
    return module
