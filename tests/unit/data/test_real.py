"""Real data sets behind the engine: parts, identities, errors with their repairs, and whole runs from tiny trees."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdbench import protocol as protocols
from kdbench.data.datasets import ADAPTERS
from kdbench.data.datasets.files import DataFile, FileTree, open_image
from kdbench.data.realset import RealSet
from kdbench.data.sizing import Cover
from kdbench.data.sources import DataSources
from kdbench.engine.grid import Done, run_grid
from kdbench.engine.plan import Cell, RunContext
from kdbench.engine.preflight import all_stages, check_sets
from kdbench.errors import KdbenchError
from kdbench.models.toy import ToyModels
from kdbench.plugins import load_benchmark
from kdbench.protocol import SMOKE

Run = Callable[..., list[Done]]


def camvid(root: Path, *parts: str, **more: Any) -> RealSet:
    return RealSet("d", ADAPTERS["camvid"].scan(root), parts, Cover((32, 64)), **more)


def keys(root: Path, *parts: str) -> list[str]:
    return [sample.image.path.stem for sample in camvid(root, *parts).pairs]


def test_drives_are_regrouped_and_no_frame_is_in_two_domains(trees: Any) -> None:
    trees.make("camvid")
    benchmark = load_benchmark("camvid")
    (source,) = benchmark.sources
    assert keys(trees.root, *source.real.train) == ["0006R0_f00930", "0006R0_f00960", "0016E5_00390", "0016E5_00420"]
    assert keys(trees.root, *source.real.val) == ["0016E5_07959", "0016E5_07961"]
    targets = [keys(trees.root, *domain.real.val) for domain in benchmark.targets]
    assert targets == [["0001TP_006690", "0001TP_008550"], ["Seq05VD_f00000", "Seq05VD_f00030"]]


def test_few_samples_are_spread_over_the_set(trees: Any) -> None:
    trees.make("camvid")
    assert len(camvid(trees.root, "0006R0", "0016E5", most=3)) == 3
    chosen = camvid(trees.root, "0006R0", "0016E5", most=3).pairs
    assert [s.part for s in chosen] == ["0006R0/train", "0016E5/train", "0016E5/val"]


def test_a_change_of_files_sizes_or_tables_changes_the_identity(trees: Any) -> None:
    trees.make("mapillary")

    def identity(**more: Any) -> object:
        return RealSet("d", ADAPTERS["mapillary"].scan(trees.root), ("val",), Cover((32, 64)), **more).identity

    before = identity()
    assert before == identity()
    assert before != identity(label_map="robustnet")
    label = next((trees.root / "mapillary/validation/labels").iterdir())
    label.write_bytes(label.read_bytes() + b"\0")
    assert before != identity()


@pytest.mark.parametrize(
    ("split", "expected"),
    [({"train": [1, 3], "val": [2], "test": []}, {"all/train": 2, "all/val": 1}), (None, {"all": 3})],
)
def test_gtav_has_its_official_parts_where_their_file_is_there(
    trees: Any, split: dict[str, list[int]] | None, expected: dict[str, int]
) -> None:
    from scipy.io import savemat

    trees.make("gtav")
    if split:
        savemat(trees.root / "GTA5/split.mat", {f"{name}Ids": np.array(ids) for name, ids in split.items()})
    scan = ADAPTERS["gtav"].scan(trees.root)
    assert {part: len(scan.complete_pairs((part,))) for part in {s.part for s in scan.pairs}} == expected
    assert len(scan.complete_pairs(("all",))) == 3


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", b"x" * 200])
def test_a_damaged_file_of_gtavs_split_is_named(trees: Any, content: bytes) -> None:
    trees.make("gtav")
    (trees.root / "GTA5/split.mat").write_bytes(content)
    with pytest.raises(KdbenchError, match=r"split\.mat cannot be read"):
        _ = ADAPTERS["gtav"].scan(trees.root).pairs


def test_validation_images_of_imagenet_that_lie_flat_are_no_proxy(trees: Any) -> None:
    trees.make("imagenet")
    for path in list((trees.root / "imagenet/val").rglob("*.JPEG")):
        path.rename(trees.root / "imagenet/val" / path.name)
    shutil.rmtree(trees.root / "imagenet/train")
    with pytest.raises(KdbenchError, match="lie flat; sort them"):
        ADAPTERS["imagenet"].scan(trees.root).complete_pairs(("train",))


def test_the_root_may_be_a_data_sets_folder_however_it_is_named(trees: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.make("gtav")
    monkeypatch.chdir(trees.root / "GTA5")
    assert ADAPTERS["gtav"].is_under(Path("."))
    assert ADAPTERS["gtav"].scan(Path(".")).pairs


def test_what_is_missing_or_broken_is_named(trees: Any) -> None:
    trees.make("camvid")
    root, adapter = trees.root, ADAPTERS["camvid"]
    with pytest.raises(KdbenchError, match=r"--data-root .*nowhere is not a folder"):
        adapter.scan(root / "nowhere")
    with pytest.raises(KdbenchError, match=r"'camvid' is not under .*Looked for: .*CamVid.*It comes from https"):
        adapter.scan(root / "CamVid" / "train")
    assert adapter.folder(root / "CamVid") == root / "CamVid"
    with pytest.raises(KdbenchError, match=r"no images of Seq99 .*There are: 0001TP/test, 0001TP/train"):
        keys(root, "Seq99")
    (root / "CamVid/train/0006R0_f00930.png").write_bytes(b"not an image")
    with pytest.raises(KdbenchError, match=r"0006R0_f00930\.png cannot be read .*Restore it"):
        camvid(root, "0006R0").read(0)
    (root / "CamVid/trainannot/0006R0_f00960.png").unlink()
    with pytest.raises(KdbenchError, match=r"1 of 2 images of 0006R0 have no label file, the first is .*f00960\.png"):
        keys(root, "0006R0")


def test_labels_that_cannot_be_right_are_refused(trees: Any) -> None:
    trees.make("bdd100k")
    masks = trees.root / "bdd100k/labels/sem_seg/masks/val"
    first, second = sorted(masks.iterdir())
    Image.fromarray(np.full((24, 48), 26, np.uint8)).save(first)  # a Cityscapes id
    Image.fromarray(np.zeros((24, 40), np.uint8)).save(second)
    bdd = RealSet("d", ADAPTERS["bdd100k"].scan(trees.root), ("val",), Cover((32, 64)))
    with pytest.raises(KdbenchError, match=r"it holds the value 26, which is no label of BDD100K"):
        bdd.read(0)
    with pytest.raises(KdbenchError, match=r"it is \(24, 40\) pixels large, its image \(24, 48\)"):
        bdd.read(1)
    Image.fromarray(np.zeros((24, 48, 3), np.uint8)).save(first)
    with pytest.raises(KdbenchError, match="a label of one channel was expected, this is a picture in mode RGB"):
        bdd.read(0)


@pytest.mark.parametrize(
    ("dataset", "path", "message"),
    [
        ("synthia", "synthia/SYNTHIA_RAND_CITYSCAPES.rar", r"unpack it first: `unrar x"),
        ("imagenet", "imagenet/ILSVRC2012_img_train.tar", r"it holds a tar file a class; unpack it with"),
        ("potsdam", "potsdam/2_Ortho_RGB.zip", r"kdbench data prepare potsdam"),
        ("vaihingen", "vaihingen/top/top_mosaic_09cm_area1.tif", r"kdbench data prepare vaihingen"),
        ("cityscapes", "cityscapes/gtFine/train/ulm/ulm_000000_000019_gtFine_labelTrainIds.png", r"labelIds"),
        ("bdd100k", "bdd100k/images/100k/val/0a1b2c3d-4e5f6071.jpg", r"no part of the 100k set"),
    ],
)
def test_what_lies_there_in_place_of_the_data_is_told(tmp_path: Path, dataset: str, path: str, message: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).touch()
    with pytest.raises(KdbenchError, match=message):
        ADAPTERS[dataset].scan(tmp_path).complete_pairs(("train",))


def test_no_path_leads_outside(tmp_path: Path) -> None:
    root, outside = tmp_path / "set", tmp_path / "elsewhere"
    root.mkdir()
    outside.mkdir()
    (root / "inside").mkdir()
    (root / "again").symlink_to(root / "inside")
    (root / "inside/a.png").touch()
    assert sorted(FileTree(root).files) == ["again/a.png", "inside/a.png"]
    (root / "out").symlink_to(outside)
    with pytest.raises(KdbenchError, match=r"set/out is a link to .*elsewhere, outside"):
        _ = FileTree(root).files
    os.unlink(root / "out")
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
    (tmp_path / "broken.zip").write_bytes(b"PK not a zip")
    with pytest.raises(KdbenchError, match=r"broken\.zip cannot be read as a zip archive .*Download it again"):
        _ = FileTree(tmp_path, ("broken.zip",)).files


@pytest.mark.parametrize(
    ("name", "sets", "scored"),
    [
        ("g2c", ("gtav", "cityscapes"), {"cityscapes": 2}),
        ("g2b", ("gtav", "bdd100k"), {"bdd100k": 2}),
        ("g2m", ("gtav", "mapillary"), {"mapillary": 2}),
        ("c2a", ("cityscapes", "acdc"), {f"acdc-{c}": 2 for c in ("night", "snow", "fog", "rain")} | {"cityscapes": 2}),
        ("p2r", ("potsdam", "vaihingen"), {"potsdam-irrg": 2, "vaihingen-irrg": 1, "potsdam-rgb": 2}),
        ("gsu2c", ("gtav", "synthia", "urbansyn", "cityscapes"), {"cityscapes": 2}),
        ("camvid", ("camvid",), {"camvid-dusk": 2, "camvid-other-drive": 2, "camvid-day": 2}),
    ],
)
def test_every_benchmark_runs_from_its_data_sets(
    trees: Any, run_cells: Run, name: str, sets: tuple[str, ...], scored: dict[str, int]
) -> None:
    for dataset in (*sets, "imagenet"):
        trees.make(dataset)
    (done,) = run_cells(methods=("gkd",), benchmarks=(name,), data_root=trees.root, workers=0)
    assert done.record.status == "done", done.record.error
    assert done.record.spec.resolved.data_source == "real"
    result = done.record.result
    assert {domain.domain: domain.images for domain in result.domains} == scored
    assert {data_source for stage in result.stages for data_source in stage.data.values()} == {"real"}


def test_without_imagenet_a_small_protocol_takes_the_built_in_proxy_and_says_so(trees: Any, run_cells: Run) -> None:
    trees.make("camvid")
    (done,) = run_cells(methods=("gkd",), benchmarks=("camvid",), data_root=trees.root)
    assert done.record.result.stages[0].data == {"proxy": "synthetic-v1"}


@pytest.fixture
def as_in_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smoke takes data sets whole and at the paper's sizes, and so cannot do without the proxy's."""
    whole = SMOKE.model_copy(update={"native": True, "overrides_of": "paper"})
    monkeypatch.setitem(protocols.PROTOCOLS, "smoke", whole)


