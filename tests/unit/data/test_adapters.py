"""Every data set from tiny trees of its layouts: pairs, parts, classes against labels.yaml, and refused files."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from kdbench.data.datasets import ADAPTERS
from kdbench.data.datasets.files import DataFile, FileTree, open_image
from kdbench.data.realset import RealSet
from kdbench.errors import KdbenchError

FACTS = yaml.safe_load((Path(__file__).parent / "labels.yaml").read_text(encoding="utf-8"))
CLASSES_19 = [*range(19), 255]
EXPECTED = {
    "cityscapes": FACTS["cityscapes"]["id_to_trainId_lut_0_33"],
    "gtav": FACTS["cityscapes"]["id_to_trainId_lut_0_33"],
    "bdd100k": CLASSES_19,
    "acdc": CLASSES_19,
    "mapillary": FACTS["mapillary_v1_2"]["lut_gkd_rein"],
    "synthia": [label["trainId"] for label in FACTS["synthia_rand_cityscapes"]["labels"]],
    "urbansyn": [FACTS["urbansyn"]["value_to_trainId"][value] for value in range(20)],
    "potsdam": [FACTS["isprs"]["reduce_zero_label_rule"][value] for value in range(7)],
    "vaihingen": [FACTS["isprs"]["reduce_zero_label_rule"][value] for value in range(7)],
    "camvid": [*range(11), 255],
    "camvid_original": [255 if c["class_11"] == 11 else c["class_11"] for c in FACTS["camvid"]["classes_32"]],
}
"""The class of every stored value, from the facts alone."""


def test_every_layout_gives_its_pairs_parts_and_classes_and_nothing_else(trees: Any, layout: str) -> None:
    parts, scan = trees.make(layout), trees.scan(layout)
    assert {part: len(scan.pairs_in(part)) for part in {pair.part for pair in scan.pairs}} == parts
    assert not [*scan.images.copies, *scan.labels.copies]
    assert all(pair.label is not None for pair in scan.pairs) == (layout != "imagenet")
    for index, pair in enumerate(scan.pairs):
        # A worker that is not forked gets its samples pickled.
        opened = pickle.loads(pickle.dumps(trees.open(layout, pair.part)))
        image, label = opened.read(scan.pairs_in(pair.part).index(pair))
        assert label.shape == image.shape[1:]
        if not (layout == "gtav" and index == 1):  # the label that is resized to its image
            wanted = EXPECTED.get(layout, EXPECTED.get(scan.adapter.name, [255]))
            assert np.array_equal(label.numpy(), np.resize(np.array(wanted), tuple(label.shape)))


def test_mapillary_has_both_published_tables(trees: Any) -> None:
    trees.make("mapillary")
    ours, other = (trees.open("mapillary", "val", label_map=name).read(0)[1] for name in ("", "robustnet"))
    lut = np.array(FACTS["mapillary_v1_2"]["lut_robustnet_hrda"])
    assert np.array_equal(other.numpy(), np.resize(lut, tuple(other.shape)))
    differ = {int(v) for v in np.resize(np.arange(66), tuple(other.shape))[(ours != other).numpy()]}
    assert differ == set(FACTS["mapillary_v1_2"]["indices_where_mappings_differ"])
    with pytest.raises(KdbenchError, match=r"unknown label map 'rain' of data set 'mapillary'.*Did you mean 'rein'"):
        trees.open("mapillary", "val", label_map="rain").read(0)


@pytest.mark.parametrize(
    ("layout", "archives"),
    [
        ("cityscapes", {"leftImg8bit_trainvaltest.zip": "leftImg8bit", "gtFine_trainvaltest.zip": "gtFine"}),
        ("gtav", {"01_images.zip": "images", "01_labels.zip": "labels"}),
        ("bdd100k", {"bdd100k_images_10k.zip": "images", "bdd100k_sem_seg_labels_trainval.zip": "labels"}),
        ("mapillary", {"mapillary-vistas-dataset_public_v1.2.zip": "."}),
        ("acdc", {"rgb_anon_trainvaltest.zip": "rgb_anon", "gt_trainval.zip": "gt"}),
        ("camvid_original", {n: n[:-4] for n in ("701_StillsRaw_full.zip", "LabeledApproved_full.zip")}),
        ("urbansyn", {"rgb.zip": "rgb", "ss.zip": "ss"}),
    ],
)
def test_archives_are_read_in_place(trees: Any, layout: str, archives: dict[str, str]) -> None:
    parts = trees.make(layout)
    before = {part: trees.open(layout, part).read(0) for part in parts}
    trees.zip(layout, archives)
    for part, count in parts.items():
        samples = trees.open(layout, part)
        assert len(samples) == count
        assert all((ours == theirs).all() for ours, theirs in zip(samples.read(0), before[part], strict=True))
        assert ".zip!" in str(samples.pairs[0].image)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"])
def test_a_damaged_file_of_gtavs_split_is_named(trees: Any, content: bytes) -> None:
    trees.make("gtav")
    (trees.root / "GTA5/split.mat").write_bytes(content)
    with pytest.raises(KdbenchError, match=r"split\.mat cannot be read"):
        _ = ADAPTERS["gtav"].scan(trees.root).pairs


def test_the_root_may_be_a_data_sets_folder_however_it_is_named(trees: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.make("gtav")
    monkeypatch.chdir(trees.root / "GTA5")
    assert ADAPTERS["gtav"].folder(Path("."))
    assert ADAPTERS["gtav"].scan(Path(".")).pairs


def test_what_is_missing_or_broken_is_named(trees: Any) -> None:
    trees.make("camvid")
    root, adapter = trees.root, ADAPTERS["camvid"]
    with pytest.raises(KdbenchError, match=r"--data-root .*nowhere is not a folder"):
        adapter.scan(root / "nowhere")
    with pytest.raises(KdbenchError, match=r"'camvid' is not under .*Looked for: .*CamVid.*It comes from https"):
        adapter.scan(root / "CamVid" / "train")
    with pytest.raises(KdbenchError, match=r"no images of Seq99 .*There are: 0001TP/test, 0001TP/train"):
        adapter.scan(root).complete_pairs(["Seq99"])
    (root / "CamVid/train/0006R0_f00930.png").write_bytes(b"not an image")
    with pytest.raises(KdbenchError, match=r"0006R0_f00930\.png cannot be read .*Restore it"):
        trees.open("camvid", "0006R0").read(0)
    (root / "CamVid/trainannot/0006R0_f00960.png").unlink()
    with pytest.raises(KdbenchError, match=r"1 of 2 images of 0006R0 have no label file, the first is .*f00960\.png"):
        adapter.scan(root).complete_pairs(["0006R0"])


def test_labels_that_cannot_be_right_are_refused(trees: Any) -> None:
    trees.make("bdd100k")
    first, second = sorted((trees.root / "bdd100k/labels/sem_seg/masks/val").iterdir())
    samples = trees.open("bdd100k", "val")
    Image.fromarray(np.full((24, 48), 26, np.uint8)).save(first)  # a Cityscapes id
    with pytest.raises(KdbenchError, match=r"it holds the value 26, which is no label of BDD100K"):
        samples.read(0)
    Image.fromarray(np.zeros((24, 48, 3), np.uint8)).save(first)
    with pytest.raises(KdbenchError, match="a label of one channel was expected, this is a picture in mode RGB"):
        samples.read(0)
    Image.fromarray(np.zeros((24, 40), np.uint8)).save(second)
    with pytest.raises(KdbenchError, match=r"it is \(24, 40\) pixels large, its image \(24, 48\)"):
        samples.read(1)


@pytest.mark.parametrize(
    ("dataset", "path", "message"),
    [
        ("imagenet", "imagenet/val/ILSVRC2012_val_00000001.JPEG", "lie flat; sort them"),
        ("urbansyn", "urbansyn/rgb.tar.gz", r"zip archives alone are read in place; unpack it"),
        ("bdd100k", "bdd100k/images/100k/val/0a1b2c3d-4e5f6071.jpg", r"no part of the 100k set"),
    ],
)
def test_what_lies_there_in_place_of_the_data_is_told(tmp_path: Path, dataset: str, path: str, message: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).touch()
    with pytest.raises(KdbenchError, match=message):
        ADAPTERS[dataset].scan(tmp_path).complete_pairs(("train",))


def test_links_are_followed_but_not_around(tmp_path: Path) -> None:
    root, outside = tmp_path / "set", tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "b.png").touch()
    (root / "inside").mkdir(parents=True)
    (root / "again").symlink_to(root / "inside")
    (root / "inside/a.png").touch()
    assert sorted(FileTree(root).files) == ["again/a.png", "inside/a.png"]
    (root / "out").symlink_to(outside)
    (root / "one.png").symlink_to(outside / "b.png")
    assert sorted(FileTree(root).files) == ["again/a.png", "inside/a.png", "one.png", "out/b.png"]
    (outside / "back").symlink_to(root)
    with pytest.raises(KdbenchError, match=r"out/back is a link to a folder that contains it"):
        _ = FileTree(root).files
    os.unlink(outside / "back")
    (root / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(KdbenchError, match=r"set/gone is a link to .*nowhere, which is not there"):
        _ = FileTree(root).files
    os.unlink(root / "gone")
    (root / "inside/loop").symlink_to(root)
    with pytest.raises(KdbenchError, match="a folder that contains it"):
        _ = FileTree(root).files


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a\\..\\b.png"])
def test_an_archive_with_paths_outside_of_it_is_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(KdbenchError, match=r"bad\.zip holds a file named '.*', outside of it"):
        _ = FileTree(tmp_path, ("*.zip",)).files


def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdbench.data.datasets.files.MOST_BYTES", 1000)
    monkeypatch.setattr("kdbench.data.datasets.files.MOST_PIXELS", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", b"\0" * 2000)
    with pytest.raises(KdbenchError, match=r"bomb\.zip!a\.png cannot be read \(more than 1000 bytes unpacked"):
        FileTree(tmp_path, ("*.zip",)).files["a.png"].read()
    Image.fromarray(np.zeros((50, 50), np.uint8)).save(tmp_path / "large.png")
    with pytest.raises(KdbenchError, match="50 x 50 pixels, more than 1000"):
        open_image(DataFile("large.png", tmp_path))


def test_few_samples_are_spread_and_files_sizes_and_tables_change_the_identity(trees: Any) -> None:
    trees.make("mapillary")

    def val(**fields: Any) -> RealSet:
        return trees.open("mapillary", "train", "val", **fields)

    assert [pair.part for pair in val(most=2).pairs] == ["train", "val"]
    before = val().identity
    assert set(before) == {"dataset", "parts", "sizing", "files", "reading", "classes"}
    assert before == val().identity
    assert before != val(label_map="robustnet").identity
    label = next((trees.root / "mapillary/validation/labels").iterdir())
    label.write_bytes(label.read_bytes() + b"\0")
    changed = val().identity
    assert before["files"] != changed["files"]
    shutil.rmtree(trees.root / "mapillary/training")
    assert changed["files"] != val().identity["files"]
