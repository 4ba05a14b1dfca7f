"""What the choice of validation images does to a difference: a paired bootstrap of the per-image counts."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from kdbench.errors import KdbenchError
from kdbench.identity import digest, seed_from
from kdbench.metrics import domains, hits, mious
from kdbench.records import SIDE_FILE, Record
from kdbench.report.old_statistics import LEVEL, Interval

RESAMPLES = 1000


@dataclass(frozen=True)
class OldResampled:
    """mIoU (RESAMPLES,) in percent of one record on one domain. images: equal where two records saw the same ones."""

    miou: np.ndarray
    images: str


Resampled = OldResampled


def resample(counts: np.ndarray, domain: str) -> Resampled:
    """The mIoU of images drawn with replacement, from hits (N, 3, K) of N images.

    The draws are a function of the domain and N alone: all models are scored on the same draws, which pairs them.
    """
    times = _times(domain, len(counts))
    labels = counts[:, 0] + counts[:, 2]
    return Resampled(mious(np.tensordot(times, counts, axes=1)), digest(labels.astype("<i8").tobytes().hex()))


@lru_cache(maxsize=8)
def _times(domain: str, images: int) -> np.ndarray:
    """How often each image is drawn (RESAMPLES, N)."""
    generator = np.random.default_rng(seed_from("bootstrap", domain, images))
    return generator.multinomial(images, np.full(images, 1 / images), size=RESAMPLES).astype(float)


def read_targets(path: Path, record: Record) -> dict[str, Resampled] | None:
    """A record's targets from its side file; None where there is none, or a target of a single image.

    KdbenchError: the file is damaged, or its counts are not those of the record.
    """
    file = path.with_name(path.stem + SIDE_FILE)
    if not file.is_file():
        return None
    repair = "Remove it, or run its cell again with --fresh."
    try:
        if not zipfile.is_zipfile(file):
            raise ValueError("no archive of arrays")
        with np.load(file, allow_pickle=False) as held:
            counts = {domain.domain: held[domain.domain] for domain in domains(record, "target")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise KdbenchError(f"{file} is not readable as counts by image ({error}). {repair}") from error
    for domain in domains(record, "target"):
        if not np.array_equal(counts[domain.domain].sum(0), hits(domain.confusion)):
            raise KdbenchError(f"{file} does not belong to its record: '{domain.domain}' has other counts. {repair}")
    if any(len(each) < 2 for each in counts.values()):
        return None
    return {name: resample(each, name) for name, each in counts.items()}


def interval(
    ours: Sequence[dict[str, Resampled] | None], theirs: Sequence[dict[str, Resampled] | None]
) -> Interval | None:
    """Percentile interval of the difference in mean mIoU of the targets, averaged over models (Efron, Ann. Stat. 1979).

    ours, theirs: one a seed, paired. It holds for these trained models: other images, not other trainings. None where a
    side file is missing or two models were tested on different images.
    """
    gaps = []
    for one, other in zip(ours, theirs, strict=True):
        if not one or not other or {n: r.images for n, r in one.items()} != {n: r.images for n, r in other.items()}:
            return None
        gaps.append(np.mean([one[name].miou - other[name].miou for name in one], axis=0))
    if not gaps:
        return None
    low, high = np.nanquantile(np.mean(gaps, axis=0), (LEVEL / 2, 1 - LEVEL / 2))
    return Interval(float(low), float(high))
