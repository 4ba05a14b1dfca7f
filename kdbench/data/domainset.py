"""One domain's images in one split, wherever they come from, whole or a fraction of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from kdbench.identity import digest, seed_from


class DomainSet(Protocol):
    """A finite, ordered set of samples that knows its domain and data source."""

    @property
    def domain(self) -> str:
        """Return the domain's name in its benchmark; it travels with every sample up to the metric."""

    @property
    def data_source(self) -> str:
        """Return `real`, or the version of the built-in world."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Return what decides the samples' content: equal identities give equal samples."""

    def without_labels(self) -> DomainSet:
        """Return the same images for a phase that may not see labels."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Return image (3, H, W) uint8 at the protocol's size and label (h, w) uint8 at its own size, 255 = ignore."""


@dataclass(frozen=True)
class Subset:
    """A fraction of a set's samples; which ones is a function of the fraction, the domain and the seed alone."""

    whole: DomainSet
    fraction: Fraction
    seed: int

    @property
    def domain(self) -> str:
        return self.whole.domain

    @property
    def data_source(self) -> str:
        return self.whole.data_source

    @cached_property
    def indices(self) -> list[int]:
        """Return the samples' places in the whole set; a smaller fraction of a seed lies within a larger one."""
        generator = torch.Generator().manual_seed(seed_from("label fraction", self.domain, self.seed))
        order = torch.randperm(len(self.whole), generator=generator).tolist()
        return sorted(order[: max(1, round(len(self.whole) * self.fraction))])

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """Return the whole set's identity, and what was taken of it."""
        return {**self.whole.identity, "fraction": str(self.fraction), "taken": digest(self.indices)}

    def without_labels(self) -> Subset:
        return replace(self, whole=self.whole.without_labels())

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        return self.whole.read(self.indices[index])
