"""What `kdbench data prepare` makes: ISPRS tiles cut into crops of 512, and packs of decoded pixels.

Crops follow the rule and the names of mmsegmentation. Its converter writes infrared crops over red, green, blue ones
and matches colours by a weighted sum; here each band set has a folder of its own, and colours are matched exactly.
Packs spare a fast GPU the wait for large pictures to be decoded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from kdbench.data.datasets.adapter import Adapter, FilePair, Scan, whole_path
from kdbench.data.datasets.files import DataFile, FileTree, read_rgb, unreadable
from kdbench.data.datasets.isprs import POTSDAM, VAIHINGEN
from kdbench.data.datasets.labels import ByColour
from kdbench.data.realset import packed_path
from kdbench.errors import KdbenchError, unknown
from kdbench.files import DiskFullError, save_atomically, write_atomically
from kdbench.progress import Progress
from kdbench.tools.threads import in_threads

SIZE = 512
COLOURS = ByColour([(0, 0, 0), (255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0)])
"""The border, then the classes in the order of their stored values, 1 to 6."""


@dataclass(frozen=True)
class TileNames:
    """How a data set's tiles are named, and which split each is in.

    image, label: patterns of paths; the groups i and j name the tile, bands the band set where there are several.
    examples: names of an image and a label, for people.
    """

    adapter: Adapter
    archives: tuple[str, ...]
    image: str
    label: str
    examples: tuple[str, str]
    crop: str
    train: str
    val: str


_POTSDAM = r"top_potsdam_0?(?P<i>\d)_0?(?P<j>\d{1,2})_"
_VAIHINGEN = r"top_mosaic_09cm_area(?P<i>\d{1,2})"
TILES: Mapping[str, TileNames] = {
    "potsdam": TileNames(
        POTSDAM,
        ("*Ortho_RGB.zip", "*Ortho_IRRG.zip", "*Labels*no*Boundary.zip"),
        rf"{_POTSDAM}(?P<bands>RGB|IRRG)\.tif",
        rf"{_POTSDAM}label_noBoundary\.tif",
        ("top_potsdam_2_10_RGB.tif or top_potsdam_2_10_IRRG.tif", "top_potsdam_2_10_label_noBoundary.tif"),
        crop="{tile}",
        train="2_10 2_11 2_12 3_10 3_11 3_12 4_10 4_11 4_12 5_10 5_11 5_12 6_10 6_11 6_12 6_7 6_8 6_9 7_10 7_11 7_12 "
        "7_7 7_8 7_9",
        val="2_13 2_14 3_13 3_14 4_13 4_14 4_15 5_13 5_14 5_15 6_13 6_14 6_15 7_13",
    ),
    "vaihingen": TileNames(
        VAIHINGEN,
        ("ISPRS_semantic_labeling_Vaihingen*.zip",),
        # Labels with boundaries have the images' names and lie elsewhere.
        rf"top/{_VAIHINGEN}\.tif",
        rf"{_VAIHINGEN}_noBoundary\.tif",
        ("top/top_mosaic_09cm_area1.tif", "top_mosaic_09cm_area1_noBoundary.tif"),
        crop="area{tile}",
        train="1 3 5 7 11 13 15 17 21 23 26 28 30 32 34 37",
        val="2 4 6 8 10 12 14 16 20 22 24 27 29 31 33 35 38",
    ),
}


@dataclass(frozen=True)
class CutTile:
    """What became of a tile: its crops, the pixels whose colour is in no palette (ignored), its files' states."""

    tile: str
    bands: str
    split: str
    crops: int
    pixels: int
    off_palette: int
    state: list[int]