def open_sets(context: RunContext, cells: list[Cell]) -> None:
    check_sets(context, all_stages(context, cells))


def test_a_set_that_a_later_stage_misses_is_told_before_anything_is_trained(
    trees: Any, make_spec: Any, plan_cells: Any, tmp_path: Path, as_in_the_paper: None
) -> None:
    for dataset in ("gtav", "cityscapes"):
        trees.make(dataset)
    common = {"benchmarks": ("g2c",), "data_root": trees.root, "store": tmp_path / "store"}
    # The method that needs the proxy comes last; its stages say so.
    spec = make_spec(methods=("baseline", "gkd"), **common)
    context, cells = plan_cells(methods=("baseline", "gkd"), **common)
    with pytest.raises(KdbenchError, match=r"g2c · gkd, stage 'proxy': data set 'imagenet' is not under .*It comes"):
        next(run_grid(spec, context, cells))
    assert not (tmp_path / "store" / "stages").exists()
    open_sets(*plan_cells(methods=("baseline",), references=True, **common))
    open_sets(*plan_cells(settings=("proxy=false",), **common))
    trees.make("imagenet")
    open_sets(*plan_cells(**common))


def test_what_is_read_fast_is_checked_before_all_test_images_are(
    trees: Any, make_spec: Any, plan_cells: Any, tmp_path: Path
) -> None:
    for dataset in ("gtav", "cityscapes"):
        trees.make(dataset)
    min((trees.root / "cityscapes/leftImg8bit/val").rglob("*.png")).write_bytes(b"nothing")
    fields = {"benchmarks": ("g2c",), "data_root": trees.root, "store": tmp_path / "store", "methods": ("baseline",)}
    context, cells = plan_cells(**fields)
    with pytest.raises(KdbenchError, match=r"dinov2-s\.json is missing"):
        next(run_grid(make_spec(**fields), replace(context, models=ToyModels(tmp_path / "empty")), cells))
    with pytest.raises(KdbenchError, match="test images of 'cityscapes' cannot be read"):
        next(run_grid(make_spec(**fields), context, cells))


