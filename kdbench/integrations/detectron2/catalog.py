"""Registers kdbench's domains in detectron2's catalogs.

A record's file names begin with `kdbench://`; detectron2's own file reader opens them through kdbench's adapters. Plain
paths would bypass these: stored label values in place of classes, no archives, and an image turned by its EXIF data but
not its label.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathHandler, PathManager
from PIL import Image
from torch import Tensor

from kdbench.benchmark import Benchmark, Domain, LabelSpace
from kdbench.data.datasets import Adapter
from kdbench.data.datasets.adapter import Scan
from kdbench.data.domainset import DomainSet
from kdbench.data.realset import RealSet
from kdbench.data.sizing import Native
from kdbench.data.sources import adapter_for
from kdbench.errors import KdbenchError, unknown
from kdbench.plugins import benchmark_names, load_all, load_benchmark
from kdbench.types import IGNORE

PREFIX = "kdbench://"
"""`kdbench://NAME/INDEX/image` and `.../label`, where NAME is the data set's in detectron2's catalog."""


class SampleFiles(PathHandler):  # type: ignore[misc]
    """Opens the names of samples: an image as PPM (RGB), a label as PGM of classes, 255 = ignore."""

    def __init__(self) -> None:
        super().__init__()
        self._sets: dict[str, DomainSet] = {}
        self._held: tuple[str, int, Tensor, Tensor] | None = None

    def add(self, name: str, samples: DomainSet) -> None:
        """Serve a set under a name, in place of what had the name before."""
        self._sets[name] = samples
        self._held = None

    def remove(self, name: str) -> None:
        """Stop serving a name."""
        del self._sets[name]
        self._held = None

    def read(self, path: str) -> tuple[Tensor, Tensor]:
        """Return image (3, H, W) and label (H, W), uint8, of the sample that a name belongs to."""
        name, index, _ = self._parse(path)
        held = self._held
        # An image is followed by its label, and a set decodes both at once.
        if held is None or held[:2] != (name, index):
            held = self._held = (name, index, *self._sets[name].read(index))
        return held[2], held[3]

    def _parse(self, path: str) -> tuple[str, int, str]:
        name, index, kind = [*path.removeprefix(PREFIX).rsplit("/", 2), "", ""][:3]
        if name not in self._sets:
            raise unknown("data set in detectron2's catalog", name, self._sets, "`register` adds them.")
        if kind not in ("image", "label") or not index.isdecimal() or int(index) >= len(self._sets[name]):
            raise KdbenchError(f"{path} names no sample of '{name}', which has {len(self._sets[name])}.")
        return name, int(index), kind

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **options: Any) -> io.BytesIO:
        if mode != "rb":
            raise KdbenchError(f"{path} can be opened to read bytes alone (mode 'rb', not '{mode}').")
        image, label = self.read(path)
        pixels = label if self._parse(path)[2] == "label" else image.permute(1, 2, 0)
        content = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(content, "PPM")
        content.seek(0)
        return content

    def _isfile(self, path: str, **options: Any) -> bool:
        try:
            return bool(self._parse(path))
        except KdbenchError:
            return False

    _exists = _isfile


_FILES = SampleFiles()
PathManager.register_handler(_FILES, allow_override=True)


def read_sample(name: str) -> tuple[Tensor, Tensor]:
    """Return image (3, H, W) and label (H, W), uint8, of the sample that a record's file name belongs to."""
    return _FILES.read(name)


def load_label(name: str, dtype: Any = None) -> np.ndarray:
    """Return a copy of a record's label (H, W), as SemSegEvaluator's `sem_seg_loading_fn`."""
    return np.array(read_sample(name)[1].numpy(), dtype)


@dataclass(frozen=True)
class _Split:
    """One domain's part in training or in validation; equal where it is the same images with the same classes."""

    domain: Domain = field(compare=False)
    dataset: str
    parts: tuple[str, ...]
    labels: LabelSpace

    @property
    def adapter(self) -> Adapter:
        assert self.domain.real is not None
        return adapter_for(self.domain, self.domain.real)