@dataclass(frozen=True)
class Tile:
    """One tile of one band set. target: where its crops go; crop: how their names begin."""

    tile: str
    split: str
    bands: str
    image: DataFile
    label: DataFile
    target: Path
    crop: str

    @property
    def summary(self) -> Path:
        """Return the file that is written once all crops are."""
        return self.target / "tiles" / f"{self.tile}.json"

    @property
    def state(self) -> list[int]:
        """Return sizes and times of the files that it is cut from."""
        return [*self.image.state, *self.label.state]

    def kept(self) -> CutTile | None:
        """Return what cutting it left, if every crop is there, cut from the files as they are now."""
        try:
            kept = CutTile(**json.loads(self.summary.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None  # not cut yet, or the summary is damaged
        crops = [[*(self.target / k / self.split).glob(f"{self.crop}_*.png")] for k in ("img_dir", "ann_dir")]
        return kept if kept.state == self.state and all(len(found) == kept.crops for found in crops) else None


def cut_tiles(name: str, data_root: Path, workers: int, progress: Progress) -> list[CutTile]:
    """Cut every tile that is there into crops; a tile that is cut already is left alone."""
    if name not in TILES:
        raise unknown("data set that is cut into crops", name, TILES)
    tiles = list(_find_tiles(TILES[name], data_root))
    return [*in_threads(f"cutting {name} into crops", _cut, tiles, workers, progress)]


def _find_tiles(names: TileNames, data_root: Path) -> Iterator[Tile]:
    adapter = names.adapter
    root = adapter.scan(data_root).tree.root
    tree = FileTree(root, names.archives)
    images, labels = _named(tree, names.image), _named(tree, names.label)
    for what, found, example in zip(("images", "labels"), (images, labels), names.examples, strict=True):
        if not found:
            raise KdbenchError(
                f"no {what} of tiles, {example} and so on, under {root} or in its zip archives named "
                f"{', '.join(names.archives)}. They come from {adapter.home}."
            )
    splits = {tile: split for split in ("train", "val") for tile in getattr(names, split).split()}
    for (tile, bands), image in sorted(images.items()):
        if tile not in splits:
            raise KdbenchError(f"{image} is no tile of {adapter.title}. Remove it.")
        label = labels.get((tile, ""))
        if label is None:
            raise KdbenchError(f"{image} has no label tile. It comes from {adapter.home}.")
        yield Tile(tile, splits[tile], bands, image, label, root / bands, names.crop.format(tile=tile))


def _named(tree: FileTree, pattern: str) -> dict[tuple[str, str], DataFile]:
    """Return files by tile and band set; two unpacked files of one tile are an error."""
    found: dict[tuple[str, str], DataFile] = {}
    for name, file in tree.files.items():
        match = whole_path(pattern).fullmatch(name)
        if match:
            groups = match.groupdict()
            tile = "_".join(groups[group] for group in ("i", "j") if group in groups)
            first = found.setdefault((tile, groups.get("bands", "")), file)
            if first is not file and not file.archived:
                raise KdbenchError(f"{first} and {file} are the same tile. Remove the one that is not meant.")
    return found


def crop_starts(side: int) -> list[int]:
    """Return where crops begin along a side: multiples of 512, the last moved back so that it ends at the border."""
    return sorted({min(start, max(0, side - SIZE)) for start in range(0, side, SIZE)})


def _cut(tile: Tile) -> CutTile:
    """Write a tile's crops, and then that it is done, unless it is."""
    kept = tile.kept()
    if kept:
        return kept
    image, colours = read_rgb(tile.image), read_rgb(tile.label)
    if image.shape != colours.shape:
        raise unreadable(tile.label, f"it is {colours.shape[:2]} pixels large, its image {image.shape[:2]}")
    label = COLOURS.index(colours)
    off = int((label == ByColour.OFF).sum())
    label[label == ByColour.OFF] = 0
    boxes = [(x, y) for y in crop_starts(image.shape[0]) for x in crop_starts(image.shape[1])]
    for x, y in boxes:
        name = f"{tile.split}/{tile.crop}_{x}_{y}_{x + SIZE}_{y + SIZE}.png"
        for kind, pixels in (("img_dir", image), ("ann_dir", label)):
            crop = Image.fromarray(pixels[y : y + SIZE, x : x + SIZE])
            save_atomically(tile.target / kind / name, partial(crop.save, format="PNG", compress_level=3))
    summary = CutTile(tile.tile, tile.bands, tile.split, len(boxes), label.size, off, tile.state)
    write_atomically(tile.summary, json.dumps(asdict(summary)).encode())
    return summary


def pack(adapter: Adapter, data_root: Path, parts: tuple[str, ...], workers: int, progress: Progress) -> list[Path]:
    """Write the pixels of parts (all, where none is named), a file each, and return the folders; a stopped run goes on.

    A picture that cannot be read is named and left out: training reads that file itself. Pixels of files that have
    changed since are removed.
    """
    scan = adapter.scan(data_root)
    pairs = scan.complete_pairs(parts) if parts else scan.pairs
    if not pairs:
        raise KdbenchError(f"data set '{adapter.name}': nothing to pack. {scan.advice()}")
    kept: set[Path] = set()
    for packed in in_threads(f"packing {adapter.name}", partial(_pack_pair, scan), pairs, workers, progress):
        if isinstance(packed, KdbenchError):
            progress.note(f"left out: {packed}")
        else:
            kept.update(packed)
    folders = sorted({path.parent for path in kept})
    for path in [path for folder in folders for path in folder.glob("*.npy") if path not in kept]:
        path.unlink(missing_ok=True)
    return folders


def _pack_pair(scan: Scan, pair: FilePair) -> list[Path] | KdbenchError:
    try:
        image = _pack_file(scan, pair.part, pair.image, read_rgb)
        return [image] if pair.label is None else [image, _pack_file(scan, pair.part, pair.label, scan.layout.decode)]
    except DiskFullError:
        raise
    except KdbenchError as error:
        return error


def _pack_file(scan: Scan, part: str, file: DataFile, decode: Callable[[DataFile], np.ndarray]) -> Path:
    path = packed_path(scan, part, file)
    if not path.is_file():
        pixels = decode(file)
        save_atomically(path, lambda target: np.save(target, pixels))
    return path
