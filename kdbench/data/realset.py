"""Some parts of a real data set as a set of samples, read from its files or from packed pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdbench.data.datasets.adapter import FilePair, Scan
from kdbench.data.datasets.files import DataFile, read_rgb, unreadable
from kdbench.data.datasets.labels import Table
from kdbench.data.sizing import Sizing
from kdbench.identity import digest
from kdbench.types import IGNORE

PACKS = "KDBENCH_PACKS"
"""Names a folder for packed pixels, where data sets lie on a disk that cannot be written. Workers read it too."""


def packed_path(scan: Scan, part: str, file: DataFile) -> Path:
    """Return where a file's decoded pixels are packed, if they are: the name changes with the file and its reading."""
    name = digest([scan.reading, file.name, file.state])
    elsewhere = os.environ.get(PACKS)
    folder = Path(elsewhere) / scan.adapter.name if elsewhere else scan.tree.root / "kdbench-packed"
    return folder / part.replace("/", "-") / f"{name}.npy"


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
    def pairs(self) -> list[FilePair]:
        """Return the pairs in a fixed order."""
        found = self.scan.complete_pairs(self.parts)
        if self.most is None or len(found) <= self.most:
            return found
        # Spread: neighbours are frames of one drive, or crops of one tile.
        return [found[index * len(found) // self.most] for index in range(self.most)]

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """Return the data set, every file's name and size, and all that decides how they are read."""
        # A proxy's million files are known by their names: their sizes would take as long as reading the first epoch.
        listing = [(pair.key, pair.label and (pair.image.size, pair.label.size)) for pair in self.pairs]
        return {
            "dataset": self.scan.adapter.name,
            "parts": self.parts,
            "sizing": self.sizing.identity,
            "files": digest(listing),
            "reading": self.scan.reading,
            "classes": digest(self._table.tolist()) if self.labelled else None,
        }

    def without_labels(self) -> RealSet:
        return replace(self, labelled=False)

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Return image (3, H, W) uint8, resized, and label (h, w) uint8, 255 = ignore (all, where there is no file)."""
        pair = self.pairs[index]
        image = self._decoded(pair.part, pair.image, read_rgb)
        if self.labelled and pair.label is not None:
            stored = self._decoded(pair.part, pair.label, self.scan.layout.decode)
            self._check(pair.label, stored, image.shape[:2])
            label = self._table[stored]
        else:
            label = np.full(image.shape[:2], IGNORE, np.uint8)
        return self.sizing(torch.from_numpy(image.transpose(2, 0, 1).copy()), torch.from_numpy(label))

    @cached_property
    def _table(self) -> Table:
        return self.scan.table(self.label_map) if self.scan.layout.label else np.arange(256, dtype=np.uint8)

    def _decoded(self, part: str, file: DataFile, decode: Callable[[DataFile], np.ndarray]) -> np.ndarray:
        """Return a file's pixels, from their packed form where `kdbench data prepare --pack` wrote it."""
        path = packed_path(self.scan, part, file)
        return np.load(path, mmap_mode="r") if path.is_file() else decode(file)

    def _check(self, file: DataFile, stored: np.ndarray, size: tuple[int, ...]) -> None:
        adapter, unknown_values = self.scan.adapter, stored[~self.scan.layout.known[stored]]
        if unknown_values.size:
            raise unreadable(file, f"it holds the value {unknown_values[0]}, which is no label of {adapter.title}")
        if stored.shape != size and adapter.mismatch == "refuse":
            raise unreadable(file, f"it is {stored.shape} pixels large, its image {size} (height, width)")
