"""Records: round trip, packed counts, what does not validate, how much room they take."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdbench.benchmark import CITYSCAPES
from kdbench.errors import KdbenchError
from kdbench.metrics import domain_miou, hits, snapshots
from kdbench.records import Record, StageResult, pack, read_record, record_files, unpack

GOLDEN = Path(__file__).parents[1] / "golden" / "record-v1.json"


def large_record(make_record: Any, make_domain: Any) -> Record:
    """c2a: five domains of 19 classes, 48 images of 64 x 128 pixels, three stages with three loss terms."""
    rng, classes = np.random.default_rng(0), len(CITYSCAPES)
    domains = []
    for name in ("acdc-night", "acdc-snow", "acdc-fog", "acdc-rain", "cityscapes"):
        # At four snapshots: the same ground truth, better and better guesses.
        truth = rng.multinomial(48 * 64 * 128, rng.dirichlet(np.full(classes, 0.5)))
        right, wrong = np.eye(classes), rng.dirichlet(np.full(classes, 0.3), classes)
        guesses = [share * right + (1 - share) * wrong for share in (0.5, 0.6, 0.65, 0.7)]
        *earlier, last = (
            np.stack([rng.multinomial(pixels, row) for pixels, row in zip(truth, guess, strict=True)])
            for guess in guesses
        )
        domain = make_domain(name, "source" if name == "cityscapes" else "target", last)
        domains.append(domain.model_copy(update={"earlier": np.stack([hits(counts)[:2] for counts in earlier])}))
    stages = [
        StageResult(
            data={"cityscapes": "synthetic-1"},
            name=name, phase=name, key="0123456789abcdef", steps=240, images=3840, student_forwards=7680,
            flops=10**15, strides={"teacher": [14], "student": [4, 8, 16, 32]},
            losses={term: [float(f"{x:.5g}") for x in rng.random(10)] for term in ("token", "feature", "patch")},
        )
        for name in ("proxy", "source", "task")
    ]  # fmt: skip
    options = {"token": 1.0, "feature": 1.0, "patch": 1.0, "mask_probability": 0.5, "mask_ratio": 0.5}
    named = {"benchmark": "c2a", "classes": list(CITYSCAPES.classes), "options": options}
    return make_record(domains=domains, stages=stages, **named)


def test_a_large_record_comes_back_and_stays_under_8_kb(tmp_path: Path, make_record, make_domain, write) -> None:
    record = large_record(make_record, make_domain)
    path = write(tmp_path, record)
    assert path.stat().st_size < 8192
    again = read_record(path)
    assert again.to_json() == record.to_json()
    assert again.spec == record.spec
    for ours, theirs in zip(record.result.domains, again.result.domains, strict=True):
        np.testing.assert_array_equal(ours.confusion, theirs.confusion)
        np.testing.assert_array_equal(ours.earlier, theirs.earlier)


@pytest.mark.parametrize("shape", [(19, 19), (4, 3, 19), (1, 1), (0, 3)])
def test_packed_counts_come_back(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    array = rng.integers(0, 2 ** rng.integers(1, 40, shape))
    value = json.loads(json.dumps(pack(array)))
    np.testing.assert_array_equal(unpack(value), array)
    assert unpack(value).dtype == np.int64


def test_a_cells_path_and_names(make_record) -> None:
    record = make_record(benchmark="c2a", method="kd", variant="temperature=2", seed=3)
    path = "mini-1a2b3c4d/synthetic-1/c2a/dinov2-l--resnet50/kd@temperature=2-s3.json"
    assert record.path() == Path(path)
    cell = record.spec.resolved.id
    assert (cell.name, cell.pair) == ("c2a · kd[temperature=2]", "dinov2-l:resnet50")
    assert replace(cell, label_fraction="1/16").path.parts[2] == "c2a@1-16"
    teacher = make_record(role="teacher")
    assert teacher.path().parts[-2:] == ("dinov2-l--none", "teacher-s0.json")
    assert teacher.spec.resolved.id.pair == "dinov2-l"


def test_all_seeds_of_a_cell_are_found_whatever_its_names_hold(tmp_path: Path, make_record, write) -> None:
    cell = {"variant": "weights=[1, 2]", "student": "timm/a[b]*"}
    paths = [write(tmp_path, make_record(**cell, seed=seed)) for seed in (0, 11)]
    write(tmp_path, make_record(variant="", student=cell["student"]))
    assert sorted(tmp_path.glob(make_record(**cell).spec.resolved.id.paths_of_all_seeds)) == sorted(paths)


@pytest.mark.parametrize("folder", ["", "/home/me/configs/", "relative/configs/"])
def test_a_model_that_is_named_by_a_path_has_one_folder(make_record, folder: str) -> None:
    plain = make_record(student="resnet50").path()
    path = make_record(student=f"detectron2/{folder}fpn.yaml").path()
    assert path.parents[1] == plain.parents[1]
    assert re.fullmatch(r"dinov2-l--detectron2--fpn\.yaml(-[0-9a-f]{8})?", path.parent.name)
    assert path.parent != make_record(student="detectron2/other/fpn.yaml").path().parent


def change(content: dict[str, Any], field: str, value: Any) -> None:
    *parents, last = field.split(".")
    for parent in parents:
        content = content[int(parent) if parent.isdigit() else parent]
    content[last] = value


FAULTS = {
    "extra": 1,
    "spec.resolved.colour": "red",
    "schema_version": 3,
    "status": "maybe",
    "spec.resolved.seed": "first",
    "result.domains.0.confusion": {"shape": [3, 3], "lzma": "|NsC0" * 4},
    "result.domains.0.earlier": {"shape": [3, 3], "zip": ""},
    "result.domains.1.earlier": 3,
    "result.domains.1.confusion": {"shape": [2, 2], "lzma": pack(np.eye(3))["lzma"]},
}


@pytest.mark.parametrize("field", FAULTS)
def test_a_fault_is_an_error_that_names_file_and_field(tmp_path: Path, make_record, write, field: str) -> None:
    path = write(tmp_path, make_record())
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content, field, FAULTS[field])
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(KdbenchError) as caught:
        read_record(path)
    assert str(path) in str(caught.value)
    assert field in str(caught.value)


def test_a_file_that_is_cut_off_is_an_error_that_names_it(tmp_path: Path, make_record, write) -> None:
    path = write(tmp_path, make_record())
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(KdbenchError, match=r"gkd-s0\.json"):
        read_record(path)


def test_records_are_found_in_order_and_nothing_else_is(tmp_path: Path, make_record, write) -> None:
    paths = [write(tmp_path, make_record(seed=seed)) for seed in (2, 0, 1)]
    (paths[0].parent / "gkd-s0.counts.npz").touch()
    (paths[0].parent / "notes.json").touch()
    assert list(record_files(tmp_path)) == sorted(paths)
    assert list(record_files(tmp_path / "missing")) == []


def test_a_record_of_schema_1_keeps_loading() -> None:
    record = read_record(GOLDEN)
    # Rows of its matrix: (800, 150, 50), (100, 600, 100), (20, 80, 100). So the IoUs are 800 / (1000 + 120),
    # 600 / (800 + 230) and 100 / (200 + 150).
    target, by_hand = record.result.domains[0], 100 * (800 / 1120 + 600 / 1030 + 100 / 350) / 3
    assert domain_miou(target) == pytest.approx(by_hand)
    np.testing.assert_array_equal(snapshots(target)[-1], [[800, 600, 100], [120, 230, 150], [200, 200, 100]])
    # What schema 2 renamed and added.
    resolved, golden = record.spec.resolved, json.loads(GOLDEN.read_bytes())["spec"]["resolved"]
    assert (resolved.data_source, resolved.model_set) == (golden["world"], golden["zoo"])
    assert (resolved.options, resolved.footnote) == (golden["knobs"], golden["remark"])
    assert (resolved.label_fraction, resolved.weights) == ("1", {})
    assert "engine" not in record.run.versions


def test_ids_of_protocols_without_versions_are_read_as_todays(tmp_path: Path) -> None:
    text = GOLDEN.read_text(encoding="utf-8").replace("mini-1a2b3c4d", "mini-equal-10c4a91a")
    (tmp_path / "gkd-s0.json").write_text(text, encoding="utf-8")
    assert read_record(tmp_path / "gkd-s0.json").spec.resolved.protocol_id == "mini-v1-equal"


@pytest.mark.parametrize(
    "change",
    [
        {"confusion": np.eye(2, dtype=np.int64)},
        {"earlier": np.zeros((3, 2, 2), np.int64)},
        {"earlier": np.zeros((1, 2, 3), np.int64)},
    ],
    ids=["another number of classes", "the same at earlier snapshots", "another number of snapshots"],
)
def test_counts_that_do_not_fit_are_no_record(tmp_path: Path, make_record, write, change: dict) -> None:
    record = make_record({"cityscapes": 40.0})
    changed = [record.result.domains[0].model_copy(update=change), *record.result.domains[1:]]
    record = record.model_copy(update={"result": record.result.model_copy(update={"domains": changed})})
    with pytest.raises(KdbenchError, match=r"json is not a valid record.*result\.domains\.cityscapes.*3 classes"):
        read_record(write(tmp_path, record))


def test_a_missing_record_is_not_to_be_removed(tmp_path: Path) -> None:
    with pytest.raises(KdbenchError, match=r"there is no record .*nowhere\.json"):
        read_record(tmp_path / "nowhere.json")
