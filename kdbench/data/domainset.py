"""One domain's images in one split, wherever they come from, under one interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor


class DomainSet(Protocol):
    """A finite, ordered set of samples that knows which domain and world it belongs to."""

    @property
    def domain(self) -> str:
        """The domain's name in its benchmark; it travels with every sample up to the metric."""

    @property
    def data_source(self) -> str:
        """`real`, or the version of the built-in world."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What decides the samples' content: equal identities give equal samples."""

    def without_labels(self) -> DomainSet:
        """The same images for whoever may not see labels."""

    def __len__(self) -> int:
        """The number of samples."""

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """image (3, H, W) uint8 at the protocol's size; label (h, w) uint8 at its own size, 255 = ignore."""
