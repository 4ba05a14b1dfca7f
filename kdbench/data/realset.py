"""Some parts of a real data set as a set of samples, read from its files or from packed pixels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdbench.data.datasets.adapter import FilePair, Scan
from kdbench.data.datasets.files import read_rgb, unreadable
from kdbench.data.datasets.labels import Table
from kdbench.data.sizing import Sizing
from kdbench.identity import digest
from kdbench.types import IGNORE

PACK_FOLDER = "kdbench-packed"
PACK_INDEX = "index.jsonl"
PackedPixels = dict[str, Any]
"""Where a pair's pixels are: its key, the offset and shape of image and label, the state of their files."""


@dataclass(frozen=True)
class PackedPart:
    """A part's decoded images and stored label values, one after the other in two memory-mapped files.

    reading: which version of the adapter decoded them (Scan.reading). `kdbench data prepare --pack` writes them.
    """

    folder: Path
    reading: str

    @cached_property
    def index(self) -> dict[str, PackedPixels]:
        """Return by key what the same version of the adapter has decoded."""
        path = self.folder / PACK_INDEX
        if not path.is_file():
            return {}
        # What follows the last whole line was being written when a run was stopped.
        lines = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
        places = [json.loads(line) for line in lines]
        return {place["key"]: place for place in places if place["reading"] == self.reading}

    @cached_property
    def _images(self) -> np.ndarray:
        return np.memmap(self.folder / "image.bin", np.uint8, "r")

    @cached_property
    def _labels(self) -> np.ndarray:
        return np.memmap(self.folder / "label.bin", np.uint8, "r")

    def __contains__(self, pair: FilePair) -> bool:
        """Return whether the pair is there, made from the files as they are now."""
        place = self.index.get(pair.key)
        return place is not None and place["files"] == file_states(pair)

    def read(self, pair: FilePair) -> tuple[np.ndarray, np.ndarray | None]:
        """Return image (H, W, 3) and stored label values (h, w)."""
        place = self.index[pair.key]
        return _cut(self._images, *place["image"]), place["label"] and _cut(self._labels, *place["label"])


def packed_part(scan: Scan, part: str) -> PackedPart:
    """Return a part's packed pixels; where there are none, its index is empty."""
    return PackedPart(scan.tree.root / PACK_FOLDER / part.replace("/", "-"), scan.reading)


def file_states(pair: FilePair) -> list[list[int] | None]:
    """Return sizes and times of a pair's files, as JSON keeps them."""
    return [None if file is None else list(file.state) for file in (pair.image, pair.label)]


def _cut(pixels: np.ndarray, offset: int, shape: list[int]) -> np.ndarray:
    return np.asarray(pixels[offset : offset + int(np.prod(shape))]).reshape(shape)


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
        """Return the same images for a phase that may not see labels: none is decoded."""
        return replace(self, labelled=False)

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Return image (3, H, W) uint8, resized, and label (h, w) uint8, 255 = ignore (all, where there is no file)."""
        pair = self.pairs[index]
        image, stored = self._pixels(pair)
        self._check(pair, stored, image.shape[:2])
        label = np.full(image.shape[:2], IGNORE, np.uint8) if stored is None else self._table[stored]
        return self.sizing(torch.from_numpy(image.transpose(2, 0, 1).copy()), torch.from_numpy(label))

    @cached_property
    def _table(self) -> Table:
        return self.scan.table(self.label_map) if self.scan.layout.label else np.arange(256, dtype=np.uint8)

    @cached_property
    def _packs(self) -> dict[str, PackedPart]:
        return {part: packed_part(self.scan, part) for part in {pair.part for pair in self.pairs}}

    def _pixels(self, pair: FilePair) -> tuple[np.ndarray, np.ndarray | None]:
        """Return image and stored values, from the packed form where there is one."""
        if pair in self._packs[pair.part]:
            image, stored = self._packs[pair.part].read(pair)
            return image, stored if self.labelled else None
        stored = self.scan.layout.decode(pair.label) if self.labelled and pair.label is not None else None
        return read_rgb(pair.image), stored

    def _check(self, pair: FilePair, stored: np.ndarray | None, size: tuple[int, ...]) -> None:
        if pair.label is None or stored is None:
            return
        adapter, unknown_values = self.scan.adapter, stored[~self.scan.layout.known[stored]]
        if unknown_values.size:
            reason = f"it holds the value {unknown_values[0]}, which is no label of {adapter.title}"
            raise unreadable(pair.label, reason)
        if stored.shape != size and adapter.mismatch == "refuse":
            raise unreadable(pair.label, f"it is {stored.shape} pixels large, its image {size} (height, width)")
