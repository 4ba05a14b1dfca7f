"""`kdbench data verify` finds each planted fault, and none on a healthy tree."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from kdbench.cli import app
from kdbench.progress import Silent
from kdbench.tools.verify import Report, lines, verify

SIZE = (24, 48)
Plant = Callable[[Path], object]


def verified(trees: Any, layout: str, parts: dict[str, int]) -> Report:
    """Return the report, with a tiny tree's counts and sizes in place of the official ones."""
    adapter = trees.scan(layout).adapter
    return verify(replace(adapter, counts=parts, size=adapter.size and SIZE), trees.root, None, Silent())


def test_a_healthy_tree_has_no_fault(trees: Any, layout: str) -> None:
    report = verified(trees, layout, trees.make(layout))
    assert report.healthy, list(lines(report))
    # One label of the little GTAV is smaller than its image, as some of the large one's are.
    noted = ["1 labels of another size than their image"] if layout == "gtav" else []
    assert [issue.what for issue in report.issues] == noted
    assert report.checked == sum(report.parts.values())


def first(root: Path, pattern: str) -> Path:
    return min(root.glob(pattern))


def remove(*patterns: str) -> Plant:
    return lambda root: [first(root, pattern).unlink() for pattern in patterns]


def put(name: str, content: bytes, *without: str) -> Plant:
    """Write a file, in place of some folders."""

    def plant(root: Path) -> None:
        for folder in without:
            shutil.rmtree(root / folder)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)

    return plant


def paint(pattern: str, value: int, channels: int = 1) -> Plant:
    return lambda root: Image.fromarray(np.full((*SIZE, channels), value, np.uint8).squeeze()).save(
        first(root, pattern)
    )


def copy(source: str, target: str) -> Plant:
    """Copy a file over another one, or to a new name."""
    return lambda root: shutil.copy(first(root, source), min(root.glob(target), default=root / target))


def resave(pattern: str, change: Callable[[np.ndarray], np.ndarray]) -> Plant:
    def plant(root: Path) -> None:
        path = first(root, pattern)
        Image.fromarray(change(np.asarray(Image.open(path)))).save(path)

    return plant


def each(pattern: str, change: Callable[[Path], object]) -> Plant:
    return lambda root: [change(path) for path in list(root.glob(pattern))]


def rename(pattern: str, old: str, new: str) -> Plant:
    return lambda root: first(root, pattern).rename(str(first(root, pattern)).replace(old, new))


def broken_member(root: Path) -> None:
    """Write an archive with a compressed label whose first block is of no type that there is."""
    label, path = first(root, LABEL), root / "gtFine_trainvaltest.zip"
    name = label.relative_to(root).as_posix()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(label, name)
    label.unlink()
    content = bytearray(path.read_bytes())
    content[30 + len(name)] = 0xFF
    path.write_bytes(content)


def tile(off: int) -> Plant:
    """Write what cutting a tile leaves, with so many of 1000 pixels off the palette."""
    summary = {"tile": "6_7", "bands": "RGB", "pixels": 1000, "off_palette": off}
    return put("RGB/tiles/6_7.json", json.dumps(summary).encode())


def foreign_palette(root: Path) -> None:
    Image.open(root / "labels/00001.png").convert("RGB").quantize(64).save(root / "labels/00001.png")


