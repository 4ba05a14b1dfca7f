"""The data doctor finds each planted fault, and none on a healthy tree."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdbench.data.datasets import ADAPTERS
from kdbench.progress import Silent
from kdbench.tools.verify import Report, lines, verify

HEALTHY = {
    "cityscapes": "cityscapes", "gtav": "gtav", "bdd100k": "bdd100k", "bdd100k_first": "bdd100k",
    "mapillary": "mapillary", "mapillary_v2": "mapillary", "acdc": "acdc", "potsdam": "potsdam",
    "vaihingen": "vaihingen", "imagenet": "imagenet", "camvid": "camvid", "camvid_original": "camvid",
    "synthia": "synthia", "urbansyn": "urbansyn",
}  # fmt: skip
SIZE = (24, 48)


def checked(trees: Any, layout: str, parts: dict[str, int]) -> Report:
    """The report, with a tiny tree's counts and sizes in place of the official ones."""
    adapter = ADAPTERS[HEALTHY[layout]]
    sized = adapter.size and SIZE
    return verify(replace(adapter, counts=parts, size=sized), trees.root, None, Silent())


@pytest.mark.parametrize("layout", HEALTHY)
def test_a_healthy_tree_has_no_fault(trees: Any, layout: str) -> None:
    report = checked(trees, layout, trees.make(layout))
    assert report.healthy, list(lines(report))
    noted = [finding.what for finding in report.issues]
    # One label of the little GTAV is smaller than its image, as some of the large one's are.
    assert noted == (["1 labels of another size than their image"] if layout == "gtav" else [])
    assert report.checked == sum(report.parts.values())


def first(root: Path, pattern: str) -> Path:
    return min(root.glob(pattern))


def flat(root: Path, pattern: str, value: int, size: tuple[int, int] = SIZE, channels: int = 1) -> None:
    Image.fromarray(np.full((*size, channels), value, np.uint8).squeeze()).save(first(root, pattern))


