"""Mapillary Vistas v1.2, alone or in the package of v2.0. Two published tables take its 66 entries to 19 classes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from kdbench import benchmark
from kdbench.data.datasets.adapter import Adapter, FileLayout, Groups, Issue
from kdbench.data.datasets.files import FileTree
from kdbench.data.datasets.labels import table
from kdbench.errors import KdbenchError

# By index into the configuration's labels: what all agree on, then what differs. For GKD and Rein bike lanes,
# crosswalks, parking and service lanes are road, street lights poles, backs of signs signs; for RobustNet, HRDA and
# others manholes are road.
_BOTH = {
    2: 1, 3: 4, 6: 3, 13: 0, 15: 1, 17: 2, 19: 11, 20: 12, 21: 12, 22: 12, 24: 0, 27: 10, 29: 9, 30: 8, 45: 5,
    47: 5, 48: 6, 50: 7, 52: 18, 54: 15, 55: 13, 57: 17, 58: 16, 61: 14,
}  # fmt: skip
_REIN = {7: 0, 8: 0, 9: 1, 10: 0, 11: 1, 14: 0, 23: 0, 44: 5, 46: 7, 49: 7}
_ROBUSTNET = {41: 0}
_STEM = r"(?P<id>[A-Za-z0-9_-]+)"
_ENTRIES = 66
_RESTORE = "restore it and the labels from the archive of version 1.2"


def _part(groups: Groups) -> str:
    return {"training": "train", "validation": "val"}[groups["split"]]


def _check(tree: FileTree) -> Iterator[Issue]:
    """Check the list of labels: the tables go by index into it."""
    for name, file in tree.files.items():
        if re.fullmatch(r"(?:.*/)?config(?:_v1\.2)?\.json", name):
            try:
                found = len(json.loads(file.read())["labels"])
            except (KdbenchError, ValueError, KeyError, TypeError) as error:
                yield Issue("fault", "the list of labels cannot be read", (f"{file} ({error})",), _RESTORE)
                continue
            if found != _ENTRIES:
                what = f"the list of labels has {found} entries, that of version 1.2 has {_ENTRIES}"
                yield Issue("fault", what, (str(file),), _RESTORE)


MAPILLARY = Adapter(
    name="mapillary",
    title="Mapillary Vistas v1.2",
    folders=("mapillary", "Mapillary", "mapillary-vistas", "mapillary_vistas"),
    layouts=(
        FileLayout(
            image=rf"(?P<split>training|validation)/images/{_STEM}\.jpg",
            label=rf"(?P<split>training|validation)/(?:v1\.2/)?labels/{_STEM}\.png",
            values=range(66),
            usual=(27, 30),
            tables={"rein": table(_BOTH | _REIN), "robustnet": table(_BOTH | _ROBUSTNET)},
            part=_part,
        ),
    ),
    home="https://www.mapillary.com/dataset/vistas (version 1.2, or the package of 2.0, which holds both)",
    licence="CC BY-NC-SA 4.0",
    classes=benchmark.CITYSCAPES,
    counts={"train": 18000, "val": 2000},
    check=_check,
    archives=("mapillary-vistas*.zip", "An-ZjB1Zm61y*.zip"),
    hints={r"/v2\.0/labels/": "labels of version 2.0 have other classes; add the same package's v1.2."},
)