def test_the_protocol_of_the_text_has_the_papers_terms_with_the_data_sets(trees: Any, tmp_path: Path) -> None:
    trees.make("cityscapes")
    (target,) = load_benchmark("g2c").targets
    image, label = DataSources(protocols.PAPER_TEXT, tmp_path, trees.root).val(target).read(0)
    assert tuple(image.shape[1:]) == (512, 1024)
    assert tuple(label.shape) == (24, 48)


def test_few_labels_are_a_named_part_and_stand_apart(trees: Any, run_cells: Run) -> None:
    for dataset in ("cityscapes", "acdc"):
        trees.make(dataset)
    common = {"methods": ("baseline",), "benchmarks": ("c2a",), "data_root": trees.root}
    (whole,), (half,) = run_cells(**common), run_cells(**common, label_fraction="1/2")
    assert half.record.spec.resolved.label_fraction == "1/2"
    assert "c2a@1-2" in half.record.path().parts
    assert whole.record.result.stages[-1].key != half.record.result.stages[-1].key
    with pytest.raises(KdbenchError, match=r"--label-fraction '3': write a part"):
        run_cells(**common, label_fraction="3")


def test_another_label_map_is_another_protocol(trees: Any, run_cells: Run) -> None:
    for dataset in ("gtav", "mapillary"):
        trees.make(dataset)
    common = {"methods": ("baseline",), "benchmarks": ("g2m",), "data_root": trees.root}
    (ours,), (theirs,) = run_cells(**common), run_cells(**common, label_maps=("mapillary=robustnet",))
    assert ours.record.spec.resolved.protocol_id != theirs.record.spec.resolved.protocol_id
    pixels = [int(done.record.result.domains[0].confusion.sum()) for done in (ours, theirs)]
    assert pixels[0] > pixels[1]


