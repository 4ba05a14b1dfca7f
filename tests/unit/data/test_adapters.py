"""Every data set from tiny trees of its layout: pairs, parts and classes, pixel by pixel against labels.yaml."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from kdbench.data.datasets import ADAPTERS
from kdbench.data.realset import RealSet
from kdbench.data.sizing import Native
from kdbench.errors import KdbenchError

FACTS = yaml.safe_load((Path(__file__).parent / "labels.yaml").read_text(encoding="utf-8"))
LAYOUTS = {
    "cityscapes": "cityscapes", "gtav": "gtav", "bdd100k": "bdd100k", "bdd100k_first": "bdd100k",
    "mapillary": "mapillary", "mapillary_v2": "mapillary", "acdc": "acdc", "potsdam": "potsdam",
    "vaihingen": "vaihingen", "imagenet": "imagenet", "camvid": "camvid", "camvid_original": "camvid",
    "synthia": "synthia", "urbansyn": "urbansyn",
}  # fmt: skip


def expected(layout: str) -> list[int]:
    """The class of every stored value, from the facts alone."""
    trainable = dict(enumerate([*range(19)]))
    match layout:
        case "cityscapes" | "gtav":
            return FACTS["cityscapes"]["id_to_trainId_lut_0_33"]
        case "mapillary" | "mapillary_v2":
            return FACTS["mapillary_v1_2"]["lut_gkd_rein"]
        case "synthia":
            return [label["trainId"] for label in FACTS["synthia_rand_cityscapes"]["labels"]]
        case "urbansyn":
            return [FACTS["urbansyn"]["value_to_trainId"][value] for value in range(20)]
        case "potsdam" | "vaihingen":
            return [FACTS["isprs"]["reduce_zero_label_rule"][value] for value in range(7)]
        case "camvid":
            return [*range(11), 255]
        case "camvid_original":
            return [255 if c["class_11"] == 11 else c["class_11"] for c in FACTS["camvid"]["classes_32"]]
        case _:
            return [*trainable, 255]


def opened(root: Path, layout: str, *parts: str, label_map: str = "") -> RealSet:
    return RealSet("d", ADAPTERS[LAYOUTS[layout]].scan(root), parts, Native(), label_map)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_its_pairs_and_parts_and_nothing_else(trees: Any, layout: str) -> None:
    parts = trees.make(layout)
    scan = ADAPTERS[LAYOUTS[layout]].scan(trees.root)
    found = {part: sum(sample.part == part for sample in scan.pairs) for part in {s.part for s in scan.pairs}}
    assert found == parts
    assert not scan.images.copies
    assert not scan.labels.copies
    assert all(sample.label is not None for sample in scan.pairs) == (layout != "imagenet")


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "imagenet"])
def test_every_stored_value_becomes_its_class(trees: Any, layout: str) -> None:
    parts, lut = trees.make(layout), expected(layout)
    for part in parts:
        samples = opened(trees.root, layout, part)
        for index in range(len(samples)):
            image, label = samples.read(index)
            assert label.shape == image.shape[1:]
            if layout == "gtav" and index == 1:
                continue  # the label that is resized to its image
            wanted = np.resize(np.array(lut), tuple(label.shape))
            assert np.array_equal(label.numpy(), wanted)


def test_mapillary_has_both_published_tables(trees: Any) -> None:
    trees.make("mapillary")
    other = opened(trees.root, "mapillary", "val", label_map="robustnet").read(0)[1]
    lut = np.array(FACTS["mapillary_v1_2"]["lut_robustnet_hrda"])
    assert np.array_equal(other.numpy(), np.resize(lut, tuple(other.shape)))
    ours = opened(trees.root, "mapillary", "val").read(0)[1]
    differ = {int(v) for v in np.resize(np.arange(66), tuple(other.shape))[(ours != other).numpy()]}
    assert differ == set(FACTS["mapillary_v1_2"]["indices_where_mappings_differ"])
    with pytest.raises(KdbenchError, match=r"unknown label map of data set 'mapillary' 'rain'.*Did you mean 'rein'"):
        opened(trees.root, "mapillary", "val", label_map="rain").read(0)


def test_cityscapes_agrees_with_the_authors_table() -> None:
    labels = pytest.importorskip("cityscapesscripts.helpers.labels", reason="optional: cityscapesscripts").labels
    table = ADAPTERS["cityscapes"].layouts[0].tables["evaluated"]
    assert all(table[label.id] == (label.trainId if label.trainId != 255 else 255) for label in labels if label.id >= 0)


@pytest.mark.parametrize(
    ("layout", "archives"),
    [
        ("cityscapes", {"leftImg8bit_trainvaltest.zip": "leftImg8bit", "gtFine_trainvaltest.zip": "gtFine"}),
        ("gtav", {"01_images.zip": "images", "01_labels.zip": "labels"}),
        ("bdd100k", {"bdd100k_images_10k.zip": "images", "bdd100k_sem_seg_labels_trainval.zip": "labels"}),
        ("mapillary", {"mapillary-vistas-dataset_public_v1.2.zip": "."}),
        ("acdc", {"rgb_anon_trainvaltest.zip": "rgb_anon", "gt_trainval.zip": "gt"}),
        ("camvid_original", {"701_StillsRaw_full.zip": "701_StillsRaw_full", "LabeledApproved_full.zip": "Labeled*"}),
        ("urbansyn", {"rgb.zip": "rgb", "ss.zip": "ss"}),
    ],
)
def test_archives_are_read_in_place(
    trees: Any, layout: str, archives: dict[str, str], zipped: Callable[[Path, dict[str, str]], None]
) -> None:
    parts = trees.make(layout)
    root = ADAPTERS[LAYOUTS[layout]].folder(trees.root)
    before = {part: opened(trees.root, layout, part).read(0) for part in parts}
    zipped(root, {name: folder.replace("Labeled*", "LabeledApproved_full") for name, folder in archives.items()})
    for part, count in parts.items():
        samples = opened(trees.root, layout, part)
        assert len(samples) == count
        image, label = samples.read(0)
        assert (image == before[part][0]).all()
        assert (label == before[part][1]).all()
        assert ".zip!" in str(samples.pairs[0].image)
