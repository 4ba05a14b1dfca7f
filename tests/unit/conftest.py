"""Records made by hand, and references that share no code with what they check."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdbench.metrics import hits
from kdbench.records import DomainResult, Record, Resolved, Result, RunInfo, Spec, StageResult

WORLD = "synthetic-1"
TITLES = {"g2c": "GTAV to Cityscapes", "c2a": "Cityscapes to ACDC"}
CLASSES = ["road", "building", "sky"]


def counts(miou: float, classes: int = 3, pixels: int = 1000) -> np.ndarray:
    """A confusion matrix (K, K) whose classes all have this IoU in percent: a class's misses go to its neighbour."""
    right = round(pixels * miou / 100)
    wrong = (pixels - right) // 2
    return np.eye(classes, dtype=np.int64) * right + np.roll(np.eye(classes, dtype=np.int64), 1, axis=1) * wrong


def make_domain(name: str, role: str, confusion: np.ndarray, data_source: str = WORLD) -> DomainResult:
    """A domain's counts with four points, the last of which is what the others are rougher versions of."""
    rougher = [np.roll(confusion, shift, axis=1) for shift in (3, 2, 1)]
    earlier = np.stack([hits(guess)[:2] for guess in rougher])
    return DomainResult(
        domain=name, role=role, data_source=data_source, images=48, confusion=confusion, earlier=earlier
    )


def make_record(
    targets: dict[str, float] | None = None,
    sources: dict[str, float] | None = None,
    *,
    domains: list[DomainResult] | None = None,
    stages: list[StageResult] | None = None,
    error: str | None = None,
    deployed: int = 183_456,
    data_sources: dict[str, str] | None = None,
    **resolved: Any,
) -> Record:
    """A record of mIoU in percent by domain; error makes it a failed one; everything else replaces a resolved field."""
    data_sources = data_sources or {}
    cell = cell_of(**resolved)
    if domains is None:
        roles = {"target": targets or {"cityscapes": 40.0}, "source": {"gtav": 60.0} if sources is None else sources}
        domains = [
            make_domain(name, role, counts(miou), data_sources.get(name, cell.data_source))
            for role, scores in roles.items()
            for name, miou in scores.items()
        ]
    result = Result(domains=domains, stages=stages or [], parameters={"deployed": deployed, "teacher": 3_612_345})
    return Record(
        status="failed" if error else "done",
        error=error,
        spec=Spec(passed={"methods": [cell.method], "benchmarks": [cell.benchmark]}, resolved=cell),
        result=None if error else result,
        run=RunInfo(
            started="2025-06-01T12:00:00+00:00",
            seconds=61.42,
            stage_seconds={stage.name: 20.21 for stage in stages or []},
            cached=[],
            peak_memory_mb=1843.2,
            host={"machine": "x86_64", "processor": "AVX512", "system": "Linux"},
            versions={"torch": "2.11.0+cpu", "timm": "1.0.20", "numpy": "2.3.1", "python": "3.11.7", "threads": "2"},
            revision="5e1f0c2a9b7d4e3f5e1f0c2a9b7d4e3f5e1f0c2a",
        ),
    )


def cell_of(**resolved: Any) -> Resolved:
    """A resolved request with plausible defaults: a distilled row of g2c."""
    fields: dict[str, Any] = {
        "protocol": "mini",
        "protocol_id": "mini-1a2b3c4d",
        "decoder": "light",
        "data_source": WORLD,
        "benchmark": "g2c",
        "classes": CLASSES,
        "teacher": "dinov2-l",
        "student": "resnet50",
        "model_set": "toy-v2",
        "family": "F2L",
        "method": "gkd",
        "role": "distilled",
        "options": {},
        "variant": "",
        "seed": 0,
        "footnote": "",
        "key": "0123456789abcdef",
    } | resolved
    if fields["role"] == "teacher":
        fields |= {"student": None, "family": None, "method": "teacher"}
    return Resolved(title=TITLES.get(fields["benchmark"], "A to B"), **fields)


@pytest.fixture(name="make_record")
def _make_record() -> Callable[..., Record]:
    return make_record


@pytest.fixture(name="make_domain")
def _make_domain() -> Callable[..., DomainResult]:
    return make_domain


@pytest.fixture
def write() -> Callable[[Path, Record], Path]:
    """Writes a record to its place below a folder."""

    def to(folder: Path, record: Record) -> Path:
        path = folder / record.path()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(record.to_json(), encoding="utf-8")
        return path

    return to


@pytest.fixture
def bilinear() -> Callable[[np.ndarray, tuple[int, int]], np.ndarray]:
    """Bilinear resizing of (..., h, w) in float64 from its definition: pixel centres at half integers, clamped."""

    def weights(old: int, new: int) -> np.ndarray:
        matrix = np.zeros((new, old))
        for i in range(new):
            place = min(max((i + 0.5) * old / new - 0.5, 0.0), old - 1.0)
            low = int(place)
            matrix[i, low] += 1 - (place - low)
            matrix[i, min(low + 1, old - 1)] += place - low
        return matrix

    def resize(map_: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        rows, columns = weights(map_.shape[-2], size[0]), weights(map_.shape[-1], size[1])
        return rows @ map_.astype(np.float64) @ columns.T

    return resize
