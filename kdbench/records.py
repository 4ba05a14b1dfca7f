"""The record that a cell leaves: typed and versioned, with the request as passed and as resolved. No torch here."""

from __future__ import annotations

import base64
import glob
import json
import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError

from kdbench.errors import KdbenchError
from kdbench.names import file_name

SCHEMA: Final = 2
SIDE_FILE = ".counts.npz"


# A record holds thousands of counts in 8 KB. Counts are small: of their eight bytes the high ones are nearly all zero,
# which compresses best when equal bytes lie together; the raw format has no header to pay for in every array.
FILTERS = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 16, "lc": 0, "lp": 0, "pb": 0}]


def pack(array: np.ndarray) -> dict[str, Any]:
    """Compress integers to text: a full confusion matrix takes a few hundred characters."""
    planes = array.astype("<i8").reshape(-1, 1).view("u1").T
    content = lzma.compress(planes.tobytes(), lzma.FORMAT_RAW, filters=FILTERS)
    return {"shape": list(array.shape), "lzma": base64.b85encode(content).decode()}


def unpack(value: Any) -> np.ndarray:
    """Return the array of a packed value."""
    if isinstance(value, np.ndarray):
        return value
    try:
        content = lzma.decompress(base64.b85decode(value["lzma"]), lzma.FORMAT_RAW, filters=FILTERS)
        planes = np.frombuffer(content, "u1").reshape(8, -1)
        return np.ascontiguousarray(planes.T).view("<i8").reshape(value["shape"]).astype(np.int64)
    except (lzma.LZMAError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not packed counts: {error}") from error


Packed = Annotated[np.ndarray, BeforeValidator(unpack), PlainSerializer(pack)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


@dataclass(frozen=True, order=True)
class CellId:
    """Name one cell: one method on one benchmark with one pair and seed, under one protocol.

    student is None, and method `teacher`, for the teacher's own row. label_fraction: share of source labels, `1/16`.
    """

    protocol_id: str
    data_source: str
    benchmark: str
    teacher: str
    student: str | None
    method: str
    variant: str
    seed: int
    label_fraction: str = "1"

    @property
    def pair(self) -> str:
        """`teacher:student`; the teacher alone for its own row."""
        return f"{self.teacher}:{self.student}" if self.student else self.teacher

    @property
    def label(self) -> str:
        """`method[variant]`, as boards show it."""
        return f"{self.method}[{self.variant}]" if self.variant else self.method

    @property
    def name(self) -> str:
        """`benchmark · method[variant]`, as messages and progress show it."""
        return f"{self.benchmark} · {self.label}"

    @property
    def path(self) -> Path:
        """protocol/data source/benchmark[@fraction]/pair/method[@variant]-sSEED.json, below a results folder."""
        return self._path(f"s{self.seed}")

    @property
    def paths_of_all_seeds(self) -> str:
        """The same as a glob pattern over seeds; it may match other cells too."""
        return glob.escape(str(self._path(""))).removesuffix(".json") + "s*.json"

    def _path(self, seed: str) -> Path:
        pair = f"{file_name(self.teacher)}--{file_name(self.student or 'none')}"
        variant = f"@{self.variant}" if self.variant else ""
        labels = "" if self.label_fraction == "1" else f"@{self.label_fraction.replace('/', '-')}"
        name = f"{self.method}{variant}-{seed}.json"
        return Path(self.protocol_id, self.data_source, f"{self.benchmark}{labels}", pair, name)


class Resolved(_Model):
    """What was run. Everything that a board groups, orders and labels by stands here."""

    protocol: str
    protocol_id: str
    decoder: str
    data_source: str
    benchmark: str
    title: str
    classes: list[str]
    teacher: str
    student: str | None
    model_set: str
    weights: dict[str, str] = {}
    """Which pretrained weights each of the two models began with, by its name; an older record does not know."""
    family: str | None
    method: str
    role: Literal["teacher", "undistilled", "distilled"]
    options: dict[str, Any]
    variant: str
    seed: int
    label_fraction: str = "1"
    footnote: str
    key: str

    @property
    def id(self) -> CellId:
        """Return the cell that was run."""
        return CellId(**{field.name: getattr(self, field.name) for field in fields(CellId)})


class Spec(_Model):
    """The request as passed and as resolved."""

    passed: dict[str, Any]
    resolved: Resolved


class DomainResult(_Model):
    """One domain's counts of pixels.

    confusion (K, K): at the last snapshot; rows ground truth, columns prediction. earlier (P - 1, 2, K): true and false
    positives at the snapshots before it; with the ground truth's totals, which all share, they give any IoU
    (metrics.snapshots).
    """

    domain: str
    role: Literal["target", "source"]
    data_source: str
    images: int
    confusion: Packed
    earlier: Packed


class StageCounts(_Model):
    """What a stage did; bit-identical on a rerun on the same machine.

    images: views that it trained on. student_forwards: images through the student, an image twice where a loss does so.
    flops: floating point operations of all its steps, forward and backward, counted on the real modules; None where
    that failed. skipped_files: training files that could not be read; others took their places. micro_batches: parts
    that a batch was cut into, where memory did not hold it whole. strides: of each encoder's maps, in pixels of the
    image, fine to coarse; a loss that compares maps of different strides resizes one of them. losses: each term's means
    over tenths of the stage. Older records lack flops and strides.
    """

    steps: int
    images: int
    student_forwards: int
    flops: int | None = None
    skipped_files: int = 0
    micro_batches: int = 1
    strides: dict[str, list[int]] = {}
    losses: dict[str, list[float]]


class StageSummary(StageCounts):
    """What a finished stage leaves in the store (stage.json).

    first_losses: of its first steps, by term; with them somebody else can tell that they get the same (models verify).
    memory_mb: peak of a GPU's tensors; None on a CPU. device: where it was computed, `cpu, AMD EPYC, AVX2`.
    """

    first_losses: dict[str, list[float]] = {}
    seconds: float
    device: str = ""
    memory_mb: float | None = None
    versions: dict[str, str] = {}
    revision: str = ""


class StageResult(StageCounts):
    """A stage in a record. data: domain -> its data source."""

    name: str
    phase: str
    key: str
    data: dict[str, str]


class Result(_Model):
    """What a cell computed; bit-identical on a rerun. inference_flops: of the deployed segmentor, for one image."""

    domains: list[DomainResult]
    stages: list[StageResult]
    parameters: dict[str, int]
    inference_flops: int | None = None


class RunInfo(_Model):
    """How the run went; differs from run to run.

    stage_seconds, stage_memory_mb: of each stage when it was trained, here or in an earlier run; memory on a GPU only.
    stage_devices: where each stage that is common to all seeds was computed. cached: stages that were finished before
    this run; shipped: those of them that came with kdbench. peak_memory_mb: the largest of stage_memory_mb, or of what
    the process (on a GPU: its tensors) has taken so far, for other cells too. latency_ms: of the deployed segmentor for
    one image of the protocol's size. versions: of the engine (`engine`; unknown in older records) and of libraries.
    """

    started: str
    seconds: float
    stage_seconds: dict[str, float]
    stage_memory_mb: dict[str, float] = {}
    stage_devices: dict[str, str] = {}
    latency_ms: float | None = None
    cached: list[str]
    shipped: list[str] = []
    peak_memory_mb: float
    host: dict[str, Any]
    versions: dict[str, str]
    revision: str


class Record(_Model):
    """One cell's record."""

    schema_version: Literal[2] = 2
    status: Literal["done", "failed", "stopped"]
    """stopped: after the stage that --until named; such a record is not written."""
    error: str | None = None
    spec: Spec
    result: Result | None = None
    run: RunInfo

    def path(self) -> Path:
        """Return its place below the results folder."""
        return self.spec.resolved.id.path

    def to_json(self) -> str:
        """Return the record as it is written: without what stands at its default."""
        content = {"schema_version": SCHEMA} | self.model_dump(mode="json", exclude_defaults=True)
        return json.dumps(content, separators=(",", ":"), ensure_ascii=False) + "\n"


_PROTOCOL_IDS_IN_2 = {
    "smoke-54761713": "smoke-v1", "smoke-equal-e5d04e46": "smoke-v1-equal",
    "mini-bc929c0b": "mini-v1", "mini-equal-10c4a91a": "mini-v1-equal",
    "paper-443c8e49": "paper-v1", "paper-pseudo-inverse-12777e69": "paper-v1-pseudo-inverse",
    "paper-equal-97c5959d": "paper-v1-equal", "paper-equal-pseudo-inverse-c6b12abe": "paper-v1-equal-pseudo-inverse",
    "paper-text-ca6f376b": "paper-text-v1", "paper-text-pseudo-inverse-8e5bcc5a": "paper-text-v1-pseudo-inverse",
    "paper-text-equal-c1986246": "paper-text-v1-equal",
    "paper-text-equal-pseudo-inverse-081decf7": "paper-text-v1-equal-pseudo-inverse",
}  # fmt: skip
"""Ids of schema 1, where a hash of the protocol's content stood in place of its version."""
_RENAMED_IN_2 = {
    "world": "data_source", "zoo": "model_set", "knobs": "options", "remark": "footnote",
    "student_passes": "student_forwards", "broken": "skipped_files", "pieces": "micro_batches",
}  # fmt: skip


def starts_from_file(cell: Resolved) -> bool:
    """Say whether the cell's student starts from a file of the user's (`--student-from`)."""
    return re.search(r"(^|,)from=[0-9a-f]{8}(,|$)", cell.variant) is not None


def _upgrade(content: dict[str, Any]) -> dict[str, Any]:
    """Return a record of schema 1 in the names and values of schema 2."""

    def renamed(part: dict[str, Any]) -> dict[str, Any]:
        return {_RENAMED_IN_2.get(name, name): value for name, value in part.items()}

    spec, result = content["spec"], content.get("result")
    passed, resolved = spec["passed"], renamed(spec["resolved"])
    if "track" in passed:
        passed["budget"] = "published" if passed.pop("track") == "paper" else "equal"
    if "recipe" in resolved["options"]:
        resolved["options"]["preset"] = {"bare": "plain", "paper": "published"}[resolved["options"].pop("recipe")]
        resolved["variant"] = resolved["variant"].replace("recipe=paper", "preset=published")
    if resolved["model_set"] == "mini-v1":
        resolved["model_set"] = "toy-v1"
    resolved["protocol_id"] = _PROTOCOL_IDS_IN_2.get(resolved["protocol_id"], resolved["protocol_id"])
    if result is not None:
        for part in ("domains", "stages"):
            result[part] = [renamed(each) for each in result[part]]
    return content | {"schema_version": 2, "spec": {"passed": passed, "resolved": resolved}}


def read_record(path: Path) -> Record:
    """Read a record; one that does not validate raises KdbenchError, which names the file and the first fault."""
    try:
        content = json.loads(path.read_bytes())
        record = Record.model_validate(_upgrade(content) if content.get("schema_version") == 1 else content)
        _check_shapes(record)
    except FileNotFoundError:
        raise KdbenchError(
            f"there is no record {path}. Give a path from a frame's column `path`, or run its cell."
        ) from None
    except (ValidationError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        fault = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"]))) if first else str(error)
        raise KdbenchError(
            f"{path} is not a valid record of schema {SCHEMA} ({fault}). Remove it and run its cell again."
        ) from error
    return record


def _check_shapes(record: Record) -> None:
    """Raise ValueError unless every domain has counts of the cell's classes, at as many snapshots as the others."""
    domains, classes = record.result.domains if record.result else [], len(record.spec.resolved.classes)
    earlier = {len(domain.earlier) for domain in domains}
    for domain in domains:
        fits = domain.confusion.shape == (classes, classes) and domain.earlier.shape[1:] == (2, classes)
        if not fits or len(earlier) > 1:
            raise ValueError(
                f"result.domains.{domain.domain}: counts {domain.confusion.shape} and {domain.earlier.shape} do not fit"
                f" {classes} classes and the snapshots of the other domains"
            )


def record_files(folder: Path) -> Iterator[Path]:
    """Yield every record's file below a folder, in a fixed order."""
    yield from sorted(folder.rglob("*-s[0-9]*.json")) if folder.is_dir() else ()
