"""Encoders through torch.compile, and the comparison that refuses one whose features it changes."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.engine.parts import Encode
from kdbench.errors import KdbenchError
from kdbench.models.backbones import Encoder

ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""How far compiled features may lie from eager ones, as a share of a feature's length. Fused kernels round elsewhere; a
rounding is 2^-8 in bfloat16 and 2^-11 where CUDA convolves float32 in TF32, and some of them add up over the blocks."""


def compile_encoder(encoder: Encoder, name: str, size: tuple[int, int], precision: torch.dtype) -> Encode:
    """An encoder, in the mode that it is in, through torch.compile; its state dict keeps its names.

    Raises where it cannot be compiled, or where its features of two random images (height, width), with or without
    hidden positions, are not the eager ones. An error and no quiet return to the eager network: a stage's key, which
    is known before anything is compiled, says how the stage was computed.
    """
    # Else dropout would be drawn by other generators than the eager network's.
    compiled = torch.compile(encoder, options={"fallback_random": True})
    image, mask = _trial(encoder, size)
    for hidden in (None, mask):
        try:
            found = _maps(compiled, encoder, image, hidden)
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise KdbenchError(f"{name} cannot be compiled here ({reason}). Run it without --compile.") from error
        for expected, got in zip(_maps(encoder, encoder, image, hidden), found, strict=True):
            apart = ((got - expected).norm(dim=1).max() / expected.norm(dim=1).mean()).item()
            # A comparison that NaN does not pass.
            if not apart <= ROUNDING[precision]:
                raise KdbenchError(
                    f"compiling {name} changes its features{' of masked images' * (hidden is not None)} by up to "
                    f"{apart:.2g} of their length; {ROUNDING[precision]} is rounding. Run it without --compile."
                )
    return compiled


def _trial(encoder: Encoder, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Two random images and masks, one of which hides half of its grid; the number of images is left open."""
    generator = torch.Generator().manual_seed(0)
    grid = (-(-side // encoder.spec.final_stride) for side in size)
    mask = torch.rand(2, *grid, generator=generator) < 0.5
    mask[0] = False
    image, mask = (t.to(encoder.mean.device) for t in (torch.rand(2, 3, *size, generator=generator), mask))
    for tensor in (image, mask):
        # What is compared is then what trains: another batch size needs no other kernels.
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    return image, mask


def _maps(run: Encode, encoder: Encoder, image: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Everything that decoders and losses read; the encoder's statistics are left as they were."""
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    torch.manual_seed(0)
    with torch.set_grad_enabled(encoder.training):
        features = run(image, mask)
    for name, buffer in encoder.named_buffers():
        buffer.copy_(before[name])
    return [map_.detach().float() for map_ in (*features.levels, features.final, features.pooled)]
