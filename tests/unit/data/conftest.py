"""Tiny healthy trees of every data set's layout, as its authors ship it, with what each label holds."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from kdbench.data.datasets import ADAPTERS
from kdbench.data.datasets.adapter import Scan
from kdbench.data.realset import RealSet
from kdbench.data.sizing import Native

FACTS = yaml.safe_load((Path(__file__).parent / "labels.yaml").read_text(encoding="utf-8"))
SIZE = (24, 48)
SPLITS = {"training": "train", "validation": "val"}


def stripes(values: Iterable[int], size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return every value at least once, along the rows."""
    return np.resize(np.array([*values], dtype=np.uint8), size)


class Trees:
    """Writes data sets below root, a method a layout; each returns the number of pairs of each part."""

    LAYOUTS = (
        "cityscapes", "gtav", "bdd100k", "bdd100k_first", "mapillary", "mapillary_v2", "acdc", "potsdam", "vaihingen",
        "imagenet", "camvid", "camvid_original", "synthia", "urbansyn",
    )  # fmt: skip

    def __init__(self, root: Path) -> None:
        self.root = root

    def make(self, *layouts: str) -> dict[str, int]:
        """Write data sets; return the parts of the last."""
        return [getattr(self, layout)() for layout in layouts][-1]

    def scan(self, layout: str) -> Scan:
        """Open the data set that a layout belongs to."""
        return ADAPTERS[layout.partition("_")[0]].scan(self.root)

    def open(self, layout: str, *parts: str, **fields: Any) -> RealSet:
        """Return the samples of some parts."""
        return RealSet("d", self.scan(layout), parts, Native(), **fields)

    def zip(self, layout: str, archives: dict[str, str]) -> None:
        """Move folders of a data set into archives: name of the archive -> what it holds."""
        root = self.scan(layout).tree.root
        for name, folder in archives.items():
            files = sorted(path for path in (root / folder).rglob("*") if path.is_file())
            with zipfile.ZipFile(root / name, "w") as archive:
                for path in files:
                    archive.write(path, path.relative_to(root).as_posix())
                    path.unlink()

    def save(self, path: str, array: np.ndarray, palette: list[int] | None = None, mode: str = "") -> None:
        """Write an array as PNG or JPEG, in another mode or with a palette where one is given."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(array)
        if palette is not None:
            picture.putpalette(palette)
        (picture.convert(mode) if mode else picture).save(target)

    def photo(self, path: str, size: tuple[int, int] = SIZE, mode: str = "") -> None:
        """Write a picture like no other."""
        noise = np.random.default_rng(zlib.crc32(path.encode())).integers(0, 256, (*size, 3), dtype=np.uint8)
        self.save(path, noise, mode=mode)

    def pair(
        self, image: str, label: str, values: Iterable[int], size: tuple[int, int] = SIZE, palette: Any = ()
    ) -> None:
        """Write an image and its label, which holds every value."""
        self.photo(image, size)
        self.save(label, stripes(values, size), [c for colour in palette for c in colour] or None)

    def cityscapes(self) -> dict[str, int]:
        """leftImg8bit and gtFine, with the colours that gtFine ships too."""
        for city in ("train/aachen/aachen", "train/ulm/ulm", "val/munster/munster"):
            for frame in range(2):
                stem = f"{city}_{frame:06}_000019"
                label = f"cityscapes/gtFine/{stem}_gtFine"
                self.pair(f"cityscapes/leftImg8bit/{stem}_leftImg8bit.png", f"{label}_labelIds.png", range(34))
                self.photo(f"{label}_color.png")
        return {"train": 4, "val": 2}

    def gtav(self) -> dict[str, int]:
        """Palette labels whose index is the id; one of them two pixels smaller than its image; a converted one."""
        palette = {label["id"]: label["color"] for label in FACTS["cityscapes"]["labels"] if label["id"] >= 0}
        colours = [palette.get(value, (0, 0, 0)) for value in range(256)]
        for number in range(1, 4):
            label = f"GTA5/labels/{number:05}.png"
            self.pair(f"GTA5/images/{number:05}.png", label, range(34), palette=colours)
        smaller = (SIZE[0], SIZE[1] - 2)
        self.save("GTA5/labels/00002.png", stripes(range(34), smaller), [c for colour in colours for c in colour])
        self.save("GTA5/labels/00001_labelTrainIds.png", stripes([0]))
        return {"all": 3}

    def bdd100k(self) -> dict[str, int]:
        """The 10k images with masks, and the colour maps that must not be read."""
        for stem in ("train/0a1b2c3d-4e5f6070", "train/0a1b2c3d-4e5f6071", "train/0a1b2c3d-4e5f6072",
                     "val/0a1b2c3d-4e5f6070", "val/0a1b2c3d-4e5f6071"):  # fmt: skip
            mask = f"bdd100k/labels/sem_seg/masks/{stem}.png"
            self.pair(f"bdd100k/images/10k/{stem}.jpg", mask, [*range(19), 255])
            self.photo(mask.replace("masks", "colormaps"))
        return {"train": 3, "val": 2}

    def bdd100k_first(self) -> dict[str, int]:
        """The first release."""
        stem = "val/0a1b2c3d-4e5f6071"
        self.pair(f"bdd/images/{stem}.jpg", f"bdd/labels/{stem}_train_id.png", [*range(19), 255])
        return {"val": 1}

    def mapillary(self, labels: str = "labels") -> dict[str, int]:
        """v1.2 alone; sizes differ from image to image."""
        palette = [label["color"] for label in FACTS["mapillary_v1_2"]["labels"]]
        for split in SPLITS:
            for number in range(2):
                stem, size = f"S2vjth7lk4EIKius2I-1A{number}", (SIZE[0] + 2 * number, SIZE[1])
                image, label = f"mapillary/{split}/images/{stem}.jpg", f"mapillary/{split}/{labels}/{stem}.png"
                self.pair(image, label, range(66), size, palette)
        return {"train": 2, "val": 2}

    def mapillary_v2(self) -> dict[str, int]:
        """v1.2 inside the package of v2.0."""
        for split in SPLITS:
            self.save(f"mapillary/{split}/v2.0/labels/S2vjth7lk4EIKius2I-1A0.png", stripes([110, 123]))
        return self.mapillary("v1.2/labels")

    def acdc(self) -> dict[str, int]:
        """Four conditions, each with reference images, Cityscapes ids and uncertainty masks beside."""
        parts = [f"{condition}/{split}" for condition in ("fog", "night", "rain", "snow") for split in ("train", "val")]
        for part in parts:
            for frame in range(2):
                stem = f"GOPR0351/GOPR0351_frame_{frame:06}"
                image, label = f"acdc/rgb_anon/{part}/{stem}_rgb_anon.png", f"acdc/gt/{part}/{stem}_gt_"
                self.pair(image, f"{label}labelTrainIds.png", [*range(19), 255])
                self.photo(f"acdc/rgb_anon/{part}_ref/{stem}_rgb_ref_anon.png")
                self.save(f"{label}labelIds.png", stripes(range(34)))
                self.save(f"{label}invIds.png", stripes([0, 255]))
        return dict.fromkeys(parts, 2)

    def potsdam(self) -> dict[str, int]:
        """Crops in GKD's folders, red, green, blue and infrared, red, green."""
        for bands in ("RGB", "IRRG"):
            for tile in ("train/2_10", "val/2_13"):
                for x in (0, 512):
                    crop = f"{tile}_{x}_0_{x + 512}_512.png"
                    self.pair(f"potsdam/{bands}/img_dir/{crop}", f"potsdam/{bands}/ann_dir/{crop}", range(7))
        return {"RGB/train": 2, "RGB/val": 2, "IRRG/train": 2, "IRRG/val": 2}

    def vaihingen(self) -> dict[str, int]:
        """Crops in GKD's folders."""
        for tile in ("train/area1", "val/area2"):
            crop = f"{tile}_0_0_512_512.png"
            self.pair(f"vaihingen/img_dir/{crop}", f"vaihingen/ann_dir/{crop}", range(7))
        return {"train": 1, "val": 1}

    def imagenet(self) -> dict[str, int]:
        """Two classes; one file is in CMYK, as some of ImageNet's are."""
        for split in ("train", "val"):
            self.photo(f"imagenet/{split}/n01440764/n01440764_0.JPEG")
            self.photo(f"imagenet/{split}/n01443537/n01443537_1.JPEG", mode="CMYK")
        return {"train": 2, "val": 2}

    def camvid(self) -> dict[str, int]:
        """As the SegNet tutorial ships it."""
        frames = {
            "train": ("0001TP_006690", "0006R0_f00930", "0006R0_f00960", "0016E5_00390", "0016E5_00420"),
            "val": ("0016E5_07959", "0016E5_07961"),
            "test": ("0001TP_008550", "Seq05VD_f00000", "Seq05VD_f00030"),
        }
        for split, names in frames.items():
            for name in names:
                self.pair(f"CamVid/{split}/{name}.png", f"CamVid/{split}annot/{name}.png", range(12))
        parts = {"0001TP/train": 1, "0001TP/test": 1, "0006R0/train": 2, "0016E5/train": 2, "0016E5/val": 2}
        return {**parts, "Seq05VD/test": 2}

    def camvid_original(self) -> dict[str, int]:
        """The original release, labels as colours."""
        colours = np.array([c["color"] for c in FACTS["camvid"]["classes_32"]], dtype=np.uint8)
        for name in ("0001TP_006690", "0016E5_07959", "Seq05VD_f00000"):
            self.photo(f"CamVid/701_StillsRaw_full/{name}.png")
            self.save(f"CamVid/LabeledApproved_full/{name}_L.png", colours[stripes(range(32))])
        return {"0001TP/train": 1, "0016E5/val": 1, "Seq05VD/test": 1}

    def synthia(self) -> dict[str, int]:
        """Labels of 16 bits: the class first, an instance number beyond 255 second."""
        for number in range(2):
            self.photo(f"RAND_CITYSCAPES/RGB/{number:07}.png")
            path = self.root / f"RAND_CITYSCAPES/GT/LABELS/{number:07}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(sixteen_bits(stripes(range(23))))
        return {"all": 2}

    def urbansyn(self) -> dict[str, int]:
        """Numbered images and labels; 19 is ignored."""
        for number in range(2):
            self.pair(f"urbansyn/rgb/rgb_{number:04}.png", f"urbansyn/ss/ss_{number:04}.png", range(20))
            self.photo(f"urbansyn/ss_color/ss_color_{number:04}.png")
        return {"all": 2}


def sixteen_bits(classes: np.ndarray) -> bytes:
    """Return an RGB PNG of 16 bits a channel, chunk by chunk; Pillow writes none."""
    planes = np.stack([classes, np.full(classes.shape, 300), np.zeros(classes.shape)], -1).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in planes)
    header = struct.pack(">IIBBBBB", classes.shape[1], classes.shape[0], 16, 2, 0, 0, 0)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.fixture(params=Trees.LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    """Return each layout in turn."""
    return str(request.param)


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    """Write data sets below a fresh data root."""
    return Trees(tmp_path / "data")


@pytest.fixture
def g2c_root(trees: Trees) -> Path:
    """Return a data root with the data sets of g2c."""
    trees.make("gtav", "cityscapes")
    return trees.root
