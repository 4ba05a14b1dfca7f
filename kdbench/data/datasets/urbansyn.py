"""UrbanSyn: values are classes, and 19 is ignored. Images and labels are paired by their number."""

from __future__ import annotations

from kdbench import benchmark
from kdbench.data.datasets.adapter import Adapter, FileLayout
from kdbench.data.datasets.labels import identity

URBANSYN = Adapter(
    name="urbansyn",
    title="UrbanSyn",
    folders=("urbansyn", "UrbanSyn"),
    layouts=(
        FileLayout(
            image=r"rgb/(?:rgb_)?(?P<number>\d{4})\.png",
            label=r"ss/(?:ss_)?(?P<number>\d{4})\.png",
            values=range(20),
            tables={"evaluated": identity(19)},
            part="all",
        ),
    ),
    home="https://huggingface.co/datasets/UrbanSyn/UrbanSyn (rgb, ss)",
    licence="CC BY-SA 4.0",
    classes=benchmark.CITYSCAPES,
    counts={"all": 7539},
    archives=("rgb*.zip", "ss*.zip"),
    size=(1024, 2048),
)
