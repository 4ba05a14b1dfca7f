"""Some parts of a real data set as a set of samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdbench.data.datasets.adapter import FilePair, Scan
from kdbench.data.datasets.files import read_rgb, unreadable
from kdbench.data.datasets.labels import Table
from kdbench.data.datasets.pack import Packed, packed
from kdbench.data.sizing import Sizing
from kdbench.identity import digest
from kdbench.types import IGNORE


@dataclass(frozen=True)
class RealSet:
    """The samples of some parts of a data set.

    sizing: how images are resized (labels keep their size unless it says otherwise). label_map: which of the data set's
    tables takes stored values to classes, the default where empty. most: at most so many samples, spread over the set.
    labelled: whether labels are read; where not, all pixels are ignored.
    """

    domain: str
    scan: Scan
    parts: tuple[str, ...]
    sizing: Sizing
    label_map: str = ""
    most: int | None = None
    labelled: bool = True
    data_source: str = "real"

    @cached_property
    def samples(self) -> list[FilePair]:
        """The pairs in a fixed order."""
        found = self.scan.parts(self.parts)
        if self.most is None or len(found) <= self.most:
            return found
        # Spread: neighbours are frames of one drive, or crops of one tile.
        return [found[index * len(found) // self.most] for index in range(self.most)]

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """The data set, every file's name and size, and all that decides how they are read."""
        # A proxy's million files are known by their names: their sizes would take as long as reading the first epoch.
        listing = [(s.key, s.label and (s.image.size, s.label.size)) for s in self.samples]
        return {
            "dataset": self.scan.adapter.name,
            "parts": self.parts,
            "sizing": self.sizing.identity,
            "files": digest(listing),
            "reading": self.scan.reading,
            "classes": digest(self._table.tolist()) if self.labelled else None,
        }

    def without_labels(self) -> RealSet:
        """The same images for whoever may not see labels: none is decoded."""
        return replace(self, labelled=False)

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """image (3, H, W) uint8, resized; label (h, w) uint8, 255 = ignore, everywhere where there is no label file."""
        sample = self.samples[index]
        image, stored = self._pixels(sample)
        self._check(sample, stored, image.shape[:2])
        label = np.full(image.shape[:2], IGNORE, np.uint8) if stored is None else self._table[stored]
        return self.sizing(torch.from_numpy(image.transpose(2, 0, 1).copy()), torch.from_numpy(label))

    @cached_property
    def _table(self) -> Table:
        return self.scan.table(self.label_map) if self.scan.layout.label else np.arange(256, dtype=np.uint8)

    def _pixels(self, sample: FilePair) -> tuple[np.ndarray, np.ndarray | None]:
        """Image and stored values, from the packed form where there is one."""
        if sample in self._packs[sample.part]:
            image, stored = self._packs[sample.part].read(sample)
            return image, stored if self.labelled else None
        stored = self.scan.layout.decode(sample.label) if self.labelled and sample.label is not None else None
        return read_rgb(sample.image), stored

    @cached_property
    def _packs(self) -> dict[str, Packed]:
        return {part: packed(self.scan, part) for part in {sample.part for sample in self.samples}}

    def _check(self, sample: FilePair, stored: np.ndarray | None, size: tuple[int, ...]) -> None:
        if sample.label is None or stored is None:
            return
        strange = ~self.scan.layout.known[stored]
        if strange.any():
            value = int(stored[strange][0])
            raise unreadable(
                sample.label, f"it holds the value {value}, which is no label of {self.scan.adapter.title}"
            )
        if stored.shape != size and self.scan.adapter.mismatch == "refuse":
            raise unreadable(sample.label, f"it is {stored.shape} pixels large, its image {size} (height, width)")