LABEL, IMAGE = "gtFine/val/*/*_labelIds.png", "leftImg8bit/val/*/*.png"
MASK, FOG = "labels/sem_seg/masks/val/*.png", "gt/fog/val/*/*_labelTrainIds.png"
UNKNOWN, UNREADABLE = "labels with unknown values", "labels that cannot be read"
FAULTS: list[tuple[str, Plant, str]] = [
    ("cityscapes", remove(IMAGE), "1 labels without an image"),
    ("cityscapes", remove(LABEL), "1 images without a label"),
    ("cityscapes", remove(IMAGE, LABEL), "part val has 1 of 2"),
    (
        "cityscapes",
        each("gtFine/*/*/*_labelIds.png", lambda path: path.rename(str(path).replace("labelIds", "labelTrainIds"))),
        "add the shipped *_gtFine_labelIds.png",
    ),
    ("cityscapes", paint(LABEL, 255), UNKNOWN),
    (
        "cityscapes",
        each(
            "gtFine/*/*/*_labelIds.png",
            lambda path: Image.fromarray(np.resize(np.arange(19, dtype=np.uint8), SIZE)).save(path),
        ),
        "are in no label: 21, 26",
    ),
    ("cityscapes", broken_member, UNREADABLE),
    ("cityscapes", put("gtFine_trainvaltest.zip", b"PK..."), "Download it again"),
    ("cityscapes", lambda root: (root / "more").symlink_to(root.parent.parent), "a folder that contains it"),
    ("cityscapes", rename(IMAGE, ".png", ".PNG"), "nearly named"),
    ("mapillary", rename("validation/images/*", ".jpg", ".jpeg"), "nearly named"),
    (
        "gtav",
        lambda root: [
            shutil.copy(root / kind / "00001.png", root / kind / "00099.png") for kind in ("images", "labels")
        ],
        "1 more than",
    ),
    ("gtav", lambda root: shutil.copytree(root / "images", root / "copy/images"), "3 second files for the same image"),
    ("potsdam", copy("RGB/img_dir/val/*.png", "IRRG/img_dir/val/*.png"), "the same picture in two parts"),
    (
        "gtav",
        lambda root: (root / "images/00001.png").write_bytes((root / "images/00001.png").read_bytes()[:900]),
        "images that cannot be read",
    ),
    ("gtav", put("labels/00001.png", b""), UNREADABLE),
    ("gtav", foreign_palette, "labels with another palette"),
    ("gtav", paint("images/00003.png", 0, channels=3), "1 blank images "),
    ("bdd100k", copy("labels/sem_seg/colormaps/val/*", MASK), UNREADABLE),
    ("bdd100k", resave(MASK, lambda a: a[:-2]), "labels of another size than their image"),
    ("acdc", resave("rgb_anon/fog/val/*/*.png", lambda a: a[::2, ::2]), "images of another size"),
    ("acdc", paint(FOG, 255), "labels in which everything is ignored"),
    (
        "acdc",
        each(
            "gt/*/*/*/*_labelTrainIds.png", lambda path: shutil.copy(str(path).replace("labelTrainIds", "invIds"), path)
        ),
        "something else lies in their place",
    ),
    (
        "mapillary",
        put("config.json", json.dumps({"labels": [{}] * 124}).encode()),
        "the list of labels has 124 entries",
    ),
    ("mapillary", put("config_v1.2.json", b'{"labels":'), "the list of labels cannot be read"),
    ("synthia", put("SYNTHIA_RAND_CITYSCAPES.rar", b"", "RGB"), "unrar x"),
    ("synthia", paint("GT/LABELS/*.png", 3), UNREADABLE),
    ("imagenet", put("ILSVRC2012_img_train.tar", b"", "train", "val"), "it holds a tar file a class"),
    ("vaihingen", put("top/top_mosaic_09cm_area1.tif", b"", "img_dir"), "kdbench data prepare vaihingen"),
    ("potsdam", tile(off=600), "no longer in the classes' colours"),
    ("potsdam", put("RGB/tiles/6_7.json", b"{}"), "summaries of tiles cannot be read"),
    (
        "camvid_original",
        resave("LabeledApproved_full/*.png", lambda a: (a // 2 + 60).astype(np.uint8)),
        "(colours, 100.00 % of the pixels)",
    ),
]
NOTES: list[tuple[str, Plant, str]] = [
    ("potsdam", tile(off=3), "tile 6_7 RGB (0.30 % of its pixels)"),
    (
        "gtav",
        lambda root: (
            [(root / f"{kind}/00003.png").rename(root / f"{kind}/15188.png") for kind in ("images", "labels")]
            and paint("images/15188.png", 0, channels=3)(root)
        ),
        "1 blank images of the release",
    ),
    ("gtav", remove("images/00003.png", "labels/00003.png"), "part all has 2 of 3"),
    (
        "acdc",
        lambda root: [shutil.rmtree(root / f"{kind}/snow/val") for kind in ("rgb_anon", "gt")],
        "part snow/val is not there",
    ),
    ("acdc", copy("gt/fog/val/*/*_invIds.png", FOG), "labels of one class alone"),
]


@pytest.mark.parametrize(("layout", "plant", "expected"), [*FAULTS, *NOTES])
def test_every_planted_fault_is_found(trees: Any, layout: str, plant: Plant, expected: str) -> None:
    parts = trees.make(layout)
    plant(trees.scan(layout).tree.root)
    report = verified(trees, layout, parts)
    text = "\n".join(f"{issue.what} {' '.join(issue.files)} {issue.repair}" for issue in report.issues)
    assert expected in text
    assert report.healthy == ((layout, plant, expected) in NOTES), text
    assert report.issues[0].what.split()[-1] in "".join(lines(report))
    assert all(issue.repair and issue.files for issue in report.issues)


def test_converted_labels_beside_the_shipped_ones_are_no_cause_of_a_missing_label(trees: Any) -> None:
    parts = trees.make("cityscapes")
    labels = sorted((trees.root / "cityscapes/gtFine").glob("*/*/*_labelIds.png"))
    for label in labels:
        shutil.copy(label, str(label).replace("labelIds", "labelTrainIds"))
    labels[0].unlink()
    (found,) = [i for i in verified(trees, "cityscapes", parts).issues if "without a label" in i.what]
    assert "converted" not in found.repair


def test_the_command_says_what_is_wrong_and_exits_with_one(trees: Any) -> None:
    trees.make("camvid")
    done = CliRunner().invoke(app, ["data", "verify", "--data-root", str(trees.root)])
    assert done.exit_code == 1, done.output
    assert "part 0006R0 has 2 of 101 images" in " ".join(done.stdout.split())
    assert "pixels in percent: sky" in done.stdout