def test_a_broken_file_is_skipped_and_counted_and_too_many_stop_the_stage(
    trees: Any, run_cells: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.make("camvid")
    common = {"methods": ("baseline",), "benchmarks": ("camvid",), "data_root": trees.root}
    broken = trees.root / "CamVid/train/0006R0_f00930.png"
    broken.write_bytes(b"\x89PNG broken")
    (done,) = run_cells(**common)
    assert done.record.status == "done", done.record.error
    assert [stage.skipped_files for stage in done.record.result.stages] == [1]
    strict = SMOKE.model_copy(update={"most_broken": 0})
    monkeypatch.setitem(protocols.PROTOCOLS, "smoke", strict)
    (stopped,) = run_cells(**common, seeds=(1,))
    assert stopped.record.status == "failed"
    assert "1 training files cannot be read, and the protocol allows 0" in stopped.record.error
    assert "0006R0_f00930.png" in stopped.record.error


SPLIT = """
from kdbench.benchmark import CITYSCAPES, PROXY, Benchmark, Domain, InputSize, ProtocolOverrides, RealData

BENCHMARK = Benchmark(
    name="split",
    title="GTAV by its official split to Cityscapes",
    sources=(Domain("gtav", real=RealData("gtav", train=("all",), overrides={
        "other": ProtocolOverrides(InputSize(24, 48), train=("all/train",), val=("all/val",)),
    })),),
    targets=(Domain("cityscapes", real=RealData("cityscapes", val=("val",), overrides={
        "other": ProtocolOverrides(InputSize(12, 24)),
    })),),
    proxy=PROXY,
    labels=CITYSCAPES,
)
"""


def test_another_protocol_has_its_own_parts_and_sizes_and_none_is_an_error(trees: Any, tmp_path: Path) -> None:
    from scipy.io import savemat

    for name in ("gtav", "cityscapes"):
        trees.make(name)
    ids = {"trainIds": np.array([1, 3]), "valIds": np.array([2]), "testIds": np.array([], int)}
    savemat(trees.root / "GTA5/split.mat", ids)
    (tmp_path / "split.py").write_text(SPLIT, encoding="utf-8")
    benchmark = load_benchmark(str(tmp_path / "split.py"))

    def data_sources(name: str, native: bool) -> DataSources:
        return DataSources(SMOKE.model_copy(update={"name": name, "native": native}), tmp_path, trees.root)

    plain, other = data_sources("smoke", native=False), data_sources("other", native=True)
    (source,), (target,) = benchmark.sources, benchmark.targets
    assert [len(plain.train(source)), len(other.train(source)), len(other.val(source))] == [3, 2, 1]
    assert [domain.name for domain in plain.evaluated(benchmark)] == ["cityscapes"]
    assert [domain.name for domain in other.evaluated(benchmark)] == ["cityscapes", "gtav"]
    assert [tuple(w.val(target).read(0)[0].shape[1:]) for w in (plain, other)] == [(32, 64), (12, 24)]
    assert other.train(source).read(0)[0].shape[1:] == (24, 48)  # its own size
    with pytest.raises(KdbenchError, match=r"'cityscapes' does not say at what size .* protocol 'third'"):
        data_sources("third", native=True).val(target)
