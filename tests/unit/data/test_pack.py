"""Packed sets: the same pixels, kept current, resumable."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdbench.data.datasets import ADAPTERS
from kdbench.data.loading import training_batches
from kdbench.data.realset import RealSet, packed_path
from kdbench.errors import KdbenchError
from kdbench.progress import Silent
from kdbench.protocol import Augmentation, DistillationViews, Recipe, SegmentationViews
from kdbench.tools import prepare as module
from kdbench.tools.prepare import pack
from kdbench.types import Phase


class Told(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def whole(samples: RealSet) -> bool:
    files = [(pair.part, file) for pair in samples.pairs for file in (pair.image, pair.label)]
    return all(packed_path(samples.scan, part, file).is_file() for part, file in files)


@pytest.mark.parametrize("name", ["mapillary", "synthia", "potsdam", "imagenet", "gtav"])
def test_a_packed_set_has_the_same_pixels_and_identity(trees: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = trees.make(name)
    before = {part: [trees.open(name, part).read(i) for i in range(count)] for part, count in parts.items()}
    identity = trees.open(name, next(iter(parts))).identity
    assert len(pack(ADAPTERS[name], trees.root, (), 2, Silent())) == len(parts)
    monkeypatch.setattr("kdbench.data.realset.read_rgb", lambda file: pytest.fail("decoded again"))
    for part, samples in before.items():
        after = trees.open(name, part)
        for index, (image, label) in enumerate(samples):
            assert (after.read(index)[0] == image).all()
            assert (after.read(index)[1] == label).all()
    assert trees.open(name, next(iter(parts))).identity == identity


def test_a_changed_file_is_read_itself_and_packed_anew_and_nothing_else_is(
    trees: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.make("urbansyn")
    told, decoded, read = Told(), [], module.read_rgb
    monkeypatch.setattr(module, "read_rgb", lambda file: decoded.append(file.path.name) or read(file))
    pack(ADAPTERS["urbansyn"], trees.root, ("all",), 1, told)
    assert (told.notes, len(decoded)) == ([], 2)
    decoded.clear()
    Image.fromarray(np.zeros((24, 48, 3), np.uint8)).save(trees.root / "urbansyn/rgb/rgb_0000.png")
    assert int(trees.open("urbansyn", "all").read(0)[0].max()) == 0
    pack(ADAPTERS["urbansyn"], trees.root, ("all",), 1, told)
    assert decoded == ["rgb_0000.png"]
    samples = trees.open("urbansyn", "all")
    assert whole(samples)
    assert len(list((trees.root / "urbansyn/kdbench-packed/all").iterdir())) == 4  # not the old pixels
    assert int(samples.read(0)[0].max()) == 0


def test_a_stopped_packing_goes_on(trees: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.make("acdc")
    expected = [trees.open("acdc", "fog").read(i)[0] for i in range(4)]
    decoded, read = [], module.read_rgb
    monkeypatch.setattr(module, "read_rgb", lambda file: decoded.append(file.path.name) or read(file))

    class Stopped(Silent):
        def advance(self, done: int, losses: Mapping[str, float]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(ADAPTERS["acdc"], trees.root, ("fog",), 1, Stopped())
    pack(ADAPTERS["acdc"], trees.root, ("fog",), 1, Silent())
    assert len(decoded) == 4  # each once
    assert whole(trees.open("acdc", "fog"))
    assert all((trees.open("acdc", "fog").read(i)[0] == expected[i]).all() for i in range(4))


def test_two_packings_at_once_leave_one_whole_pack(trees: Any) -> None:
    parts = trees.make("acdc")
    before = [trees.open("acdc", "fog").read(i)[0] for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(pack, ADAPTERS["acdc"], trees.root, (), 2, Silent()) for _ in range(4)]:
            assert len(future.result()) == len(parts)
    after = trees.open("acdc", "fog")
    assert whole(after)
    assert all((after.read(i)[0] == before[i]).all() for i in range(4))


def test_a_picture_that_cannot_be_read_is_named_and_left_out(trees: Any) -> None:
    (trees.root / "urbansyn").mkdir(parents=True)
    with pytest.raises(KdbenchError, match="nothing to pack"):
        pack(ADAPTERS["urbansyn"], trees.root, (), 1, Silent())
    trees.make("urbansyn")
    (trees.root / "urbansyn/rgb/rgb_0000.png").write_bytes(b"nothing")
    told = Told()
    pack(ADAPTERS["urbansyn"], trees.root, (), 1, told)
    assert [line for line in told.notes if "rgb_0000.png cannot be read" in line]
    assert trees.open("urbansyn", "all").read(1)[0].max() > 0
    with pytest.raises(KdbenchError, match=r"rgb_0000\.png cannot be read"):
        trees.open("urbansyn", "all").read(0)


def test_workers_read_packs_and_archives(trees: Any) -> None:
    trees.make("urbansyn")
    recipe = Recipe(steps=3, batch=2, lr=0.1)
    plain = list(training_batches((trees.open("urbansyn", "all"),), recipe, 3, (16, 32), 0, Phase.TASK))
    trees.zip("urbansyn", {"rgb.zip": "rgb", "ss.zip": "ss"})
    for _ in range(2):
        sets = (trees.open("urbansyn", "all"),)
        ahead = list(training_batches(sets, recipe, 3, (16, 32), 0, Phase.TASK, workers=2))
        assert all((a.image == b.image).all() and (a.label == b.label).all() for a, b in zip(plain, ahead, strict=True))
        pack(ADAPTERS["urbansyn"], trees.root, (), 1, Silent())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
@pytest.mark.parametrize(
    "views", [Augmentation(), DistillationViews(crop=16), SegmentationViews(crop=16)], ids=lambda views: views.kind
)
def test_workers_that_are_not_forked_read_the_same(trees: Any, method: str, views: Any) -> None:
    """Python 3.14 starts workers by forkserver, macOS by spawn: all that they read with is pickled."""
    trees.make("urbansyn")
    sets, recipe = (trees.open("urbansyn", "all"),), Recipe(steps=2, batch=2, lr=0.1, augmentation=views)
    here = list(training_batches(sets, recipe, 2, (16, 32), 0, Phase.TASK))
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        there = list(training_batches(sets, recipe, 2, (16, 32), 0, Phase.TASK, workers=1))
    finally:
        multiprocessing.set_start_method(usual, force=True)
    assert all(torch.equal(a.image, b.image) for a, b in zip(here, there, strict=True))
