"""detectron2: what it reads is what our adapters decode, its configs are students, its evaluator agrees with ours."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from kdbench import benchmark
from kdbench import protocol as protocols
from kdbench.benchmark import Benchmark, Domain, LabelSpace, RealData
from kdbench.cli import app
from kdbench.data.datasets import ADAPTERS
from kdbench.data.datasets.streets import ID_TO_CLASS
from kdbench.data.realset import RealSet
from kdbench.engine.evaluation import evaluate as our_counts
from kdbench.errors import KdbenchError
from kdbench.metrics import class_iou, hits
from kdbench.models.backbones import build_pretrained
from kdbench.models.registry import find_model
from kdbench.protocol import PAPER, DistillationViews, Evaluation, Protocol, SegmentationViews
from kdbench.records import Record, read_record
from kdbench.types import IGNORE, Phase

CONFIG = "Misc/semantic_R_50_FPN_1x.yaml"
CPU = torch.device("cpu")


def load_trees() -> ModuleType:
    """The tiny data sets of tests/unit/data, whose conftest serves that folder alone."""
    spec = importlib.util.spec_from_file_location("trees", Path(__file__).parents[1] / "data" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["trees"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def trees(tmp_path: Path) -> Any:
    """Writes data sets below a fresh data root."""
    return load_trees().Trees(tmp_path / "data")


@pytest.fixture
def d2() -> Iterator[ModuleType]:
    """The integration; what a test registers is gone after it."""
    pytest.importorskip("detectron2", reason="optional: detectron2")
    from detectron2.data import DatasetCatalog

    from kdbench.integrations import detectron2 as integration

    yield integration
    for name in [name for name in DatasetCatalog.list() if name.startswith("kdbench/")]:
        integration.catalog.unregister(name)


def test_a_missing_detectron2_is_one_sentence_and_leaves_the_rest_alone() -> None:
    code = """
import sys
sys.modules["detectron2"] = None
import kdbench, kdbench.cli, kdbench.engine.grid, kdbench.integrations
from kdbench.errors import KdbenchError
from kdbench.models.registry import parse_pair
for use in (lambda: parse_pair("dinov2-s:detectron2/mine.yaml"), lambda: __import__("kdbench.integrations.detectron2")):
    try:
        use()
    except KdbenchError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        assert line.startswith("detectron2 cannot be imported")
        assert "pip install" in line
        assert "facebookresearch/detectron2" in line
    assert done.stdout.count("\n") == 2


# Catalogs


def records(name: str) -> list[dict[str, Any]]:
    """As detectron2's loaders get them."""
    from detectron2.data import DatasetCatalog

    return DatasetCatalog.get(name)


def mapped(record: dict[str, Any]) -> dict[str, Any]:
    """What detectron2's own mapper makes of a record, at the image's own size."""
    from detectron2.data import DatasetMapper

    return DatasetMapper(True, augmentations=[], image_format="RGB")(record)


def test_every_real_split_of_the_benchmarks_is_registered_with_its_label_space(d2: ModuleType, trees: Any) -> None:
    from detectron2.data import MetadataCatalog

    for name in ("cityscapes", "gtav", "acdc", "potsdam"):
        trees.make(name)
    assert sorted(d2.register(trees.root)) == [
        "kdbench/acdc-fog/val", "kdbench/acdc-night/val", "kdbench/acdc-rain/val", "kdbench/acdc-snow/val",
        "kdbench/cityscapes/train", "kdbench/cityscapes/val", "kdbench/gtav/train", "kdbench/potsdam-irrg/val",
        "kdbench/potsdam-rgb/train", "kdbench/potsdam-rgb/val",
    ]  # fmt: skip
    assert [len(records(f"kdbench/{name}")) for name in ("cityscapes/train", "cityscapes/val", "gtav/train")] == [
        4, 2, 3,
    ]  # fmt: skip
    found = MetadataCatalog.get("kdbench/potsdam-irrg/val")
    assert tuple(found.stuff_classes) == benchmark.ISPRS.classes
    assert found.stuff_colors[1] == [0, 0, 255]
    assert (found.ignore_label, found.evaluator_type) == (IGNORE, "sem_seg")


def test_detectron2_reads_mapped_labels_and_the_images_pixels(d2: ModuleType, trees: Any) -> None:
    trees.make("cityscapes")
    root, stem = trees.root / "cityscapes", "val/munster/munster_000001_000019"
    image = np.asarray(Image.open(root / f"leftImg8bit/{stem}_leftImg8bit.png"))
    stored = np.asarray(Image.open(root / f"gtFine/{stem}_gtFine_labelIds.png"))
    d2.register(trees.root)
    record = records("kdbench/cityscapes/val")[1]
    assert not record["file_name"].startswith(str(root))
    found = mapped(record)
    assert np.array_equal(found["image"].permute(1, 2, 0).numpy(), image)
    classes = np.full(256, IGNORE)
    classes[list(ID_TO_CLASS)] = list(ID_TO_CLASS.values())
    assert np.array_equal(found["sem_seg"].numpy(), classes[stored])
    assert (found["height"], found["width"]) == image.shape[:2]
    assert "munster_000001_000019" in found["sample"]["key"]


