"""`kdbench data preview` and `prepare` as typed, and requests of `kdbench run` that real data cannot serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from kdbench.api import servable_benchmarks
from kdbench.cli import app
from kdbench.errors import KdbenchError
from kdbench.tools.preview import spread_samples


def typed(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["data", *arguments])


def run(tmp_path: Path, data_root: Path, *arguments: str) -> Result:
    cell = ["run", "--method", "baseline", "--pair", "dinov2-s:deit-s", "--no-references", "--protocol", "smoke"]
    places = ["--data-root", data_root, "--store", tmp_path / "store", "--results", tmp_path / "results"]
    return CliRunner().invoke(app, [*cell, *map(str, places), *arguments])


def test_a_data_set_is_shown_part_by_part_and_no_image_twice(trees: Any, tmp_path: Path) -> None:
    trees.make("acdc")
    done = typed("preview", "acdc", "--data-root", str(trees.root), "--count", "2", "--output", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    sheet = np.asarray(Image.open(tmp_path / "out" / "acdc.png").convert("RGB"))
    colours = {tuple(colour) for colour in sheet.reshape(-1, 3)[::7].tolist()}
    assert {(128, 64, 128), (70, 130, 180)} <= colours  # road and sky of the labels
    images, _ = spread_samples(trees.open("acdc", "fog/train"), 4)
    assert len(images) == 2
    assert not np.array_equal(*images)


def test_tiles_are_cut_and_sets_are_packed(trees: Any) -> None:
    root = trees.root / "vaihingen"
    (root / "top").mkdir(parents=True)
    white = np.full((512, 512, 3), 255, np.uint8)
    Image.fromarray(white // 2).save(root / "top/top_mosaic_09cm_area2.tif")
    Image.fromarray(white).save(root / "top_mosaic_09cm_area2_noBoundary.tif")
    done = typed("prepare", "vaihingen", "--data-root", str(trees.root), "--workers", "1")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1].split() == ["-", "val", "2", "1", "0.00", "%"]
    packed = typed("prepare", "vaihingen", "--pack", "--part", "val", "--data-root", str(trees.root))
    assert packed.exit_code == 0, packed.output
    assert f"packed: {root / 'kdbench-packed' / 'val'}" in packed.stdout


def test_packs_lie_elsewhere_where_asked(trees: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.make("urbansyn")
    monkeypatch.setenv("KDBENCH_PACKS", "")
    done = typed("prepare", "urbansyn", "--pack", "--data-root", str(trees.root), "--pack-dir", str(tmp_path / "packs"))
    assert f"packed: {tmp_path / 'packs' / 'urbansyn' / 'all'}" in done.stdout
    assert not (trees.root / "urbansyn/kdbench-packed").exists()
    assert trees.open("urbansyn", "all").read(0)[0].any()
    for pixels in (tmp_path / "packs").rglob("*.npy"):
        np.save(pixels, np.zeros_like(np.load(pixels)))
    assert not trees.open("urbansyn", "all").read(0)[0].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("verify", "gatv"), "unknown data set 'gatv'. Did you mean 'gtav'"),
        (("verify",), "no data set is under"),
        (("prepare", "gtav"), "unknown data set that is cut into crops"),
        (("prepare", "gatv", "--pack"), "unknown data set 'gatv'"),
        (("preview", "gtav"), "data set 'gtav' is not under"),
    ],
)
def test_a_wrong_request_is_refused_with_its_repair(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = typed(*arguments, "--data-root", str(tmp_path))
    assert isinstance(done.exception, KdbenchError)
    assert message in str(done.exception)
    missing = typed(*arguments)
    assert "add --data-root DIR" in str(missing.exception)


def test_a_preview_of_the_papers_sizes_needs_real_images(tmp_path: Path) -> None:
    done = typed("preview", "g2c", "--protocol", "paper", "--output", str(tmp_path / "out"))
    assert "protocol 'paper' runs on real images: add --data-root DIR" in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_a_benchmark_whose_source_trains_whole_runs_and_is_shown(g2c_root: Path, tmp_path: Path) -> None:
    for _ in range(2):  # computed, then found
        done = run(tmp_path, g2c_root, "--benchmark", "g2c", "--workers", "0")
        assert done.exit_code == 0, (done.output, done.exception)
        assert "mIoU" in done.stdout
    shown = typed("preview", "g2c", "--data-root", str(g2c_root), "--output", str(tmp_path / "out"))
    assert shown.exit_code == 0, (shown.output, shown.exception)
    assert (tmp_path / "out" / "g2c.png").is_file()


@pytest.mark.parametrize(
    ("name", "label_map", "message"),
    [
        ("g2c", "robustnet", "mapillary, which no benchmark of this run reads. They read: cityscapes, gtav"),
        # It would have an id, and rows, of its own.
        ("g2m", "rein", "--label-map mapillary=rein is how mapillary is read anyway"),
    ],
)
def test_a_label_map_that_changes_nothing_is_refused(
    g2c_root: Path, tmp_path: Path, name: str, label_map: str, message: str
) -> None:
    done = run(tmp_path, g2c_root, "--benchmark", name, "--label-map", f"mapillary={label_map}")
    assert message in str(done.exception)


def test_all_stands_for_the_benchmarks_whose_sets_are_there_and_whose_sizes_are_known(trees: Any) -> None:
    trees.make("gtav", "cityscapes", "camvid")
    assert servable_benchmarks(trees.root) == ["camvid", "g2c"]
    assert servable_benchmarks(trees.root, "paper") == ["g2c"]


def test_where_no_benchmark_has_its_sets_it_is_said_what_is_there_and_what_each_lacks(
    trees: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for name in ("gone", "file"):
        with pytest.raises(KdbenchError, match=rf"--data-root .*{name} is not a folder"):
            servable_benchmarks(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(KdbenchError, match=r"under .*empty\. Found there: none\. .*g2c lacks cityscapes, gtav;"):
        servable_benchmarks(tmp_path / "empty")
    trees.make("gtav")
    with pytest.raises(KdbenchError, match=r"Found there: gtav\. .*g2c lacks cityscapes; g2m lacks mapillary;"):
        servable_benchmarks(trees.root)
