"""Images a second from original files, from an archive and from the packed form. No test asserts a time.

python -m pytest tests/perf/test_reading.py -m slow -s
"""

from __future__ import annotations

import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from kdbench.data.datasets import ADAPTERS
from kdbench.data.realset import RealSet
from kdbench.data.sizing import Native
from kdbench.data.transforms import make_view
from kdbench.progress import Silent
from kdbench.protocol import SegmentationViews
from kdbench.tools.pack import pack

pytestmark = pytest.mark.slow
COUNT = 8


def made(root: Path) -> None:
    """GTAV-sized pairs: smooth noise, which compresses about as photographs do."""
    dice = np.random.default_rng(0)
    for number in range(COUNT):
        for kind in ("images", "labels"):
            (root / "GTA5" / kind).mkdir(parents=True, exist_ok=True)
        noise = Image.fromarray(dice.integers(0, 256, (1052, 1914, 3), dtype=np.uint8))
        noise.filter(ImageFilter.GaussianBlur(1.5)).save(root / f"GTA5/images/{number:05}.png")
        blocks = dice.integers(0, 34, (40, 60), dtype=np.uint8).repeat(32, 1).repeat(27, 0)[:1052, :1914]
        Image.fromarray(blocks).save(root / f"GTA5/labels/{number:05}.png")


def rate(root: Path) -> float:
    """Views of the paper's second stage a second."""
    samples = RealSet("gtav", ADAPTERS["gtav"].scan(root), ("all",), Native())
    view = make_view(SegmentationViews(), (512, 512))
    view(*samples.read(0), 0)
    started = time.perf_counter()
    for index in range(COUNT):
        view(*samples.read(index), index)
    return COUNT / (time.perf_counter() - started)


def test_reading_rates(benchmark, tmp_path: Path) -> None:
    made(tmp_path)
    rates = {"original files": rate(tmp_path)}
    with zipfile.ZipFile(tmp_path / "GTA5/01_images.zip", "w") as archive:
        for path in sorted((tmp_path / "GTA5/images").iterdir()):
            archive.write(path, f"images/{path.name}")
    (tmp_path / "GTA5/images").rename(tmp_path / "aside")
    rates["archive"] = rate(tmp_path)
    pack(ADAPTERS["gtav"], tmp_path, (), 2, Silent())
    rates["packed"] = benchmark.pedantic(rate, (tmp_path,), rounds=2)
    benchmark.extra_info |= {name: round(value, 1) for name, value in rates.items()}
    original = rates["original files"]
    print("\n" + ", ".join(f"{name} {value:.1f}/s ({value / original:.2f} x)" for name, value in rates.items()))
