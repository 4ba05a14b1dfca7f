"""Tiny healthy trees of every data set's layout, as its authors ship it, with what each label holds."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

FACTS = yaml.safe_load((Path(__file__).parent / "labels.yaml").read_text(encoding="utf-8"))
H, W = 24, 48


def save(path: Path, array: np.ndarray, palette: list[int] | None = None) -> None:
    """An array as PNG, JPEG or TIFF, with a palette where one is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(array)
    if palette is not None:
        picture = picture.convert("P") if picture.mode != "L" else picture
        picture.putpalette(palette)
    picture.save(path)


def photo(seed: int = 0, size: tuple[int, int] = (H, W)) -> np.ndarray:
    """Random pixels (H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def stripes(values: list[int], size: tuple[int, int] = (H, W)) -> np.ndarray:
    """Every value at least once, along the rows."""
    return np.resize(np.array(values, dtype=np.uint8), size)


@dataclass
class Trees:
    """Writes data sets below root; each method returns the number of pairs of each part."""

    root: Path
    made: list[str] = field(default_factory=list)

    def make(self, name: str) -> dict[str, int]:
        """One data set."""
        self.made.append(name)
        parts: dict[str, int] = getattr(self, name)()
        return parts

    def shot(self, path: Path, size: tuple[int, int] = (H, W)) -> None:
        """A picture like no other."""
        save(path, photo(zlib.crc32(str(path.relative_to(self.root)).encode()), size))

    def cityscapes(self) -> dict[str, int]:
        """leftImg8bit and gtFine with everything that gtFine ships."""
        root = self.root / "cityscapes"
        for split, city in (("train", "aachen"), ("train", "ulm"), ("val", "munster")):
            for frame in range(2):
                stem = f"{city}/{city}_{frame:06}_000019"
                self.shot(root / f"leftImg8bit/{split}/{stem}_leftImg8bit.png")
                save(root / f"gtFine/{split}/{stem}_gtFine_labelIds.png", stripes(list(range(34))))
                self.shot(root / f"gtFine/{split}/{stem}_gtFine_color.png")
                save(root / f"gtFine/{split}/{stem}_gtFine_instanceIds.png", stripes([7]))
        return {"train": 4, "val": 2}

    def gtav(self) -> dict[str, int]:
        """Palette labels whose index is the id; one of them two pixels smaller than its image."""
        palette = [0] * 768
        for label in FACTS["cityscapes"]["labels"]:
            if label["id"] >= 0:
                palette[3 * label["id"] : 3 * label["id"] + 3] = label["color"]
        for number in range(1, 4):
            self.shot(self.root / f"GTA5/images/{number:05}.png")
            size = (H, W - 2) if number == 2 else (H, W)
            save(self.root / f"GTA5/labels/{number:05}.png", stripes(list(range(34)), size), palette)
        save(self.root / "GTA5/labels/00001_labelTrainIds.png", stripes([0]))
        return {"all": 3}

    def bdd100k(self) -> dict[str, int]:
        """The 10k images with masks, and the colour maps that must not be read."""
        root = self.root / "bdd100k"
        for split, count in (("train", 3), ("val", 2)):
            for number in range(count):
                stem = f"{split}/0a1b2c3d-4e5f607{number}"
                self.shot(root / f"images/10k/{stem}.jpg")
                save(root / f"labels/sem_seg/masks/{stem}.png", stripes([*range(19), 255]))
                self.shot(root / f"labels/sem_seg/colormaps/{stem}.png")
        return {"train": 3, "val": 2}

    def bdd100k_first(self) -> dict[str, int]:
        """The first release."""
        root = self.root / "bdd"
        self.shot(root / "images/val/0a1b2c3d-4e5f6071.jpg")
        save(root / "labels/val/0a1b2c3d-4e5f6071_train_id.png", stripes([*range(19), 255]))
        return {"val": 1}

    def mapillary(self, labels: str = "labels") -> dict[str, int]:
        """v1.2 alone."""
        root = self.root / "mapillary"
        palette = [channel for label in FACTS["mapillary_v1_2"]["labels"] for channel in label["color"]]
        for split, count in (("training", 2), ("validation", 2)):
            for number in range(count):
                stem = f"S2vjth7lk4EIKius2I-1A{number}"
                # Sizes differ from image to image.
                size = (H + 2 * number, W)
                self.shot(root / f"{split}/images/{stem}.jpg", size)
                save(root / f"{split}/{labels}/{stem}.png", stripes(list(range(66)), size), palette)
        return {"train": 2, "val": 2}

    def mapillary_v2(self) -> dict[str, int]:
        """v1.2 inside the package of v2.0."""
        parts = self.mapillary("v1.2/labels")
        for split in ("training", "validation"):
            for number in range(2):
                save(
                    self.root / f"mapillary/{split}/v2.0/labels/S2vjth7lk4EIKius2I-1A{number}.png", stripes([110, 123])
                )
        return parts

    def acdc(self) -> dict[str, int]:
        """Four conditions, each with reference images and uncertainty masks beside."""
        root, parts = self.root / "acdc", {}
        for condition in ("fog", "night", "rain", "snow"):
            for split in ("train", "val"):
                for frame in range(2):
                    stem = f"{condition}/{split}/GOPR0351/GOPR0351_frame_{frame:06}"
                    reference = f"{condition}/{split}_ref/GOPR0351/GOPR0351_frame_{frame:06}"
                    self.shot(root / f"rgb_anon/{stem}_rgb_anon.png")
                    self.shot(root / f"rgb_anon/{reference}_rgb_ref_anon.png")
                    save(root / f"gt/{stem}_gt_labelTrainIds.png", stripes([*range(19), 255]))
                    save(root / f"gt/{stem}_gt_labelIds.png", stripes(list(range(34))))
                    save(root / f"gt/{stem}_gt_invIds.png", stripes([0, 255]))
                parts[f"{condition}/{split}"] = 2
            self.shot(root / f"rgb_anon/{condition}/test/GOPR0351/GOPR0351_frame_000009_rgb_anon.png")
        return parts

    def potsdam(self) -> dict[str, int]:
        """Crops in GKD's folders, red, green, blue and infrared, red, green."""
        for bands in ("RGB", "IRRG"):
            for split, tile in (("train", "2_10"), ("val", "2_13")):
                for x in (0, 512):
                    crop = f"{split}/{tile}_{x}_0_{x + 512}_512.png"
                    self.shot(self.root / f"potsdam/{bands}/img_dir/{crop}")
                    save(self.root / f"potsdam/{bands}/ann_dir/{crop}", stripes(list(range(7))))
        return {"RGB/train": 2, "RGB/val": 2, "IRRG/train": 2, "IRRG/val": 2}

    def vaihingen(self) -> dict[str, int]:
        """Crops in GKD's folders."""
        for split, tile in (("train", "area1"), ("val", "area2")):
            crop = f"{split}/{tile}_0_0_512_512.png"
            self.shot(self.root / f"vaihingen/img_dir/{crop}")
            save(self.root / f"vaihingen/ann_dir/{crop}", stripes(list(range(7))))
        return {"train": 1, "val": 1}

    def imagenet(self) -> dict[str, int]:
        """Two classes; one file is in CMYK, as some of ImageNet's are."""
        for split in ("train", "val"):
            for number, wnid in enumerate(("n01440764", "n01443537")):
                path = self.root / f"imagenet/{split}/{wnid}/{wnid}_{number}.JPEG"
                path.parent.mkdir(parents=True)
                Image.fromarray(photo(10 * number + len(split))).convert("CMYK" if number else "RGB").save(path)
        return {"train": 2, "val": 2}

    def camvid(self) -> dict[str, int]:
        """As the SegNet tutorial ships it."""
        frames = {
            "train": ["0001TP_006690", "0006R0_f00930", "0006R0_f00960", "0016E5_00390", "0016E5_00420"],
            "val": ["0016E5_07959", "0016E5_07961"],
            "test": ["0001TP_008550", "Seq05VD_f00000", "Seq05VD_f00030"],
        }
        for split, names in frames.items():
            for name in names:
                self.shot(self.root / f"CamVid/{split}/{name}.png")
                save(self.root / f"CamVid/{split}annot/{name}.png", stripes(list(range(12))))
        return {
            "0001TP/train": 1, "0001TP/test": 1, "0006R0/train": 2, "0016E5/train": 2, "0016E5/val": 2,
            "Seq05VD/test": 2,
        }  # fmt: skip

    def camvid_original(self) -> dict[str, int]:
        """The original release, labels as colours."""
        colours = np.array([c["color"] for c in FACTS["camvid"]["classes_32"]], dtype=np.uint8)
        for name in ("0001TP_006690", "0016E5_07959", "Seq05VD_f00000"):
            self.shot(self.root / f"CamVid/701_StillsRaw_full/{name}.png")
            save(self.root / f"CamVid/LabeledApproved_full/{name}_L.png", colours[stripes(list(range(32)))])
        return {"0001TP/train": 1, "0016E5/val": 1, "Seq05VD/test": 1}

    def synthia(self) -> dict[str, int]:
        """16-bit labels, the class first, the instance second."""
        for number in range(2):
            self.shot(self.root / f"RAND_CITYSCAPES/RGB/{number:07}.png")
            path = self.root / f"RAND_CITYSCAPES/GT/LABELS/{number:07}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            sixteen_bits(path, stripes(list(range(23))))
        return {"all": 2}

    def urbansyn(self) -> dict[str, int]:
        """Numbered images and labels; 19 is ignored."""
        for number in range(2):
            self.shot(self.root / f"urbansyn/rgb/rgb_{number:04}.png")
            save(self.root / f"urbansyn/ss/ss_{number:04}.png", stripes(list(range(20))))
            self.shot(self.root / f"urbansyn/ss_color/ss_color_{number:04}.png")
        return {"all": 2}


def sixteen_bits(path: Path, classes: np.ndarray) -> None:
    """An RGB picture of 16 bits a channel: classes, an instance number beyond 255, nothing. Written chunk by chunk."""
    planes = np.stack([classes, np.full(classes.shape, 300), np.zeros(classes.shape)], -1).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in planes)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", classes.shape[1], classes.shape[0], 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    """Writes data sets below a fresh data root."""
    return Trees(tmp_path / "data")


@pytest.fixture
def zipped() -> Callable[[Path, dict[str, str]], None]:
    """Moves folders of a data set into archives: name of the archive -> what it holds."""

    def move(root: Path, archives: dict[str, str]) -> None:
        for name, folder in archives.items():
            files = sorted(path for path in (root / folder).rglob("*") if path.is_file())
            with zipfile.ZipFile(root / name, "w") as archive:
                for path in files:
                    archive.write(path, path.relative_to(root).as_posix())
                    path.unlink()

    return move
