"""BDD100K, the 10k images with semantic masks: values are classes already; the colour maps are never read."""

from __future__ import annotations

from kdbench import benchmark
from kdbench.data.datasets.adapter import Adapter, FileLayout
from kdbench.data.datasets.labels import identity
from kdbench.types import IGNORE

_STEM = r"(?P<split>train|val)/(?P<id>[0-9a-f]{8}-[0-9a-f]{8})"
_VALUES, _CLASSES = (*range(19), IGNORE), {"evaluated": identity(19)}

BDD100K = Adapter(
    name="bdd100k",
    title="BDD100K, 10k subset",
    folders=("bdd100k", "BDD100K", "bdd"),
    layouts=(
        FileLayout(rf"images/10k/{_STEM}\.jpg", rf"labels/sem_seg/masks/{_STEM}\.png", values=_VALUES, tables=_CLASSES),
        # The first release.
        FileLayout(rf"images/{_STEM}\.jpg", rf"labels/{_STEM}_train_id\.png", values=_VALUES, tables=_CLASSES),
    ),
    home="https://dl.cv.ethz.ch/bdd100k (bdd100k_images_10k.zip, bdd100k_sem_seg_labels_trainval.zip)",
    licence="BDD100K licence: research and non-profit use",
    classes=benchmark.CITYSCAPES,
    counts={"train": 7000, "val": 1000},
    archives=("*images_10k*.zip", "10k_images_*.zip", "*sem_seg_labels*.zip"),
    size=(720, 1280),
    hints={
        r"images/100k/": "the 10k images are no part of the 100k set; add those of bdd100k_images_10k.zip.",
        r"labels/sem_seg/colormaps/": "two colours of the colour maps are swapped; add labels/sem_seg/masks.",
    },
)
