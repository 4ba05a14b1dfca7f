"""`kdbench data verify`, `preview` and `prepare` as typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from kdbench.cli import app
from kdbench.errors import KdbenchError


def typed(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["data", *arguments])


def test_a_data_set_is_shown_part_by_part(trees: Any, tmp_path: Path) -> None:
    trees.make("acdc")
    done = typed("preview", "acdc", "--data-root", str(trees.root), "--count", "2", "--output", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    sheet = np.asarray(Image.open(tmp_path / "out" / "acdc.png"))
    colours = {tuple(colour) for colour in sheet.reshape(-1, 3)[::7].tolist()}
    assert {(128, 64, 128), (70, 130, 180)} <= colours  # road and sky of the labels


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
