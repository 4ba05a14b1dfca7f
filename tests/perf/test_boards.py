"""Seconds for the boards of 1,000 records, from the files to the text. No test asserts a time.

python -m pytest tests/perf/test_boards.py -m slow -s
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from kdbench.benchmark import CITYSCAPES
from kdbench.metrics import hits
from kdbench.records import SIDE_FILE, DomainResult, Record, Resolved, Result, RunInfo, Spec, StageResult
from kdbench.report.boards import boards
from kdbench.report.formats import render, to_json
from kdbench.report.frame import load
from kdbench.report.tables import EXTRA, tables

pytestmark = pytest.mark.slow
IMAGES, CLASSES = 48, list(CITYSCAPES.classes)
DOMAINS = {
    "b1": ("s1", ("t1",)),
    "b2": ("s1", ("t2",)),
    "b3": ("s2", ("t3", "t4", "t5", "t6")),
    "b4": ("s3", ("t7", "t8")),
}
METHODS = ("plain", *(f"method{index}" for index in range(24)))
SEEDS = range(10)


def counted(rng: np.random.Generator, name: str, role: str) -> tuple[DomainResult, np.ndarray]:
    """A domain's counts and those of its images; the labels are a function of the domain alone."""
    labels = np.random.default_rng(len(name)).integers(0, 400, (IMAGES, len(CLASSES)))
    right = rng.binomial(labels, 0.6)
    wrong = rng.multinomial(1, np.full(len(CLASSES), 1 / len(CLASSES)), (IMAGES, len(CLASSES)))
    matrices = right[..., None] * np.eye(len(CLASSES), dtype=np.int64) + (labels - right)[..., None] * wrong
    last = matrices.sum(0)
    earlier = np.stack([hits(np.roll(last, shift, axis=1))[:2] for shift in (3, 2, 1)])
    domain = DomainResult(domain=name, role=role, data_source="w", images=IMAGES, confusion=last, earlier=earlier)
    return domain, hits(matrices)


def record(domains: list[DomainResult], benchmark: str, method: str, seed: int) -> Record:
    """A record of one of many cells."""
    role = "undistilled" if method == "plain" else "distilled"
    cell = Resolved(
        protocol="mini", protocol_id="mini-0", decoder="light", data_source="w", benchmark=benchmark, title="A to B",
        classes=CLASSES, teacher="big", student="small", model_set="toy-v1",
        family="F2L", method=method, role=role, options={},
        variant="", seed=seed, footnote="", key="0",
    )  # fmt: skip
    run = RunInfo(
        started="", seconds=1, stage_seconds={}, cached=[], peak_memory_mb=1, host={}, versions={}, revision=""
    )
    stages = [
        StageResult(
            name=f"stage{number}", phase="task", key="0", data={}, steps=100, images=800, student_forwards=800,
            flops=10**12, losses={f"term{term}": [1.0] * 10 for term in range(4)},
        )
        for number in range(4)
    ]  # fmt: skip
    result = Result(domains=domains, stages=stages, parameters={"deployed": 1})
    return Record(status="done", spec=Spec(passed={}, resolved=cell), result=result, run=run)


def made(folder: Path) -> None:
    """1,000 records with their side files: four benchmarks of three sources, 25 methods, ten seeds."""
    rng = np.random.default_rng(0)
    for benchmark, method, seed in product(DOMAINS, METHODS, SEEDS):
        source, targets = DOMAINS[benchmark]
        held = [*(counted(rng, name, "target") for name in targets), counted(rng, source, "source")]
        cell = record([domain for domain, _ in held], benchmark, method, seed)
        path = folder / cell.path()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(cell.to_json(), encoding="utf-8")
        np.savez_compressed(path.with_name(path.stem + SIDE_FILE), **{d.domain: images for d, images in held})


@pytest.mark.parametrize("side_files", [False, True], ids=["records alone", "with side files"])
@pytest.mark.parametrize("format", ["table", "json"])
def test_a_board_of_1000_records(benchmark, tmp_path: Path, side_files: bool, format: str) -> None:
    made(tmp_path)
    if not side_files:
        for path in tmp_path.rglob(f"*{SIDE_FILE}"):
            path.unlink()

    def text() -> str:
        loaded = load(tmp_path, None)
        assert loaded.frame.cell.nunique() == 1000
        found = boards(loaded.frame)
        return to_json(found) if format == "json" else render("table", tables(found, EXTRA))

    assert "method23" in benchmark.pedantic(text, rounds=2)
