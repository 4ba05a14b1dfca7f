"""An encoder with a decoder, built so that initial weights depend on the seed alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from kdbench.errors import unknown
from kdbench.identity import seed_from
from kdbench.models.backbones import Encoder
from kdbench.models.decoders import DECODERS
from kdbench.types import Features, FeatureSpec, SegOutput

Built = TypeVar("Built")


class SegmentationModel(nn.Module):
    """An encoder with a decoder, as kdbench.types.Segmentor."""

    def __init__(self, encoder: Encoder, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    @property
    def spec(self) -> FeatureSpec:
        """The shape of the encoder's features."""
        return self.encoder.spec

    def encode(self, image: Tensor, mask: Tensor | None = None, blocks: Sequence[int] = ()) -> Features:
        """Return the features of images (B, 3, H, W) in [0, 1]."""
        features: Features = self.encoder(image, mask, blocks)
        return features

    def decode(self, features: Features) -> SegOutput:
        """Return class logits from features."""
        output: SegOutput = self.decoder(features)
        return output

    def forward(self, image: Tensor) -> SegOutput:
        """Encode, then decode."""
        return self.decode(self.encode(image))

    def task_loss(self, output: SegOutput, label: Tensor) -> dict[str, Tensor]:
        """Return the decoder's own loss for labels (B, H, W)."""
        loss: dict[str, Tensor] = self.decoder.loss(output, label)  # type: ignore[operator]
        return loss


def seeded(build: Callable[[], Built], *purpose: object) -> Built:
    """Build something whose random weights depend on the purpose alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_from("init", *purpose))
        return build()


def build_decoder(name: str, spec: FeatureSpec, classes: int) -> nn.Module:
    """Build a decoder by its name in the protocol."""
    if name not in DECODERS:
        raise unknown("decoder", name, DECODERS)
    return DECODERS[name](spec, classes)
