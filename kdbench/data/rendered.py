"""Domains of the built-in world: drawn once, then kept memory-mapped in the store."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from filelock import FileLock
from torch import Tensor

from kdbench.data import synthetic
from kdbench.files import naming_a_full_disk
from kdbench.identity import code_digest, digest

FIELDS = ("image", "label", "coarse", "depth", "object")


@dataclass(frozen=True)
class RenderedSet:
    """count samples of a domain of the built-in world at size (H, W), under the name that its benchmark gives it."""

    domain: str
    rendition: str
    split: str
    count: int
    size: tuple[int, int]
    folder: Path

    @property
    def world(self) -> str:
        """The version of the built-in world."""
        return synthetic.WORLD

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """World version, rendition, split, count and size, and all that decides how they are drawn."""
        return {
            "world": self.world,
            "rendition": self.rendition,
            "split": self.split,
            "count": self.count,
            "size": self.size,
            "drawing": _drawing(),
        }

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """image (3, H, W) and label (H, W), uint8."""
        image = torch.from_numpy(self.arrays["image"][index].transpose(2, 0, 1).copy())
        return image, torch.from_numpy(self.arrays["label"][index].copy())

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """Every field of the scenes as (count, ...) memory maps; drawn on the first use, once for all processes."""
        target = self.folder / f"{self.rendition}-{self.split}-{digest(self.identity)}"
        with FileLock(f"{target}.lock"):
            if not target.is_dir():
                self._draw(target)
        return {name: np.load(target / f"{name}.npy", mmap_mode="r") for name in FIELDS}

    def _draw(self, target: Path) -> None:
        partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        scenes = [synthetic.draw(self.rendition, self.split, index, self.size) for index in range(self.count)]
        with naming_a_full_disk(target):
            for name in FIELDS:
                np.save(partial / f"{name}.npy", np.stack([getattr(scene, name) for scene in scenes]))
            partial.rename(target)


@cache
def _drawing() -> dict[str, str]:
    """The drawing code and the libraries that it draws with: a changed world never serves yesterday's pictures."""
    files = sorted(Path(synthetic.__file__).parent.glob("*.py"))
    code = digest([code_digest(path) for path in (*files, Path(__file__))])
    return {"code": code, "numpy": np.__version__, "pillow": PIL.__version__}
