"""Real data sets behind the engine: domains, parts and sizes by protocol, and whole runs from tiny trees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdbench import protocol as protocols
from kdbench.benchmark import CITYSCAPES, PROXY, Benchmark, Domain, InputSize, ProtocolOverrides, RealData
from kdbench.data.datasets import ADAPTERS
from kdbench.data.sources import DataSources
from kdbench.engine.grid import Done, expand, make_context, run_grid
from kdbench.engine.pictures import write_pictures
from kdbench.engine.plan import Cell, RunContext
from kdbench.engine.preflight import all_stages, check_sets
from kdbench.errors import KdbenchError
from kdbench.models.toy import ToyModels
from kdbench.pictures import read_samples
from kdbench.plugins import load_benchmark
from kdbench.progress import Silent
from kdbench.protocol import MINI, SMOKE

Run = Callable[..., list[Done]]


def test_drives_are_regrouped_and_no_frame_is_in_two_domains(trees: Any) -> None:
    trees.make("camvid")
    scan, benchmark = trees.scan("camvid"), load_benchmark("camvid")

    def frames(*parts: str) -> list[str]:
        return [pair.image.path.stem for pair in scan.complete_pairs(parts)]

    (source,) = benchmark.sources
    assert frames(*source.real.train) == ["0006R0_f00930", "0006R0_f00960", "0016E5_00390", "0016E5_00420"]
    assert frames(*source.real.val) == ["0016E5_07959", "0016E5_07961"]
    targets = [frames(*domain.real.val) for domain in benchmark.targets]
    assert targets == [["0001TP_006690", "0001TP_008550"], ["Seq05VD_f00000", "Seq05VD_f00030"]]


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
    trees.make(*sets, "imagenet")
    (done,) = run_cells(methods=("gkd",), benchmarks=(name,), data_root=trees.root, workers=0)
    assert done.record.status == "done", done.record.error
    assert done.record.spec.resolved.data_source == "real"
    result = done.record.result
    assert {domain.domain: domain.images for domain in result.domains} == scored
    assert {data_source for stage in result.stages for data_source in stage.data.values()} == {"real"}


def test_pictures_know_their_licence(trees: Any, make_spec: Any) -> None:
    trees.make("gtav", "mapillary")
    spec = make_spec(methods=("baseline",), benchmarks=("g2m",), data_root=trees.root, workers=0)
    context = make_context(spec, Silent())
    cells = expand(spec, context)
    list(run_grid(spec, context, cells))
    (sheet,) = write_pictures(context, cells, spec)
    samples = read_samples(sheet.parents[1])
    assert samples is not None
    assert len({scene.label.shape for scene in samples.scenes}) == 2
    assert {(scene.domain, scene.data_source) for scene in samples.scenes} == {("mapillary", "real")}
    (licence,) = samples.licences
    assert ADAPTERS["mapillary"].licence in licence


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
    trees: Any, g2c_root: Path, make_spec: Any, plan_cells: Any, tmp_path: Path, as_in_the_paper: None
) -> None:
    common = {"benchmarks": ("g2c",), "data_root": g2c_root, "store": tmp_path / "store"}
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
    g2c_root: Path, make_spec: Any, plan_cells: Any, tmp_path: Path
) -> None:
    min((g2c_root / "cityscapes/leftImg8bit/val").rglob("*.png")).write_bytes(b"nothing")
    fields = {"benchmarks": ("g2c",), "data_root": g2c_root, "store": tmp_path / "store", "methods": ("baseline",)}
    context, cells = plan_cells(**fields)
    with pytest.raises(KdbenchError, match=r"dinov2-s\.json is missing"):
        next(run_grid(make_spec(**fields), replace(context, models=ToyModels(tmp_path / "empty")), cells))
    with pytest.raises(KdbenchError, match=r"^1 of the 2 test images of 'cityscapes' cannot be read: .*leftImg8bit"):
        next(run_grid(make_spec(**fields), context, cells))
    assert not (tmp_path / "store" / "stages").exists()


def test_the_protocol_of_the_text_has_the_papers_terms_with_the_data_sets(trees: Any, tmp_path: Path) -> None:
    trees.make("cityscapes")
    (target,) = load_benchmark("g2c").targets
    image, label = DataSources(protocols.PAPER_TEXT, tmp_path, trees.root).val(target).read(0)
    assert tuple(image.shape[1:]) == (512, 1024)
    assert tuple(label.shape) == (24, 48)


def test_few_labels_are_a_named_part_and_stand_apart(trees: Any, run_cells: Run) -> None:
    trees.make("cityscapes", "acdc")
    common = {"methods": ("baseline",), "benchmarks": ("c2a",), "data_root": trees.root}
    (whole,), (half,) = run_cells(**common), run_cells(**common, label_fraction="1/2")
    assert half.record.spec.resolved.label_fraction == "1/2"
    assert "c2a@1-2" in half.record.path().parts
    assert whole.record.result.stages[-1].key != half.record.result.stages[-1].key
    with pytest.raises(KdbenchError, match=r"--label-fraction '3': write a part"):
        run_cells(**common, label_fraction="3")


def test_another_label_map_is_another_protocol(trees: Any, run_cells: Run) -> None:
    trees.make("gtav", "mapillary")
    common = {"methods": ("baseline",), "benchmarks": ("g2m",), "data_root": trees.root}
    (ours,), (theirs,) = run_cells(**common), run_cells(**common, label_maps=("mapillary=robustnet",))
    assert ours.record.spec.resolved.protocol_id != theirs.record.spec.resolved.protocol_id
    pixels = [int(done.record.result.domains[0].confusion.sum()) for done in (ours, theirs)]
    assert pixels[0] > pixels[1]


def test_a_broken_file_is_skipped_and_counted(trees: Any, run_cells: Run) -> None:
    trees.make("camvid")
    (trees.root / "CamVid/train/0006R0_f00930.png").write_bytes(b"\x89PNG broken")
    (done,) = run_cells(methods=("baseline",), benchmarks=("camvid",), data_root=trees.root)
    assert done.record.status == "done", done.record.error
    assert [stage.skipped_files for stage in done.record.result.stages] == [1]


def test_another_protocol_has_its_own_parts_and_sizes_and_none_is_an_error(g2c_root: Path, tmp_path: Path) -> None:
    from scipy.io import savemat

    ids = {"trainIds": np.array([1, 3]), "valIds": np.array([2]), "testIds": np.array([], int)}
    savemat(g2c_root / "GTA5/split.mat", ids)
    halves = ProtocolOverrides(InputSize(24, 48), train=("all/train",), val=("all/val",))
    source = Domain("gtav", real=RealData("gtav", train=("all",), overrides={"other": halves}))
    small = {"other": ProtocolOverrides(InputSize(12, 24))}
    target = Domain("cityscapes", real=RealData("cityscapes", val=("val",), overrides=small))
    benchmark = Benchmark("split", "GTAV by its official split", (source,), (target,), PROXY, CITYSCAPES)

    def data_sources(name: str, native: bool) -> DataSources:
        return DataSources(SMOKE.model_copy(update={"name": name, "native": native}), tmp_path, g2c_root)

    plain, other = data_sources("smoke", native=False), data_sources("other", native=True)
    assert [len(plain.train(source)), len(other.train(source)), len(other.val(source))] == [3, 2, 1]
    assert [domain.name for domain in plain.evaluated(benchmark)] == ["cityscapes"]
    assert [domain.name for domain in other.evaluated(benchmark)] == ["cityscapes", "gtav"]
    assert [tuple(w.val(target).read(0)[0].shape[1:]) for w in (plain, other)] == [(32, 64), (12, 24)]
    assert other.train(source).read(0)[0].shape[1:] == (24, 48)  # its own size
    with pytest.raises(KdbenchError, match=r"'cityscapes' does not say at what size .* protocol 'third'"):
        data_sources("third", native=True).val(target)


def test_a_domain_with_other_classes_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    streets, camvid = load_benchmark("g2c"), load_benchmark("camvid")
    towns = replace(streets, labels=load_benchmark("p2r").labels)
    with pytest.raises(KdbenchError, match=r"scored on the 6 classes of .*domain 'cityscapes' is labelled with 19"):
        DataSources(MINI, tmp_path).check(towns)
    mixed = replace(camvid, labels=streets.labels)
    with pytest.raises(KdbenchError, match=r"scored on the 19 classes of .* is labelled with 11 of its own"):
        DataSources(MINI, tmp_path, tmp_path).check(mixed)


def test_a_domain_that_is_a_source_and_a_proxy_has_the_images_of_each(tmp_path: Path) -> None:
    (domain,) = load_benchmark("g2c").sources
    for first, second in (("train", "proxy"), ("proxy", "train")):
        data_sources = DataSources(MINI, tmp_path)
        counts = {name: len(getattr(data_sources, name)(domain)) for name in (first, second)}
        assert counts == {"train": MINI.train_images, "proxy": MINI.proxy_images}
    assert data_sources.train(domain) is data_sources.train(domain)
