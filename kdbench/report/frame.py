"""Results as one data frame: a row per cell, snapshot and domain. Everything a report shows is computed from it.

Columns of a cell: `cell` (its CellId) and what that names (protocol_id, data_source, benchmark, label_fraction,
teacher, student, pair, method, variant, label, seed); protocol, role, title, family, decoder, model_set, footnote,
options, weights, classes; status, error, reference (committed), path, engine_version, revision; foreign (its domains
from another data source than its own, with that), trained_on (the last stage's domains with their data sources),
shipped (stages that came with kdbench), losses (stage -> term -> means over tenths of the stage); train_images,
student_forwards, train_flops, train_seconds, memory_mb (sums and the peak over all stages), inference_flops,
latency_ms, parameters (of what is deployed).

Columns of a measurement: domain, domain_role, domain_source, images; snapshot (1 to P), last (bool); hits (3, K), which
are true positives, false positives and false negatives; in percent miou, accuracy, class_iou (K) and labelled_iou (K),
which is nan for classes that the domain's labels lack.

A cell without measurements, as a failed one, is one row: snapshot 0, last, no domain. Unknown values are missing.
"""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kdbench.errors import KdbenchError, unknown
from kdbench.metrics import class_iou, domains, known_mean, snapshots
from kdbench.records import SIDE_FILE, CellId, Record, read_record, record_files

PLACE = ["protocol_id", "data_source", "benchmark", "label_fraction", "teacher", "classes", "foreign"]
"""Cells that differ in one of these columns are never compared."""
COSTS = [
    "train_images", "student_forwards", "train_flops", "train_seconds", "memory_mb", "inference_flops", "latency_ms",
    "parameters",
]  # fmt: skip
CELL_COLUMNS = [
    "cell", "protocol_id", "protocol", "data_source", "benchmark", "label_fraction", "teacher", "student", "pair",
    "method", "variant", "label", "seed", "role", "title", "family", "decoder", "model_set", "footnote", "options",
    "weights", "classes", "status", "error", "reference", "path", "engine_version", "revision", "foreign", "trained_on",
    "shipped", "losses", *COSTS,
]  # fmt: skip
MEASURED_COLUMNS = [
    "domain", "domain_role", "domain_source", "images", "snapshot", "last", "miou", "accuracy", "hits", "class_iou",
    "labelled_iou",
]  # fmt: skip


class Entry(NamedTuple):
    """A record, whether it comes from the committed folder, and its file if it was read from one."""

    record: Record
    reference: bool = False
    path: Path | None = None


class Loaded(NamedTuple):
    """The frame of what could be read, and one message for every file that could not."""

    frame: pd.DataFrame
    faults: list[str]


def load_results(path: Path | str) -> pd.DataFrame:
    """Return the frame of all records below a folder; warn of files that cannot be read.

    Raises:
        KdbenchError: there is no record.
    """
    frame, faults = load(Path(path), None)
    for fault in faults:
        warnings.warn(fault, stacklevel=2)
    return frame


def load(
    runs: Path,
    reference: Path | None,
    *,
    protocol: str | None = None,
    benchmarks: Iterable[str] | None = None,
    pairs: Iterable[str] | None = None,
) -> Loaded:
    """Read the records of both folders and select among them; no record at all is an error."""
    frame, faults = read(runs, reference)
    if frame.empty:
        raise _nothing([runs, reference], faults)
    return Loaded(select(frame, protocol, benchmarks, pairs), faults)


def read(runs: Path | None, reference: Path | None) -> Loaded:
    """Read the records of both folders; a run's cell replaces the committed one. The frame may be empty."""
    cells: dict[CellId, Entry] = {}
    faults: list[str] = []
    for folder, committed in ((reference, True), (runs, False)):
        for path in record_files(folder) if folder else ():
            try:
                record = read_record(path)
            except KdbenchError as error:
                faults.append(str(error))
            else:
                cells[record.spec.resolved.id] = Entry(record, committed, path)
    return Loaded(to_frame(cells.values()), faults)


def _nothing(folders: list[Path | None], faults: list[str]) -> KdbenchError:
    looked = " and ".join(str(folder) for folder in folders if folder)
    first = f" {len(faults)} could not be read; the first: {faults[0]}" if faults else ""
    return KdbenchError(
        f"no records in {looked}.{first} Make some with `kdbench run --method METHOD --pair TEACHER:STUDENT`, "
        "or name the folder that holds them with --results DIR."
    )


def select(
    frame: pd.DataFrame,
    protocol: str | None = None,
    benchmarks: Iterable[str] | None = None,
    pairs: Iterable[str] | None = None,
) -> pd.DataFrame:
    """Return the rows of a protocol (its name or id), some benchmarks and pairs; teachers come with their pairs.

    Raises:
        KdbenchError: a name that no record has, with the nearest one.
    """
    if protocol is not None:
        _check("protocol", [protocol], {*frame.protocol, *frame.protocol_id})
        frame = frame[(frame.protocol == protocol) | (frame.protocol_id == protocol)]
    if benchmarks is not None:
        frame = frame[frame.benchmark.isin(_check("benchmark", benchmarks, set(frame.benchmark)))]
    if pairs is not None:
        wanted = frame.pair.isin(_check("pair", pairs, set(frame.pair)))
        place = pd.Series(list(zip(*(frame[name] for name in PLACE), strict=True)), frame.index)
        frame = frame[wanted | (frame.student.isna() & place.isin(set(place[wanted])))]
    return frame