def register(
    data_root: Path | str,
    benchmarks: Iterable[str] | None = None,
    label_maps: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Register the real domains of benchmarks and return their names, e.g. `kdbench/cityscapes/val`.

    Sources are registered for training, targets and sources for validation, as the benchmark splits them outside any
    protocol; images and labels keep their own size. benchmarks: names or paths of files; where None, all, without the
    data sets that are not under data_root. label_maps: data set -> name of the table from stored values to classes.
    A name that is registered already is replaced.
    """
    root, maps = Path(data_root), label_maps or {}
    if not root.is_dir():
        raise KdbenchError(f"{root} is not a folder. Give the folder that holds the data sets.")
    asked = load_all(benchmark_names(), load_benchmark)[0] if benchmarks is None else _load(benchmarks)
    splits = _collect(asked.values())
    if benchmarks is None:
        splits = {name: split for name, split in splits.items() if split.adapter.folder(root)}
    if not splits:
        raise KdbenchError(f"no data set of the benchmarks {', '.join(sorted(asked))} is under {root}.")
    scans: dict[str, Scan] = {}
    for name, split in splits.items():
        if split.dataset not in scans:
            scans[split.dataset] = split.adapter.scan(root)
        label_map = maps.get(split.dataset, "")
        samples = RealSet(split.domain.name, scans[split.dataset], split.parts, Native(), label_map)
        register_samples(name, samples, split.labels)
    return tuple(splits)


def register_samples(name: str, samples: DomainSet, labels: LabelSpace) -> None:
    """Register any set of samples, in place of what had the name before; its files are looked up when it is read."""
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog:
            catalog.remove(name)
    _FILES.add(name, samples)
    DatasetCatalog.register(name, partial(_records, name, samples))
    MetadataCatalog.get(name).set(
        stuff_classes=list(labels.classes),
        stuff_colors=[list(colour) for colour in labels.palette],
        ignore_label=IGNORE,
        evaluator_type="sem_seg",
    )


def unregister(name: str) -> None:
    """Remove a set from the catalogs."""
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    _FILES.remove(name)


def _load(names: Iterable[str]) -> dict[str, Benchmark]:
    return {name: load_benchmark(name) for name in ([names] if isinstance(names, str) else names)}


def _collect(benchmarks: Iterable[Benchmark]) -> dict[str, _Split]:
    """Collect every domain's splits by name; benchmarks may share a domain, but not a name for different images."""
    found: dict[str, _Split] = {}
    for benchmark in benchmarks:
        for name, split in _splits(benchmark):
            if found.setdefault(name, split) != split:
                raise KdbenchError(
                    f"two benchmarks call different images or classes '{name}'; the second is '{benchmark.name}'. "
                    "Register one of the benchmarks alone, or rename the domain."
                )
    return found


def _splits(benchmark: Benchmark) -> Iterator[tuple[str, _Split]]:
    wanted = [("train", domain) for domain in benchmark.sources] + [("val", d) for d in benchmark.evaluated()]
    for split, domain in wanted:
        if domain.real is None:
            continue
        parts = domain.real.train if split == "train" else domain.real.val
        if parts:
            yield f"kdbench/{domain.name}/{split}", _Split(domain, domain.real.dataset, parts, benchmark.labels)


def _records(name: str, samples: DomainSet) -> list[dict[str, Any]]:
    """Return one record a sample. Height and width are left to the mapper, which has the image open."""
    return [
        {
            "file_name": f"{PREFIX}{name}/{index}/image",
            "sem_seg_file_name": f"{PREFIX}{name}/{index}/label",
            "image_id": index,
            "sample": _origin(samples, index),
        }
        for index in range(len(samples))
    ]


def _origin(samples: DomainSet, index: int) -> dict[str, str]:
    """Return, for people, the sample's domain and, of a real one, its key and its files on disk."""
    found = {"domain": samples.domain}
    if isinstance(samples, RealSet):
        sample = samples.pairs[index]
        found |= {"key": sample.key, "image": str(sample.image), "label": str(sample.label or "")}
    return found