def test_a_label_map_is_picked_by_its_data_set(d2: ModuleType, trees: Any) -> None:
    trees.make("mapillary")
    scan = ADAPTERS["mapillary"].scan(trees.root)

    def label(maps: dict[str, str]) -> Tensor:
        d2.register(trees.root, label_maps=maps)
        return mapped(records("kdbench/mapillary/val")[0])["sem_seg"]

    rein, robustnet = label({}), label({"mapillary": "robustnet"})
    assert not torch.equal(rein, robustnet)
    stored = np.asarray(Image.open(scan.complete_pairs(("val",))[0].label.path))
    assert np.array_equal(robustnet.numpy(), scan.table("robustnet")[stored])
    with pytest.raises(KdbenchError, match="unknown label map"):
        label({"mapillary": "mine"})


def test_an_image_and_its_label_are_decoded_once(d2: ModuleType, trees: Any, monkeypatch: Any) -> None:
    trees.make("cityscapes")
    d2.register(trees.root)
    read, original = [], RealSet.read
    monkeypatch.setattr(RealSet, "read", lambda self, index: read.append(index) or original(self, index))
    for record in records("kdbench/cityscapes/val"):
        mapped(record)
    assert read == [0, 1]


def test_of_two_folders_the_one_that_is_registered_last_counts(d2: ModuleType, trees: Any, tmp_path: Path) -> None:
    trees.make("cityscapes")
    first, other = d2.register(trees.root), tmp_path / "other"
    trees.root.rename(other)
    path = next(other.glob("cityscapes/leftImg8bit/val/munster/*_000000_*.png"))
    Image.fromarray(np.full((24, 48, 3), 7, np.uint8)).save(path)
    assert d2.register(other) == first
    assert (mapped(records("kdbench/cityscapes/val")[0])["image"] == 7).all()


