"""ISPRS Potsdam and Vaihingen as crops of 512, made by `kdbench data prepare`, or by mmsegmentation in GKD's folders.

Stored values: 0 is the border or a colour of no class, 1 to 6 are the classes. One table takes them to classes, once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from kdbench import benchmark
from kdbench.data.datasets.adapter import Adapter, FileLayout, Issue, issue
from kdbench.data.datasets.files import FileTree
from kdbench.data.datasets.labels import table
from kdbench.errors import KdbenchError
from kdbench.types import IGNORE

LOSSY = 0.1
"""Share of a label tile's pixels with a colour of no class beyond which the tile was not saved as it was released."""
_VALUES, _TABLES = (*range(7), IGNORE), {"evaluated": table({value: value - 1 for value in range(1, 7)})}
_PREPARE = "the original tiles are there; cut them into crops with `kdbench data prepare {} --data-root DIR`."
_RESTORE = "cut the tiles again with `kdbench data prepare {} --data-root DIR`"


def _check(tree: FileTree) -> Iterator[Issue]:
    """Check what cutting the tiles told of their labels: in crops, colours are values already."""
    lossy, few, broken = list[str](), list[str](), list[str]()
    for name, file in tree.files.items():
        if re.fullmatch(r"(?:.*/)?tiles/[\d_]+\.json", name):
            try:
                tile = json.loads(file.read())
                share = tile["off_palette"] / tile["pixels"]
                shown = f"tile {tile['tile']} {tile['bands']}".strip() + f" ({100 * share:.2f} % of its pixels)"
            except (KdbenchError, ValueError, KeyError, TypeError):
                broken.append(str(file))
            else:
                (lossy if share > LOSSY else few if share else []).append(shown)
    if lossy:
        repair = "restore these label tiles from the archive, then `kdbench data prepare`: lossy copies change colours"
        yield issue("fault", "label tiles were no longer in the classes' colours when they were cut", lossy, repair)
    if broken:
        yield issue("fault", "summaries of tiles cannot be read", broken, "remove them and cut the tiles again")
    if few:
        yield issue("note", "label tiles have colours of no class, which are ignored", few, "known of some tiles")


_CROP = r"(?P<split>train|val)/(?P<crop>\d_\d{1,2}(?:_\d+){4})\.png"
POTSDAM = Adapter(
    name="potsdam",
    title="ISPRS Potsdam",
    folders=("potsdam", "Potsdam"),
    layouts=(
        FileLayout(
            image=rf"(?P<bands>RGB|IRRG)/img_dir/{_CROP}",
            label=rf"(?P<bands>RGB|IRRG)/ann_dir/{_CROP}",
            values=_VALUES,
            tables=_TABLES,
            part="{bands}/{split}",
        ),
    ),
    home="https://www.isprs.org (2_Ortho_RGB.zip, 3_Ortho_IRRG.zip, 5_Labels_all_noBoundary.zip)",
    licence="ISPRS benchmark terms: research, with acknowledgement",
    classes=benchmark.ISPRS,
    counts={"RGB/train": 3456, "RGB/val": 2016, "IRRG/train": 3456, "IRRG/val": 2016},
    size=(512, 512),
    hints={r"(top_potsdam_.*\.tif|Ortho_\w+\.zip|5_Labels\w*\.zip)$": _PREPARE.format("potsdam")},
    restore=_RESTORE.format("potsdam"),
    check=_check,
)

_CROP = r"(?P<split>train|val)/(?P<crop>area\d{1,2}(?:_\d+){4})\.png"
VAIHINGEN = Adapter(
    name="vaihingen",
    title="ISPRS Vaihingen (infrared, red, green)",
    folders=("vaihingen", "Vaihingen"),
    layouts=(FileLayout(rf"img_dir/{_CROP}", rf"ann_dir/{_CROP}", values=_VALUES, tables=_TABLES),),
    home="https://www.isprs.org (ISPRS_semantic_labeling_Vaihingen*.zip)",
    licence="ISPRS benchmark terms: research, with acknowledgement",
    classes=benchmark.ISPRS,
    counts={"train": 344, "val": 398},
    size=(512, 512),
    hints={r"(top_mosaic_09cm_area.*\.tif|ISPRS_semantic\w*\.zip)$": _PREPARE.format("vaihingen")},
    restore=_RESTORE.format("vaihingen"),
    check=_check,
)
