"""Domains of the built-in world as sets of samples: drawn once, then kept memory-mapped in the store."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock
from numpy.lib.format import dtype_to_descr, write_array_header_1_0
from torch import Tensor

from kdbench import synthetic
from kdbench.files import naming_a_full_disk
from kdbench.identity import digest
from kdbench.types import IGNORE


@dataclass(frozen=True)
class RenderedSet:
    """count samples of a domain of the built-in world at size (H, W), under the name that its benchmark gives it."""

    domain: str
    rendition: str
    split: str
    count: int
    size: tuple[int, int]
    folder: Path
    adjust: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def data_source(self) -> str:
        return synthetic.DOMAINS[self.rendition].world

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """Return what the pictures depend on; a change in how they are drawn raises the world's version."""
        named = {name: getattr(self, name) for name in ("data_source", "rendition", "split", "count", "size")}
        return {**named, "adjust": dict(self.adjust)}

    def without_labels(self) -> RenderedSet:
        """Return the set itself: labels cost nothing here, and batches leave them out."""
        return self

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Return image (3, H, W) and label (H, W), uint8; 255 everywhere where a collection has no labels."""
        image = torch.from_numpy(self.arrays["image"][index].transpose(2, 0, 1).copy())
        if "label" not in self.fields:
            return image, torch.full(self.size, IGNORE, dtype=torch.uint8)
        return image, torch.from_numpy(self.arrays["label"][index].copy())

    @property
    def fields(self) -> tuple[str, ...]:
        """Return which fields of a scene are kept: a domain's labels, or what pretraining learns from a collection."""
        labelled = synthetic.DOMAINS[self.rendition].classes > 0
        return ("image", "label") if labelled else ("image", "coarse", "material", "depth", "albedo", "object")

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """Return every field as a (count, ...) memory map; drawn on the first use, once for all processes."""
        with FileLock(f"{self._target}.lock"):
            if not self.drawn:
                self._draw(self._target)
        return {name: np.load(self._target / f"{name}.npy", mmap_mode="r") for name in self.fields}

    @property
    def drawn(self) -> bool:
        """Return whether the store holds the pictures already."""
        return self._target.is_dir()

    @cached_property
    def _target(self) -> Path:
        return self.folder / f"{self.rendition}-{self.split}-{digest([self.identity, self.fields])}"

    def _draw(self, target: Path) -> None:
        partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
        # The lock is held: whatever else lies there was left by a drawing that was stopped.
        for left in target.parent.glob(f"{target.name}.partial-*"):
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir(parents=True)
        with naming_a_full_disk(target):
            with contextlib.ExitStack() as opened:
                kept = {name: opened.enter_context((partial / f"{name}.npy").open("wb")) for name in self.fields}
                for index in range(self.count):
                    scene = synthetic.draw(self.rendition, self.split, index, self.size, self.adjust)
                    for name, file in kept.items():
                        value = np.asarray(getattr(scene, name))
                        if index == 0:
                            self._begin(file, value)
                        file.write(value.tobytes())
            partial.rename(target)

    def _begin(self, file: BinaryIO, first: np.ndarray) -> None:
        """Write the header of a .npy of all samples. Writing through a memory map would crash on a full disk."""
        shape = (self.count, *first.shape)
        write_array_header_1_0(file, {"descr": dtype_to_descr(first.dtype), "fortran_order": False, "shape": shape})
