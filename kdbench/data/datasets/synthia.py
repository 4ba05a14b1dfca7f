"""SYNTHIA-RAND-CITYSCAPES: 16-bit pictures, the class in the first channel. Terrain, truck and train never occur."""

from __future__ import annotations

from kdbench import benchmark
from kdbench.data.datasets.adapter import Adapter, FileLayout
from kdbench.data.datasets.labels import first_channel, table

ID_TO_CLASS = {
    1: 10, 2: 2, 3: 0, 4: 1, 5: 4, 6: 8, 7: 5, 8: 13, 9: 7, 10: 11, 11: 18, 12: 17, 15: 6, 16: 9, 17: 12, 18: 14,
    19: 15, 20: 16, 21: 3,
}  # fmt: skip


SYNTHIA = Adapter(
    name="synthia",
    title="SYNTHIA-RAND-CITYSCAPES",
    folders=("synthia", "SYNTHIA", "SYNTHIA_RAND_CITYSCAPES", "RAND_CITYSCAPES"),
    layouts=(
        FileLayout(
            image=r"RGB/(?P<id>\d{7})\.png",
            label=r"GT/LABELS/(?P<id>\d{7})\.png",
            decode=first_channel,
            values=range(23),
            tables={"evaluated": table(ID_TO_CLASS)},
            part="all",
        ),
    ),
    home="https://synthia-dataset.net (SYNTHIA_RAND_CITYSCAPES.rar)",
    licence="CC BY-NC-SA 3.0",
    classes=benchmark.CITYSCAPES,
    counts={"all": 9400},
    size=(760, 1280),
    hints={r"\.rar$": "unpack it first: `unrar x SYNTHIA_RAND_CITYSCAPES.rar` (or `bsdtar -xf`), in the same folder."},
)
