"""ISPRS tiles cut into crops: the rule, the counts, the colours, stopping and going on."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from kdbench.data.datasets.labels import ByColour
from kdbench.errors import KdbenchError
from kdbench.progress import Silent
from kdbench.tools.prepare import COLOURS, TILES, crop_starts, cut_tiles

ISPRS = yaml.safe_load((Path(__file__).parent / "labels.yaml").read_text(encoding="utf-8"))["isprs"]
PALETTE = [(0, 0, 0), *(tuple(label["color"]) for label in ISPRS["classes"])]


def test_the_rule_gives_the_published_numbers_of_crops() -> None:
    assert crop_starts(600) == [0, 88]
    assert crop_starts(6000) == [*range(0, 5121, 512), 5488]
    assert crop_starts(1024) == [0, 512]
    potsdam, vaihingen = TILES["potsdam"], TILES["vaihingen"]
    for split in ("train", "val"):
        assert getattr(potsdam, split).split() == ISPRS["potsdam"][split]
        assert len(getattr(potsdam, split).split()) * len(crop_starts(6000)) ** 2 == ISPRS["potsdam"]["crops"][split]
        tiles = getattr(vaihingen, split).split()
        assert [int(tile) for tile in tiles] == ISPRS["vaihingen"][split]
        sizes = [ISPRS["vaihingen"]["tile_size_wh"][int(tile)] for tile in tiles]
        assert sum(len(crop_starts(w)) * len(crop_starts(h)) for w, h in sizes) == ISPRS["vaihingen"]["crops"][split]


def test_colours_are_matched_exactly() -> None:
    """Every colour that a weighted sum would take for a class is told from it."""
    assert COLOURS.palette == tuple(PALETTE)
    picture = np.array([[*PALETTE, (252, 255, 0), (0, 3, 252), (254, 255, 255)]], dtype=np.uint8)
    assert COLOURS.index(picture).tolist() == [[0, 1, 2, 3, 4, 5, 6, ByColour.OFF, ByColour.OFF, ByColour.OFF]]


def tile(root: Path, name: str, side: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """A tile in two band sets with its label, off the palette in 600 pixels."""
    (root / "2_Ortho_RGB").mkdir(parents=True, exist_ok=True)
    dice = np.random.default_rng(len(name))
    values = dice.integers(0, 7, (side, side))
    colours = np.array(PALETTE, dtype=np.uint8)[values]
    colours[0] = (252, 255, 0)
    values[0] = 0
    image = dice.integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(image).save(root / f"2_Ortho_RGB/top_potsdam_{name}_RGB.tif")
    Image.fromarray(255 - image).save(root / f"2_Ortho_RGB/top_potsdam_{name}_IRRG.tif")
    (root / "2_Ortho_RGB" / f"top_potsdam_{name}_RGB.tfw").touch()
    buffer = root / f"top_potsdam_{name}_label_noBoundary.tif"
    Image.fromarray(colours).save(buffer)
    with zipfile.ZipFile(root / "5_Labels_all_noBoundary.zip", "a") as archive:
        archive.write(buffer, buffer.name)
    buffer.unlink()
    return image, values


def test_crops_have_their_names_pixels_and_classes_and_bands_lie_apart(trees: Any) -> None:
    image, values = tile(trees.root / "potsdam", "2_10")
    tile(trees.root / "potsdam", "2_13")
    cuts = cut_tiles("potsdam", trees.root, 2, Silent())
    assert [(c.bands, c.tile, c.split, c.crops, c.off_palette) for c in cuts] == [
        (bands, tile, split, 4, 600)
        for tile, split in (("2_10", "train"), ("2_13", "val"))
        for bands in ("IRRG", "RGB")
    ]
    names = sorted(path.name for path in (trees.root / "potsdam/RGB/img_dir/train").iterdir())
    assert names == [f"2_10_{x}_{y}_{x + 512}_{y + 512}.png" for x in (0, 88) for y in (0, 88)]
    samples = trees.open("potsdam", "RGB/train")
    index = names.index("2_10_88_0_600_512.png")
    pixels, label = samples.read(index)
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), image[:512, 88:])
    # Zero, the border, is ignored; what is off the palette too; the classes begin with 0, once.
    assert np.array_equal(label.numpy(), np.where(values == 0, 255, values - 1)[:512, 88:])
    infrared, same = trees.open("potsdam", "IRRG/train").read(index)
    assert np.array_equal(infrared.numpy(), 255 - pixels.numpy())
    assert np.array_equal(same.numpy(), label.numpy())


def test_vaihingen_takes_labels_without_boundaries(trees: Any) -> None:
    root = trees.root / "vaihingen"
    (root / "top").mkdir(parents=True)
    image = np.random.default_rng(0).integers(0, 256, (520, 512, 3), dtype=np.uint8)
    Image.fromarray(image).save(root / "top/top_mosaic_09cm_area1.tif")
    label = np.zeros_like(image)
    Image.fromarray(label + 255).save(root / "top_mosaic_09cm_area1.tif")  # the one with boundaries, of the same name
    Image.fromarray(label + np.array([0, 0, 255], np.uint8)).save(root / "top_mosaic_09cm_area1_noBoundary.tif")
    Image.fromarray(label).save(root / "top_mosaic_09cm_area9_noBoundary.tif")  # it has no image
    (cut,) = cut_tiles("vaihingen", trees.root, 1, Silent())
    assert (cut.tile, cut.split, cut.crops, cut.off_palette) == ("1", "train", 2, 0)
    samples = trees.open("vaihingen", "train")
    assert [sample.image.path.name for sample in samples.pairs] == ["area1_0_0_512_512.png", "area1_0_8_512_520.png"]
    assert samples.read(0)[1].unique().tolist() == [1]


def test_what_is_missing_or_changed_is_cut_and_what_is_done_stays(trees: Any) -> None:
    for name in ("2_10", "2_11"):
        tile(trees.root / "potsdam", name)
    cut_tiles("potsdam", trees.root, 1, Silent())
    crop = trees.root / "potsdam/RGB/img_dir/train/2_11_0_0_512_512.png"
    other = trees.root / "potsdam/RGB/img_dir/train/2_10_0_0_512_512.png"
    before, content = other.stat().st_mtime_ns, crop.read_bytes()
    crop.unlink()
    cut_tiles("potsdam", trees.root, 1, Silent())
    assert crop.read_bytes() == content
    assert other.stat().st_mtime_ns == before
    # So is one of which the summary is damaged.
    summary = trees.root / "potsdam/RGB/tiles/2_11.json"
    for damaged in ("", "{}"):
        crop.unlink()
        summary.write_text(damaged, encoding="utf-8")
        cut_tiles("potsdam", trees.root, 1, Silent())
        assert crop.read_bytes() == content
    # A tile that was corrected is cut again.
    picture = trees.root / "potsdam/2_Ortho_RGB/top_potsdam_2_11_RGB.tif"
    Image.fromarray(np.zeros((600, 600, 3), np.uint8)).save(picture)
    cut_tiles("potsdam", trees.root, 1, Silent())
    assert np.asarray(Image.open(crop)).max() == 0
    assert other.stat().st_mtime_ns == before


def test_one_tile_twice_is_refused_and_what_is_unpacked_comes_first(trees: Any) -> None:
    tile(trees.root / "potsdam", "2_10")
    label = np.full((600, 600, 3), 255, np.uint8)
    (trees.root / "potsdam/a").mkdir()
    Image.fromarray(label).save(trees.root / "potsdam/a/top_potsdam_2_10_label_noBoundary.tif")
    cut_tiles("potsdam", trees.root, 1, Silent())
    crop = np.asarray(Image.open(trees.root / "potsdam/RGB/ann_dir/train/2_10_0_0_512_512.png"))
    assert crop.min() == crop.max() == 1
    (trees.root / "potsdam/b").mkdir()
    Image.fromarray(label).save(trees.root / "potsdam/b/top_potsdam_2_10_label_noBoundary.tif")
    with pytest.raises(KdbenchError, match=r"are the same tile\. Remove the one"):
        cut_tiles("potsdam", trees.root, 1, Silent())


def test_what_is_missing_or_does_not_belong_is_named(trees: Any) -> None:
    (trees.root / "potsdam").mkdir(parents=True)
    with pytest.raises(KdbenchError, match=r"no images of tiles, top_potsdam_2_10_RGB\.tif or .*potsdam or in"):
        cut_tiles("potsdam", trees.root, 1, Silent())
    tile(trees.root / "potsdam", "9_99")
    with pytest.raises(KdbenchError, match=r"top_potsdam_9_99_IRRG\.tif is no tile of ISPRS Potsdam"):
        cut_tiles("potsdam", trees.root, 1, Silent())