def resave(root: Path, pattern: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    path = first(root, pattern)
    Image.fromarray(change(np.asarray(Image.open(path)))).save(path)


def zip_with(root: Path, name: str, member: str, content: bytes) -> None:
    root.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(root / name, "w") as archive:
        archive.writestr(member, content)


def corrupt_member(root: Path) -> None:
    """An archive whose member's checksum does not fit its content."""
    image = first(root, "images/10k/val/*.jpg")
    zip_with(root, "bdd100k_images_10k.zip", f"images/10k/val/{image.name}", image.read_bytes())
    image.unlink()
    path = root / "bdd100k_images_10k.zip"
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF
    path.write_bytes(bytes(content))


def broken_deflation(root: Path) -> None:
    """An archive with compressed labels, a byte of which is wrong."""
    label = first(root, LABEL)
    name, content = label.relative_to(root).as_posix(), label.read_bytes()
    label.unlink()
    for place in range(40, 400):
        path = root / "gtFine_trainvaltest.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, content)
        broken = bytearray(path.read_bytes())
        broken[place] ^= 0xFF
        path.write_bytes(bytes(broken))
        try:
            zipfile.ZipFile(path).read(name)
        except zlib.error:
            return
        except (zipfile.BadZipFile, OSError):
            continue
    raise AssertionError("no byte breaks the compression")


def tile(root: Path, off: int) -> None:
    """What cutting a tile leaves, with so many of 1000 pixels off the palette."""
    path = root / "RGB/tiles/6_7.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"tile": "6_7", "bands": "RGB", "pixels": 1000, "off_palette": off}))


LABEL = "gtFine/val/*/*_labelIds.png"
IMAGE = "leftImg8bit/val/*/*.png"
MASK = "labels/sem_seg/masks/val/*.png"


def test_what_else_lies_there_is_no_repair_of_a_single_missing_label(trees: Any) -> None:
    """Converted labels beside the shipped ones are usual."""
    parts = trees.make("cityscapes")
    labels = sorted((trees.root / "cityscapes/gtFine").glob("*/*/*_labelIds.png"))
    for label in labels:
        shutil.copy(label, str(label).replace("labelIds", "labelTrainIds"))
    labels[0].unlink()
    (finding,) = [f for f in checked(trees, "cityscapes", parts).issues if "without a label" in f.what]
    assert "converted" not in finding.repair


FAULTS: dict[str, tuple[str, str, Callable[[Path], Any], str]] = {
    "an image is missing": (
        "cityscapes",
        "cityscapes",
        lambda r: first(r, IMAGE).unlink(),
        "1 labels without an image",
    ),
    "a label is missing": ("cityscapes", "cityscapes", lambda r: first(r, LABEL).unlink(), "1 images without a label"),
    "a pair is missing": (
        "cityscapes",
        "cityscapes",
        lambda r: (first(r, IMAGE).unlink(), first(r, LABEL).unlink()),
        "part val has 1 of 2",
    ),
    "only converted labels": (
        "cityscapes",
        "cityscapes",
        lambda r: [p.rename(str(p).replace("labelIds", "labelTrainIds")) for p in r.glob("gtFine/*/*/*_labelIds.png")],
        "6 images without a label",
    ),
    "converted values under the shipped name": (
        "cityscapes",
        "cityscapes",
        lambda r: flat(r, LABEL, 255),
        "labels with unknown values",
    ),
    "a pair too many": (
        "gtav",
        "GTA5",
        lambda r: [shutil.copy(r / f"{k}/00001.png", r / f"{k}/00099.png") for k in ("images", "labels")],
        "1 more than",
    ),
    "a picture in two parts": (
        "potsdam",
        "potsdam",
        lambda r: shutil.copy(first(r, "RGB/img_dir/val/*.png"), first(r, "IRRG/img_dir/val/*.png")),
        "the same picture in two parts",
    ),
    "a truncated image": (
        "gtav",
        "GTA5",
        lambda r: (r / "images/00001.png").write_bytes((r / "images/00001.png").read_bytes()[:900]),
        "images that cannot be read",
    ),
    "an empty image": (
        "bdd100k",
        "bdd100k",
        lambda r: first(r, "images/10k/*/*.jpg").write_bytes(b""),
        "images that cannot",
    ),
    "an empty label": (
        "gtav",
        "GTA5",
        lambda r: (r / "labels/00001.png").write_bytes(b""),
        "labels that cannot be read",
    ),
    "a colour map for a mask": (
        "bdd100k",
        "bdd100k",
        lambda r: shutil.copy(first(r, "labels/sem_seg/colormaps/val/*"), first(r, MASK)),
        "labels that cannot be read",
    ),
    "Cityscapes ids in a mask of BDD100K": (
        "bdd100k",
        "bdd100k",
        lambda r: flat(r, MASK, 26),
        "labels with unknown values",
    ),
    "a label of another size": (
        "bdd100k",
        "bdd100k",
        lambda r: resave(r, MASK, lambda a: a[:-2]),
        "labels of another size than their image",
    ),
    "a resized image": (
        "acdc",
        "acdc",
        lambda r: resave(r, "rgb_anon/fog/val/*/*.png", lambda a: a[::2, ::2]),
        "images of another size",
    ),
    "Cityscapes ids in ACDC": (
        "acdc",
        "acdc",
        lambda r: shutil.copy(first(r, "gt/fog/val/*/*_labelIds.png"), first(r, "gt/fog/val/*/*_labelTrainIds.png")),
        "labels with unknown values",
    ),
    "uncertainty in place of labels": (
        "acdc",
        "acdc",
        lambda r: shutil.copy(first(r, "gt/fog/val/*/*_invIds.png"), first(r, "gt/fog/val/*/*_labelTrainIds.png")),
        "labels of one class alone",
    ),
    "nothing but ignored pixels": (
        "acdc",
        "acdc",
        lambda r: flat(r, "gt/fog/val/*/*_labelTrainIds.png", 255),
        "labels in which everything is ignored",
    ),
    "a blank image": ("gtav", "GTA5", lambda r: flat(r, "images/00003.png", 0, channels=3), "1 blank images "),
    "a blank image of the release": (
        "gtav",
        "GTA5",
        lambda r: (
            [(r / f"{kind}/00003.png").rename(r / f"{kind}/15188.png") for kind in ("images", "labels")]
            and flat(r, "images/15188.png", 0, channels=3)
        ),
        "1 blank images of the release",
    ),
    "a part of GTAV is missing": (
        "gtav",
        "GTA5",
        lambda r: [(r / f"{kind}/00003.png").unlink() for kind in ("images", "labels")],
        "part all has 2 of 3",
    ),
    "uncertainty in place of all labels": (
        "acdc",
        "acdc",
        lambda r: [
            p.write_bytes(first(r, "gt/fog/val/*/*_invIds.png").read_bytes())
            for p in r.glob("gt/*/*/*/*_labelTrainIds.png")
        ],
        "something else lies in their place",
    ),
    "predictions in place of labels": (
        "cityscapes",
        "cityscapes",
        lambda r: [
            Image.fromarray(np.resize(np.arange(19, dtype=np.uint8), SIZE)).save(p)
            for p in r.glob("gtFine/*/*/*_labelIds.png")
        ],
        "are in no label: 21, 26",
    ),
    "a broken compressed member": ("cityscapes", "cityscapes", broken_deflation, "labels that cannot be read"),
    "a missing condition": (
        "acdc",
        "acdc",
        lambda r: [shutil.rmtree(r / f"{k}/snow/val") for k in ("rgb_anon", "gt")],
        "part snow/val is not there",
    ),
    "labels of Mapillary 2.0": (
        "mapillary",
        "mapillary",
        lambda r: flat(r, "validation/labels/*.png", 110),
        "labels with unknown values",
    ),
    "an ending in capitals": (
        "cityscapes",
        "cityscapes",
        lambda r: first(r, IMAGE).rename(first(r, IMAGE).with_suffix(".PNG")),
        "nearly named",
    ),
    "another ending": (
        "mapillary",
        "mapillary",
        lambda r: first(r, "validation/images/*").rename(first(r, "validation/images/*").with_suffix(".jpeg")),
        "nearly named",
    ),
    "a second copy": (
        "gtav",
        "GTA5",
        lambda r: (
            (r / "copy/images").mkdir(parents=True),
            shutil.copy(r / "images/00001.png", r / "copy/images/00001.png"),
        ),
        "second files for the same image",
    ),
    "a broken archive": (
        "cityscapes",
        "cityscapes",
        lambda r: (r / "gtFine_trainvaltest.zip").write_bytes(b"PK..."),
        "Download it again",
    ),
    "a broken member": ("bdd100k", "bdd100k", corrupt_member, "images that cannot be read"),
    "an archive with a path outside": (
        "cityscapes",
        "cityscapes",
        lambda r: zip_with(r, "gtFine_x.zip", "../../a.png", b"x"),
        "outside of it",
    ),
    "a link that leads outside": (
        "cityscapes",
        "cityscapes",
        lambda r: (r / "more").symlink_to(r.parent.parent),
        "outside the data set's folder",
    ),
    "a packed archive": (
        "synthia",
        "RAND_CITYSCAPES",
        lambda r: (shutil.rmtree(r / "RGB"), (r / "SYNTHIA_RAND_CITYSCAPES.rar").touch()),
        "unrar x",
    ),
    "8-bit labels of SYNTHIA": (
        "synthia",
        "RAND_CITYSCAPES",
        lambda r: flat(r, "GT/LABELS/*.png", 3),
        "labels that cannot be read",
    ),
    "an unknown value of UrbanSyn": (
        "urbansyn",
        "urbansyn",
        lambda r: flat(r, "ss/*.png", 200),
        "labels with unknown values",
    ),
    "ImageNet still in its archive": (
        "imagenet",
        "imagenet",
        lambda r: (shutil.rmtree(r / "train"), shutil.rmtree(r / "val"), (r / "ILSVRC2012_img_train.tar").touch()),
        "it holds a tar file a class",
    ),
    "tiles that are not cut": (
        "vaihingen",
        "vaihingen",
        lambda r: (shutil.rmtree(r / "img_dir"), (r / "top").mkdir(), (r / "top/top_mosaic_09cm_area1.tif").touch()),
        "kdbench data prepare vaihingen",
    ),
    "classes that were shifted": (
        "potsdam",
        "potsdam",
        lambda r: flat(r, "RGB/ann_dir/val/*.png", 7),
        "labels with unknown values",
    ),
    "an overlaid label of CamVid": (
        "camvid_original",
        "CamVid",
        lambda r: resave(r, "LabeledApproved_full/*.png", lambda a: (a // 2 + 60).astype(np.uint8)),
        "labels with unknown values",
    ),
    "a wrong value of CamVid": (
        "camvid",
        "CamVid",
        lambda r: flat(r, "valannot/*.png", 12),
        "labels with unknown values",
    ),
    "a palette of another program": (
        "gtav",
        "GTA5",
        lambda r: Image.open(first(r, "labels/0000?.png")).convert("RGB").quantize(64).save(first(r, "labels/*.png")),
        "labels with another palette",
    ),
    "an archive that is not the published one": (
        "bdd100k",
        "bdd100k",
        lambda r: zip_with(r, "bdd100k_images_10k.zip", "images/10k/readme", b""),
        "archives that are not the published ones",
    ),
    "a list of labels of another version": (
        "mapillary",
        "mapillary",
        lambda r: (r / "config.json").write_text(json.dumps({"labels": [{}] * 124})),
        "the list of labels has 124 entries",
    ),
    "a broken list of labels": (
        "mapillary",
        "mapillary",
        lambda r: (r / "config_v1.2.json").write_text('{"labels":'),
        "the list of labels cannot be read",
    ),
    "a lossy label tile": (
        "potsdam",
        "potsdam",
        lambda r: tile(r, off=600),
        "no longer in the classes' colours",
    ),
    "a label tile with a few other colours": (
        "potsdam",
        "potsdam",
        lambda r: tile(r, off=3),
        "tile 6_7 RGB (0.30 % of its pixels)",
    ),
}
NOTES = {
    "a label tile with a few other colours",
    "a blank image of the release",
    "a part of GTAV is missing",
    "a missing condition",
    "uncertainty in place of labels",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_planted_fault_is_found(trees: Any, fault: str) -> None:
    layout, folder, plant, expected = FAULTS[fault]
    parts = trees.make(layout)
    plant(trees.root / folder)
    report = checked(trees, layout, parts)
    text = "\n".join(f"{f.what} {' '.join(f.files)} {f.repair}" for f in report.issues)
    assert expected in text
    assert report.healthy == (fault in NOTES), text
    assert report.issues[0].what.split()[-1] in "".join(lines(report))
    assert all(finding.repair and finding.files for finding in report.issues)


def kdbench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kdbench.cli", *arguments], capture_output=True, text=True, check=False
    )


def test_the_command_says_what_is_wrong_and_exits_with_one(trees: Any) -> None:
    trees.make("camvid")
    done = kdbench("data", "verify", "--data-root", str(trees.root))
    assert done.returncode == 1, done.stderr
    assert "part 0006R0 has 2 of 101 images" in " ".join(done.stdout.split())
    assert "pixels in percent: sky" in done.stdout
    nothing = kdbench("data", "verify", "--data-root", str(trees.root / "CamVid" / "train"))
    assert nothing.returncode == 2
    assert "no data set is under" in nothing.stderr
