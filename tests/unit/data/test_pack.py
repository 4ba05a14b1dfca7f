"""Packed sets: the same pixels, kept current, resumable."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdbench.data.datasets import ADAPTERS
from kdbench.data.loading import training_batches
from kdbench.data.realset import PackedPart, RealSet
from kdbench.data.sizing import Native
from kdbench.errors import KdbenchError
from kdbench.progress import Silent
from kdbench.protocol import Recipe
from kdbench.tools import pack as module
from kdbench.tools.pack import pack
from kdbench.types import Phase


def opened(root: Path, name: str, part: str) -> RealSet:
    return RealSet("d", ADAPTERS[name].scan(root), (part,), Native())


@pytest.mark.parametrize("name", ["cityscapes", "mapillary", "synthia", "potsdam", "imagenet", "gtav"])
def test_a_packed_set_has_the_same_pixels_and_identity(trees: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = trees.make(name)
    before = {part: [opened(trees.root, name, part).read(i) for i in range(count)] for part, count in parts.items()}
    identity = opened(trees.root, name, next(iter(parts))).identity
    folders = pack(ADAPTERS[name], trees.root, (), 2, Silent())
    assert len(folders) == len(parts)
    monkeypatch.setattr("kdbench.data.realset.read_rgb", lambda entry: pytest.fail("decoded again"))
    for part, pairs in before.items():
        after = opened(trees.root, name, part)
        for index, (image, label) in enumerate(pairs):
            assert (after.read(index)[0] == image).all()
            assert (after.read(index)[1] == label).all()
    assert opened(trees.root, name, next(iter(parts))).identity == identity


def test_a_changed_file_is_read_itself_and_packed_anew(trees: Any) -> None:
    trees.make("urbansyn")
    pack(ADAPTERS["urbansyn"], trees.root, ("all",), 1, Silent())
    Image.fromarray(np.zeros((24, 48, 3), np.uint8)).save(trees.root / "urbansyn/rgb/rgb_0000.png")
    assert int(opened(trees.root, "urbansyn", "all").read(0)[0].max()) == 0
    (folder,) = pack(ADAPTERS["urbansyn"], trees.root, ("all",), 1, Silent())
    samples = opened(trees.root, "urbansyn", "all")
    assert all(sample in PackedPart(folder, samples.scan.reading) for sample in samples.pairs)
    assert int(samples.read(0)[0].max()) == 0


def test_a_second_packing_decodes_what_has_changed_and_nothing_else(
    trees: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.make("urbansyn")
    said, decoded, read = [], [], module.read_rgb

    class Told(Silent):
        def note(self, text: str) -> None:
            said.append(text)

    monkeypatch.setattr(module, "read_rgb", lambda entry: decoded.append(entry.name) or read(entry))
    pack(ADAPTERS["urbansyn"], trees.root, ("all",), 1, Told())
    assert (said, len(decoded)) == ([], len(opened(trees.root, "urbansyn", "all").pairs))
    decoded.clear()
    Image.fromarray(np.zeros((24, 48, 3), np.uint8)).save(trees.root / "urbansyn/rgb/rgb_0000.png")
    pack(ADAPTERS["urbansyn"], trees.root, ("all",), 1, Told())
    assert [name.rpartition("/")[2] for name in decoded] == ["rgb_0000.png"]


def test_a_stopped_packing_goes_on(trees: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.make("acdc")
    adapter, seen = ADAPTERS["acdc"], []
    expected = [opened(trees.root, "acdc", "fog").read(i)[0] for i in range(4)]

    class Stopped(Silent):
        def advance(self, done: int, losses: Mapping[str, float]) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "KEEP_EVERY", 1)
    with pytest.raises(KeyboardInterrupt):
        pack(adapter, trees.root, ("fog",), 1, Stopped())

    class Counting(Silent):
        def advance(self, done: int, losses: Mapping[str, float]) -> None:
            seen.append(done)

    pack(adapter, trees.root, ("fog",), 1, Counting())
    assert seen == [2, 1, 2]  # the second of fog/train, then fog/val
    assert all((opened(trees.root, "acdc", "fog").read(i)[0] == expected[i]).all() for i in range(4))


def test_nothing_to_pack_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "gtav").mkdir()
    with pytest.raises(KdbenchError, match="nothing to pack"):
        pack(ADAPTERS["gtav"], tmp_path, (), 1, Silent())


def test_two_packings_at_once_leave_one_whole_pack(trees: Any) -> None:
    parts = trees.make("acdc")
    before = [opened(trees.root, "acdc", "fog").read(i)[0] for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(pack, ADAPTERS["acdc"], trees.root, (), 2, Silent()) for _ in range(4)]:
            assert len(future.result()) == len(parts)
    after = opened(trees.root, "acdc", "fog")
    folder, reading = trees.root / "acdc/kdbench-packed", after.scan.reading
    assert all(pair in PackedPart(folder / pair.part.replace("/", "-"), reading) for pair in after.pairs)
    assert all((after.read(i)[0] == before[i]).all() for i in range(4))


def test_a_picture_that_cannot_be_read_is_named_and_left_out(trees: Any) -> None:
    trees.make("urbansyn")
    (trees.root / "urbansyn/rgb/rgb_0000.png").write_bytes(b"nothing")
    said: list[str] = []

    class Told(Silent):
        def note(self, text: str) -> None:
            said.append(text)

    pack(ADAPTERS["urbansyn"], trees.root, (), 1, Told())
    assert [line for line in said if "rgb_0000.png cannot be read" in line]
    assert opened(trees.root, "urbansyn", "all").read(1)[0].max() > 0
    with pytest.raises(KdbenchError, match=r"rgb_0000\.png cannot be read"):
        opened(trees.root, "urbansyn", "all").read(0)


def test_workers_read_packs_and_archives(trees: Any, zipped: Any) -> None:
    trees.make("urbansyn")
    recipe = Recipe(steps=3, batch=2, lr=0.1)
    plain = list(training_batches((opened(trees.root, "urbansyn", "all"),), recipe, 3, (16, 32), 0, Phase.TASK))
    zipped(trees.root / "urbansyn", {"rgb.zip": "rgb", "ss.zip": "ss"})
    for _ in range(2):
        sets = (opened(trees.root, "urbansyn", "all"),)
        ahead = list(training_batches(sets, recipe, 3, (16, 32), 0, Phase.TASK, workers=2))
        assert all((a.image == b.image).all() and (a.label == b.label).all() for a, b in zip(plain, ahead, strict=True))
        pack(ADAPTERS["urbansyn"], trees.root, (), 1, Silent())
