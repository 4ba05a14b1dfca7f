"""A named part of a set of samples: few labels, drawn by a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from kdbench.data.domainset import DomainSet
from kdbench.identity import digest, seed_from


@dataclass(frozen=True)
class Subset:
    """A fraction of a set's samples; which ones is a function of the fraction, the domain and the seed alone."""

    whole: DomainSet
    fraction: Fraction
    seed: int

    @property
    def domain(self) -> str:
        """The domain's name."""
        return self.whole.domain

    @property
    def data_source(self) -> str:
        """The whole set's world."""
        return self.whole.data_source

    @cached_property
    def indices(self) -> list[int]:
        """The samples' places in the whole set, in its order; a smaller fraction of a seed lies within a larger one."""
        generator = torch.Generator().manual_seed(seed_from("label fraction", self.domain, self.seed))
        order = torch.randperm(len(self.whole), generator=generator).tolist()
        return sorted(order[: max(1, round(len(self.whole) * self.fraction))])

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """The whole set's, and what was taken of it."""
        return {**self.whole.identity, "fraction": str(self.fraction), "taken": digest(self.indices)}

    def without_labels(self) -> Subset:
        """The same images without labels."""
        return replace(self, whole=self.whole.without_labels())

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """A sample, as in the whole set."""
        return self.whole.read(self.indices[index])
