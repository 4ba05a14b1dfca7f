"""GTAV (Playing for Data): palette pictures whose index is the Cityscapes id; two colours stand for two ids each."""

from __future__ import annotations

import io
from collections.abc import Callable

from kdbench import benchmark
from kdbench.data.datasets.adapter import Adapter, FileLayout, Groups
from kdbench.data.datasets.cityscapes import ID_TO_CLASS
from kdbench.data.datasets.files import DataFile, FileTree, unreadable
from kdbench.data.datasets.labels import table


def _parts(tree: FileTree) -> Callable[[Groups], str]:
    """Return all/train, all/val or all/test by the official split where its file is there; GKD trains on all."""
    file = next((file for name, file in tree.files.items() if name.endswith("split.mat")), None)
    if file is None:
        return "all".format_map
    official = _official_split(file)
    return lambda groups: f"all/{official.get(int(groups['id']), 'unsplit')}"


def _official_split(file: DataFile) -> dict[int, str]:
    from scipy.io import loadmat

    try:
        split = loadmat(io.BytesIO(file.read()))
        return {int(i): name for name in ("train", "val", "test") for i in split[f"{name}Ids"].flat}
    except Exception as error:  # scipy has many errors of its own for files that are damaged or of another kind
        raise unreadable(file, str(error)) from error


BLANK = (
    "15188", "17705",
    "12160", "12166", "12167", "12191", "12192", "12193", "12195", "12202", "12203", "12204", "12205", "12206", "12207",
    "12208", "19993",
)  # fmt: skip
"""Two that several sources name, and fifteen that RobustNet leaves out of its training."""

GTAV = Adapter(
    name="gtav",
    title="GTAV, Playing for Data",
    folders=("GTA5", "gtav", "gta", "gta5", "GTAV"),
    layouts=(
        FileLayout(
            image=r"images/(?P<id>\d{5})\.png",
            label=r"labels/(?P<id>\d{5})\.png",
            values=range(35),
            usual=(21, 23),
            tables={"evaluated": table(ID_TO_CLASS)},
            colours={value: benchmark.CITYSCAPES.palette[index] for value, index in ID_TO_CLASS.items()},
            parts=_parts,
        ),
    ),
    home="https://download.visinf.tu-darmstadt.de/data/from_games (01_images.zip to 10_labels.zip)",
    licence="research only; the game's publisher permits non-commercial use of its footage",
    classes=benchmark.CITYSCAPES,
    counts={"all": 24966},
    archives=("[01][0-9]_images.zip", "[01][0-9]_labels.zip", "read_mapping.zip"),
    # All known of the release and its copies: images and labels that are a few pixels smaller than the others, pairs
    # that are missing, and blank images.
    mismatch="resize",
    incomplete="note",
    blank=BLANK,
)
