"""What every real data set shares: finding folder and pairs, decoding images and labels, errors with repairs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from kdbench.errors import KdbenchError
from kdbench.identity import code_digest, digest


class FilePair(NamedTuple):
    """An image with its label file."""

    image: Path
    label: Path


@dataclass(frozen=True)
class Adapter:
    """One data set as its authors ship it.

    folders: the names that its root usually has. pairs: (root, parts) -> the files of those parts, in a fixed order.
    to_class: 256 entries, stored label value -> class, 255 = ignore.
    """

    name: str
    folders: tuple[str, ...]
    pairs: Callable[[Path, Sequence[str]], list[FilePair]]
    to_class: np.ndarray = field(default_factory=lambda: np.arange(256, dtype=np.uint8))

    def root(self, data_root: Path) -> Path:
        """The data set's folder under --data-root; the root itself may be that folder."""
        if not data_root.is_dir():
            raise KdbenchError(f"--data-root {data_root} is not a folder.")
        if data_root.name in self.folders:
            return data_root
        for name in self.folders:
            if (data_root / name).is_dir():
                return data_root / name
        looked = ", ".join(str(data_root / name) for name in self.folders)
        raise KdbenchError(f"data set '{self.name}' is not under {data_root}. Looked for: {looked}.")


@dataclass(frozen=True)
class RealSet:
    """The samples of some parts of a data set, resized to cover the protocol's image size; labels keep their size."""

    domain: str
    adapter: Adapter
    data_root: Path
    parts: tuple[str, ...]
    size: tuple[int, int]
    world: str = "real"

    @cached_property
    def files(self) -> list[FilePair]:
        """The pairs in a fixed order."""
        root = self.adapter.root(self.data_root)
        files = self.adapter.pairs(root, self.parts)
        if not files:
            raise KdbenchError(f"domain '{self.domain}': no images of {', '.join(self.parts)} under {root}.")
        return files

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """The data set, every file's name and size, and the code that reads them."""
        listing = [(p.image.name, p.image.stat().st_size, p.label.stat().st_size) for p in self.files]
        return {
            "dataset": self.adapter.name,
            "parts": self.parts,
            "size": self.size,
            "files": digest(listing),
            "reading": [code_digest(Path(__file__)), code_digest(Path(inspect.getfile(self.adapter.pairs)))],
            "classes": digest(self.adapter.to_class.tolist()),
        }

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """image (3, H, W) uint8, covering the protocol's size; label (h, w) uint8 at its original size."""
        pair = self.files[index]
        image = torch.from_numpy(_pixels(pair.image, "RGB").transpose(2, 0, 1).copy())
        scale = max(self.size[0] / image.shape[1], self.size[1] / image.shape[2])
        size = [round(side * scale) for side in image.shape[1:]]
        label = self.adapter.to_class[_pixels(pair.label, None)]
        return vision.resize(image, size, antialias=True), torch.from_numpy(label)


def _pixels(path: Path, mode: str | None) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode) if mode else image)
    except (OSError, ValueError) as error:
        raise KdbenchError(f"{path} cannot be read ({error}). Restore it from the data set's archive.") from error
