"""Cityscapes: leftImg8bit and gtFine as shipped; `labelIds` by table, so that nothing has to be converted first."""

from __future__ import annotations

from kdbench import benchmark
from kdbench.data.datasets.adapter import Adapter, FileLayout
from kdbench.data.datasets.labels import table

ID_TO_CLASS = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15,
    31: 16, 32: 17, 33: 18,
}  # fmt: skip
"""Cityscapes ids to the 19 evaluated classes (cityscapesScripts, labels.py); licence plates are never drawn."""
_STEM = r"(?P<split>train|val)/(?P<city>[a-z]+)/(?P<stem>[a-z]+_\d{6}_\d{6})"

CITYSCAPES = Adapter(
    name="cityscapes",
    title="Cityscapes, fine annotations",
    folders=("cityscapes", "Cityscapes"),
    layouts=(
        FileLayout(
            image=rf"leftImg8bit/{_STEM}_leftImg8bit\.png",
            label=rf"gtFine/{_STEM}_gtFine_labelIds\.png",
            values=range(34),
            usual=(21, 26),
            tables={"evaluated": table(ID_TO_CLASS)},
        ),
    ),
    home="https://www.cityscapes-dataset.com (leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip)",
    licence="Cityscapes licence: non-commercial research",
    classes=benchmark.CITYSCAPES,
    counts={"train": 2975, "val": 500},
    archives=("leftImg8bit*.zip", "gtFine*.zip", "gt_trainvaltest.zip"),
    size=(1024, 2048),
    hints={
        r"_gtFine_labelTrainIds\.png$": "only converted labels are there; add the shipped *_gtFine_labelIds.png of "
        "gtFine_trainvaltest.zip, which are read as they are.",
    },
)