def _check(kind: str, asked: Iterable[str], held: set[str]) -> list[str]:
    asked = list(asked)
    for name in asked:
        if name not in held:
            repair = "Other names have to be run first: `kdbench run`."
            raise unknown(kind, name, held, repair, where="in the records")
    return asked


def to_frame(entries: Iterable[Entry]) -> pd.DataFrame:
    """Return the frame of records; the module's text lists its columns."""
    entries = list(entries)
    cells = pd.DataFrame([_cell(entry) for entry in entries], columns=CELL_COLUMNS).astype(dict.fromkeys(COSTS, float))
    measured = [(place, *row) for place, entry in enumerate(entries) for row in _measured(entry.record)]
    kinds = {"place": int, "snapshot": int, "last": bool, "miou": float, "accuracy": float}
    rows = pd.DataFrame(measured, columns=["place", *MEASURED_COLUMNS]).astype(kinds)
    return cells.loc[rows.pop("place")].reset_index(drop=True).join(rows)


def _cell(entry: Entry) -> dict[str, Any]:
    record, cell = entry.record, entry.record.spec.resolved
    id, stages = cell.id, record.result.stages if record.result else []
    own = {(domain.domain, cell.data_source) for domain in _domains(record)}
    return (
        dict(cell)
        | {
            "cell": id,
            "pair": id.pair,
            "label": id.label,
            "classes": tuple(cell.classes),
            "status": record.status,
            "error": record.error,
            "reference": entry.reference,
            "path": entry.path,
            "engine_version": record.run.versions.get("engine"),
            "revision": record.run.revision,
            "foreign": tuple(sorted({(d.domain, d.data_source) for d in _domains(record)} - own)),
            "trained_on": stages[-1].data if stages else {},
            "shipped": tuple(record.run.shipped),
            "losses": {stage.name: stage.losses for stage in stages},
        }
        | _costs(record)
    )


def _domains(record: Record) -> list[Any]:
    return domains(record, "target") + domains(record, "source")


def _costs(record: Record) -> dict[str, float | None]:
    """Sums over all stages, and the highest of their peaks of memory; None where one of them is unknown."""
    result, run = record.result, record.run
    if result is None:
        return {}
    memory = [run.stage_memory_mb.get(stage.name) for stage in result.stages]
    return {
        "train_images": _sum(stage.images for stage in result.stages),
        "student_forwards": _sum(stage.student_forwards for stage in result.stages),
        "train_flops": _sum(stage.flops for stage in result.stages),
        "train_seconds": _sum(run.stage_seconds.get(stage.name) for stage in result.stages),
        "memory_mb": None if not memory or None in memory else max(value for value in memory if value is not None),
        "inference_flops": result.inference_flops,
        "latency_ms": run.latency_ms,
        "parameters": result.parameters.get("deployed"),
    }


def _sum(values: Iterable[float | None]) -> float | None:
    values = list(values)
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _measured(record: Record) -> Iterator[tuple[Any, ...]]:
    """Rows of MEASURED_COLUMNS."""
    held = _domains(record)
    if not held:
        yield (None, None, None, None, 0, True, np.nan, np.nan, None, None, None)
        return
    hits = np.stack([snapshots(domain) for domain in held])
    truth = np.stack([domain.confusion.sum(1) for domain in held])[:, None]
    iou = class_iou(hits)
    mious, shown = known_mean(iou, axis=-1), np.where(truth > 0, iou, np.nan)
    with np.errstate(invalid="ignore"):
        accuracies = 100.0 * hits[:, :, 0].sum(-1) / truth.sum(-1)
    for number, domain in enumerate(held):
        named = (domain.domain, domain.role, domain.data_source, domain.images)
        scores = (mious[number], accuracies[number], hits[number], iou[number], shown[number])
        for place, values in enumerate(zip(*scores, strict=True), 1):
            yield (*named, place, place == hits.shape[1], *values)


def loss_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row per cell, stage, term and tenth of the stage: a frame's cell columns, stage, term, tenth, value."""
    cells = frame.drop_duplicates("cell")
    rows = [
        (index, stage, term, tenth, value)
        for index, stages in cells.losses.items()
        for stage, terms in stages.items()
        for term, values in terms.items()
        for tenth, value in enumerate(values, 1)
    ]
    losses = pd.DataFrame(rows, columns=["index", "stage", "term", "tenth", "value"])
    known = cells[CELL_COLUMNS].drop(columns="losses")
    return known.loc[losses.pop("index")].reset_index(drop=True).join(losses)


def side_file(path: Path) -> Path:
    """Return where a record's counts by image lie, if there are any."""
    return path.with_name(path.stem + SIDE_FILE)


def read_image_counts(path: Path, measured: pd.DataFrame) -> dict[str, np.ndarray]:
    """Read hits (N, 3, K) of each image, by domain, from the side file of a record.

    path: the record's. measured: its rows of the frame for the wanted domains, to whose hits the images must add up.

    Raises:
        KdbenchError: the file is damaged, or its counts are not those of the record.
    """
    file, repair = side_file(path), "Remove it, or run its cell again with --fresh."
    try:
        if not zipfile.is_zipfile(file):
            raise ValueError("no archive of arrays")
        with np.load(file, allow_pickle=False) as held:
            counts = {domain: held[domain] for domain in measured.domain}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise KdbenchError(f"{file} is not readable as counts by image ({error}). {repair}") from error
    for domain, total in zip(measured.domain, measured.hits, strict=True):
        if not np.array_equal(counts[domain].sum(0), total):
            raise KdbenchError(f"{file} does not belong to its record: '{domain}' has other counts. {repair}")
    return counts
