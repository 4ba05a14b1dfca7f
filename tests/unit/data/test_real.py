"""CamVid in the SegNet layout, from a tiny tree that the tests make, and the errors around it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdbench.data.real import ADAPTERS, RealSet
from kdbench.engine.grid import Done
from kdbench.errors import KdbenchError
from kdbench.plugins import load_benchmark

FRAMES = {
    "train": ["0001TP_006690", "0006R0_f00930", "0006R0_f00960", "0016E5_00390", "0016E5_00420"],
    "val": ["0016E5_07959", "0016E5_07961"],
    "test": ["0001TP_008550", "Seq05VD_f00000", "Seq05VD_f00030"],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten frames of 48 x 36 pixels; each label holds every stored value."""
    rng = np.random.default_rng(0)
    for split, names in FRAMES.items():
        for folder in (split, f"{split}annot"):
            (tmp_path / "CamVid" / folder).mkdir(parents=True)
        for name in names:
            image = rng.integers(0, 256, (36, 48, 3), dtype=np.uint8)
            label = np.tile(np.arange(12, dtype=np.uint8), (36, 4))
            Image.fromarray(image).save(tmp_path / "CamVid" / split / f"{name}.png")
            Image.fromarray(label).save(tmp_path / "CamVid" / f"{split}annot" / f"{name}.png")
    return tmp_path


def names(root: Path, *parts: str) -> list[str]:
    return [pair.image.stem for pair in RealSet("d", ADAPTERS["camvid"], root, parts, (32, 64)).files]


def test_drives_are_regrouped_and_no_frame_is_in_two_domains(root: Path) -> None:
    benchmark = load_benchmark("camvid")
    (source,) = benchmark.sources
    train, val = names(root, *source.real.train), names(root, *source.real.val)
    assert train == ["0006R0_f00930", "0006R0_f00960", "0016E5_00390", "0016E5_00420"]
    assert val == FRAMES["val"]
    targets = [names(root, *domain.real.val) for domain in benchmark.targets]
    assert targets == [["0001TP_006690", "0001TP_008550"], ["Seq05VD_f00000", "Seq05VD_f00030"]]


def test_labels_keep_their_classes_and_size_and_11_is_ignored(root: Path) -> None:
    image, label = RealSet("d", ADAPTERS["camvid"], root, ("0001TP",), (32, 64)).read(0)
    assert tuple(label.shape) == (36, 48)
    assert sorted(label.unique().tolist()) == [*range(11), 255]
    assert label[0].tolist() == [*range(11), 255] * 4
    # 48 x 36 covers 64 x 32 at 64 x 48.
    assert tuple(image.shape) == (3, 48, 64)


def test_a_change_of_files_changes_the_identity(root: Path) -> None:
    def identity() -> object:
        return RealSet("d", ADAPTERS["camvid"], root, ("0001TP",), (32, 64)).identity

    before = identity()
    assert before == identity()
    (root / "CamVid" / "train" / "0001TP_006690.png").unlink()
    assert before != identity()


def test_what_is_missing_or_broken_is_named(root: Path) -> None:
    adapter = ADAPTERS["camvid"]
    with pytest.raises(KdbenchError, match=r"--data-root .*nowhere is not a folder"):
        adapter.root(root / "nowhere")
    with pytest.raises(KdbenchError, match=r"'camvid' is not under .*Looked for: .*CamVid"):
        adapter.root(root / "CamVid" / "train")
    assert adapter.root(root / "CamVid") == root / "CamVid"
    (root / "CamVid" / "train" / "0006R0_f00930.png").write_bytes(b"not an image")
    with pytest.raises(KdbenchError, match=r"0006R0_f00930\.png cannot be read .*Restore it"):
        RealSet("d", adapter, root, ("0006R0",), (32, 64)).read(0)
    (root / "CamVid" / "trainannot" / "0006R0_f00960.png").unlink()
    with pytest.raises(
        KdbenchError, match=r"1 images have no label file, the first is .*trainannot/0006R0_f00960\.png"
    ):
        names(root, "0006R0")
    with pytest.raises(KdbenchError, match="no images of Seq99"):
        names(root, "Seq99")


def test_real_images_run_through_the_whole_pipeline(run_cells: Callable[..., list[Done]], root: Path) -> None:
    (done,) = run_cells(methods=("gkd",), benchmarks=("camvid",), data_root=root)
    assert done.record.status == "done", done.record.error
    assert done.record.spec.resolved.world == "real"
    assert {domain.domain: domain.world for domain in done.record.result.domains} == {
        "camvid-dusk": "real", "camvid-other-drive": "real", "camvid-day": "real",
    }  # fmt: skip
    pixels = {domain.domain: int(domain.confusion.sum()) for domain in done.record.result.domains}
    assert pixels == dict.fromkeys(pixels, 2 * 36 * 48 * 11 // 12)