def test_requests_that_cannot_be_served_are_refused(d2: ModuleType, trees: Any, tmp_path: Path) -> None:
    with pytest.raises(KdbenchError, match="is not a folder"):
        d2.register(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(KdbenchError, match="no data set of the benchmarks"):
        d2.register(tmp_path / "empty")
    trees.make("cityscapes")
    with pytest.raises(KdbenchError, match="'gtav' is not under"):
        d2.register(trees.root, ["g2c"])
    with pytest.raises(KdbenchError, match="unknown benchmark"):
        d2.register(trees.root, ["g2x"])
    d2.register(trees.root)
    for name in ("kdbench://kdbench/cityscapes/val/2/image", "kdbench://kdbench/cityscapes/val/0/depth"):
        with pytest.raises(KdbenchError, match="names no sample"):
            d2.load_label(name)
    with pytest.raises(KdbenchError, match="Did you mean 'kdbench/cityscapes/val'"):
        d2.load_label("kdbench://kdbench/cityscape/val/0/image")


def test_one_name_for_different_images_is_refused(d2: ModuleType) -> None:
    def made(name: str, part: str) -> Benchmark:
        source = Domain("town", real=RealData("cityscapes", train=(part,)))
        target = Domain("elsewhere", real=RealData("acdc", val=("fog/val",)))
        return Benchmark(name, name, (source,), (target,), benchmark.PROXY, benchmark.CITYSCAPES)

    collect = d2.catalog._collect
    assert len(collect([made("one", "train"), made("two", "train")])) == 2
    with pytest.raises(KdbenchError, match="'kdbench/town/train'; the second is 'two'"):
        collect([made("one", "train"), made("two", "val")])


# A config as a student, on the command line

SMALL = Path(__file__).parent / "small_fpn.yaml"
TEACHER = "timm/test_vit"


def shortened() -> Protocol:
    """PAPER with two steps a phase, a light decoder and small windows; all other numbers as they are."""
    recipes = {}
    for phase, recipe in PAPER.recipes.items():
        views: Any = SegmentationViews(crop=224) if phase.labelled else DistillationViews(crop=224)
        recipes[phase] = recipe.model_copy(update={"steps": 2, "epochs": 0, "batch": 2, "augmentation": views})
    window = Evaluation(window=(224, 224), stride=(224, 224), batch=2)
    changes = {
        "decoder": "light",
        "recipes": recipes,
        "snapshots": (1.0,),
        "precision": "32-true",
        "evaluation": window,
    }
    return PAPER.model_copy(update=changes)


@pytest.mark.slow
def test_a_config_runs_as_a_student_through_all_phases(
    d2: ModuleType, trees: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gtav", "cityscapes", "imagenet"):
        trees.make(name)
    weights, config, results = tmp_path / "weights", tmp_path / "mine.yaml", tmp_path / "results"
    weights.mkdir()
    shutil.copy(SMALL, config)
    torch.save(build_pretrained(find_model(TEACHER)).body.state_dict(), weights / "timm--test_vit.pth")
    encoder = d2.student_from_config(config, 54).encoder.body
    torch.save({f"backbone.{name}": t for name, t in encoder.state_dict().items()}, weights / "mine.pth")
    monkeypatch.setitem(protocols.PROTOCOLS, "paper", shortened())

    def run(*more: str) -> str:
        done = CliRunner().invoke(
            app,
            ["run", "--method", "gkd,cwd", "--pair", f"{TEACHER}:detectron2/{config}", "--benchmark", "g2c",
             "--protocol", "paper", "--data-root", str(trees.root), "--weights-dir", str(weights), "--workers", "0",
             "--store", str(tmp_path / "store"), "--results", str(results), *more],
            catch_exceptions=False,
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        return done.output

    planned = run("--no-references", "--dry-run")
    assert f"{TEACHER} -> detectron2/{config}" in planned
    assert planned.count("to do") == 5
    assert not results.exists()

    printed = run("--pictures")
    assert "decoder light (student: its config's head)" in " ".join(printed.split())
    records = {record.spec.resolved.method: record for record in map(read_record, results.rglob("*-s0.json"))}
    assert {name: [stage.phase for stage in _stages(record)] for name, record in records.items()} == {
        "teacher": [Phase.FIT_TEACHER],
        "baseline": [Phase.TASK],
        "gkd": [Phase.PROXY, Phase.SOURCE, Phase.TASK],
        "cwd": [Phase.FIT_TEACHER, Phase.TASK],
    }
    # The student's loss is its head's, under the name that detectron2 gives it.
    assert "loss_sem_seg" in _stages(records["baseline"])[0].losses
    # One folder a pair, and of the config's path the last part alone.
    folders = {path.parent for path in results.rglob("*-s0.json")}
    assert len({folder.parent for folder in folders}) == 1
    assert {folder.name.rpartition("-")[0] for folder in folders} == {
        "timm--test_vit-", "timm--test_vit--detectron2--mine.yaml",
    }  # fmt: skip
    assert run().count("done before") == 4


def _stages(record: Record) -> Any:
    assert record.result is not None, record.error
    return record.result.stages


# The evaluator

LABELS = LabelSpace("letters", ("a", "b", "c", "d", "e"), ((0, 0, 0),) * 5)


class Samples:
    """A domain set of given images and labels."""

    domain, data_source = "somewhere", "test"

    def __init__(self, samples: list[tuple[Tensor, Tensor]]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        return self.samples[index]


class Painter(nn.Module):
    """Predicts the class that the red channel carries, so that a test decides what is predicted."""

    def forward(self, image: Tensor) -> SimpleNamespace:
        return SimpleNamespace(scores=None, logits=-(image[:, :1] * 255 - torch.arange(5).view(1, 5, 1, 1)).abs())


def painted(predicted: list[int], labelled: list[int], count: int = 3) -> Samples:
    """Random predictions and labels of those classes; a tenth of the labels is ignored, and one class' pixels too."""
    draw = np.random.default_rng(0)
    samples = []
    for _ in range(count):
        image = np.zeros((3, 32, 64), np.uint8)
        image[0] = draw.choice(predicted, (32, 64))
        label = draw.choice(labelled, (32, 64)).astype(np.uint8)
        label[draw.random((32, 64)) < 0.1] = IGNORE
        samples.append((torch.from_numpy(image), torch.from_numpy(label)))
    return Samples(samples)


@pytest.mark.parametrize(
    ("predicted", "labelled"), [(range(5), range(5)), ([0, 2, 3], [0, 2, 3]), ([1, 4], [1, 4]), ([0, 1, 2], [0, 1])]
)
def test_scores_agree_with_ours_but_for_classes_that_are_predicted_and_nowhere_labelled(
    d2: ModuleType, predicted: Any, labelled: Any
) -> None:
    model, samples = Painter(), painted([*predicted], [*labelled])
    # One image a pass, so that both see the same rounding.
    evaluation = Evaluation(window=(32, 64), stride=(16, 32), batch=1)
    theirs = d2.evaluate(model, samples, LABELS, evaluation)
    ours = class_iou(hits(our_counts(model, samples, len(LABELS), evaluation, CPU).sum(0)))
    iou = np.array([theirs[f"IoU-{name}"] for name in LABELS.classes])
    unlabelled = sorted({*predicted} - {*labelled})
    assert (ours[unlabelled] == 0).all()
    ours[unlabelled] = np.nan
    assert np.allclose(iou, ours, atol=1e-6, equal_nan=True)
    assert theirs["mIoU"] == pytest.approx(np.nanmean(ours), abs=1e-6)
    assert 10 < theirs["mIoU"] < 90


def test_evaluating_leaves_no_trace_and_refuses_other_classes(d2: ModuleType) -> None:
    from detectron2.data import DatasetCatalog

    samples = painted([0, 1], [0, 4])
    few = LabelSpace("few", ("a", "b"), ((0, 0, 0),) * 2)
    evaluation = Evaluation(window=(32, 64), stride=(32, 64), batch=1)
    with pytest.raises(KdbenchError, match="classes beyond the 2 of 'few'"):
        d2.evaluate(Painter(), samples, few, evaluation)
    assert not [name for name in DatasetCatalog.list() if name.startswith("kdbench/")]
