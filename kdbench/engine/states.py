"""The states of several parts in one safetensors file, and what half precision keeps of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

State = Mapping[str, Tensor]
"""A state dict."""
SEPARATOR = "::"
"""Between a part's name and a tensor's."""


def to_file(states: Mapping[str, State]) -> bytes:
    """Return the content of a file with these parts."""
    content: bytes = to_bytes({
        # Copies, since parameters may share their memory (tied weights), which this format refuses.
        f"{part}{SEPARATOR}{name}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for part, state in states.items()
        for name, tensor in state.items()
    })  # fmt: skip
    return content


def from_file(content: bytes, part: str) -> dict[str, Tensor]:
    """Return one part's state dict from a file's content, in single precision where it was kept in half."""
    prefix = f"{part}{SEPARATOR}"
    found = {name.removeprefix(prefix): t for name, t in from_bytes(content).items() if name.startswith(prefix)}
    return {name: t.float() if t.dtype == torch.float16 else t for name, t in found.items()}


def to_half(state: State) -> dict[str, Tensor]:
    """Round to half precision; integers, running statistics and what half precision cannot hold stay as they are."""
    return {name: _to_half(name, tensor) for name, tensor in state.items()}


def _to_half(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point() or "running_" in name:
        return tensor
    rounded = tensor.to(torch.float16)
    return rounded if rounded.isfinite().all() else tensor
