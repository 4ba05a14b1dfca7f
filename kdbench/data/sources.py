"""Which world serves a domain: the built-in one, or the data sets under --data-root."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from kdbench import synthetic
from kdbench.benchmark import Benchmark, Domain, ProtocolOverrides, RealData
from kdbench.data.datasets import ADAPTERS, Adapter, RealSet
from kdbench.data.datasets.adapter import Scan
from kdbench.data.domainset import DomainSet
from kdbench.data.rendered import RenderedSet
from kdbench.data.sizing import Cover, Evaluated, Native, Sizing
from kdbench.errors import KdbenchError, unknown
from kdbench.protocol import Protocol


@dataclass(frozen=True)
class DataSources:
    """Opens domains as sets of samples; data_root None means the built-in world."""

    protocol: Protocol
    renders: Path
    data_root: Path | None = None
    _scans: dict[str, Scan] = field(default_factory=dict, repr=False)
    _opened: dict[tuple[Domain, str, int], DomainSet] = field(default_factory=dict, repr=False)

    def check(self, benchmark: Benchmark) -> None:
        """Raises where a domain of the benchmark cannot be had, before anything is trained; opens every set once."""
        for domain in self.evaluated(benchmark):
            if self.data_root is None and domain.synthetic is None:
                raise KdbenchError(
                    f"benchmark '{benchmark.name}' needs real images: domain '{domain.name}' is not in the built-in "
                    "world. Add --data-root DIR, the folder that holds the data set."
                )
            if self.data_root is not None and domain.real is None:
                raise KdbenchError(
                    f"benchmark '{benchmark.name}' cannot run on real images yet: no data set is declared for domain "
                    f"'{domain.name}'. Leave --data-root out to run it in the built-in world. Data sets that are read: "
                    f"{', '.join(sorted(ADAPTERS))}."
                )
            if self.data_root is None and domain.synthetic is not None:
                synthetic.check_adjustment(domain.synthetic, domain.adjust)
            self._check_classes(benchmark, domain)
        for samples in (*map(self.train, benchmark.sources), *map(self.val, self.evaluated(benchmark))):
            len(samples)

    def _check_classes(self, benchmark: Benchmark, domain: Domain) -> None:
        """Raises where a domain is labelled with other classes, which would be scored as the benchmark's own."""
        ours = benchmark.labels.classes
        if self.data_root is not None and domain.real is not None:
            space = _adapter(domain, domain.real).classes
            count, fits = (len(space.classes), space.classes == ours) if space is not None else (0, False)
        else:
            # The built-in world knows its classes by their number.
            count = synthetic.DOMAINS[domain.synthetic].classes if domain.synthetic else 0
            fits = count == len(ours)
        if not fits:
            raise KdbenchError(
                f"benchmark '{benchmark.name}' is scored on the {len(ours)} classes of '{benchmark.labels.name}', and "
                f"domain '{domain.name}' is labelled with {count} of its own. Choose domains of one label space."
            )

    def evaluated(self, benchmark: Benchmark) -> list[Domain]:
        """What is scored: the targets, and the sources that have images left to test on."""
        real = self.data_root is not None
        return [
            *benchmark.targets,
            *(d for d in benchmark.sources if not (real and d.real) or self._under_protocol(d.real).val),
        ]

    def states_sizes(self, benchmark: Benchmark) -> bool:
        """Whether every data set that is scored says at what size, where the protocol has no size for all."""
        real = [domain.real for domain in self.evaluated(benchmark) if domain.real]
        return not self.protocol.native or all(self._under_protocol(data).size is not None for data in real)

    def data_source_of(self, benchmark: Benchmark) -> str:
        """The world of a benchmark's labelled domains."""
        return "real" if self.data_root is not None else self.val(benchmark.targets[0]).data_source

    def train(self, domain: Domain) -> DomainSet:
        """The domain's training split."""
        return self._open(domain, "train", self.protocol.train_images)

    def proxy(self, domain: Domain) -> DomainSet:
        """The proxy's images; the built-in ones where its data set is not there and the protocol is not native."""
        if self.data_root is not None and domain.real is not None and not self.protocol.native:
            adapter = _adapter(domain, domain.real)
            if not adapter.is_under(self.data_root):
                return self._open(replace(domain, real=None), "train", self.protocol.proxy_images)
        return self._open(domain, "train", self.protocol.proxy_images)

    def val(self, domain: Domain) -> DomainSet:
        """The domain's validation split."""
        return self._open(domain, "val", self.protocol.val_images)

    def _open(self, domain: Domain, split: Literal["train", "val"], count: int) -> DomainSet:
        if (domain, split, count) not in self._opened:
            self._opened[domain, split, count] = self._make(domain, split, count)
        return self._opened[domain, split, count]

    def _make(self, domain: Domain, split: Literal["train", "val"], count: int) -> DomainSet:
        size = self.protocol.image_size
        if self.data_root is not None and domain.real is not None:
            return self._real(domain, domain.real, self.data_root, split, count)
        if domain.synthetic is None:
            raise KdbenchError(f"domain '{domain.name}' is in neither world: add --data-root DIR.")
        return RenderedSet(domain.name, domain.synthetic, split, count, size, self.renders, domain.adjust)

    def _under_protocol(self, data: RealData) -> ProtocolOverrides:
        return data.under_protocol(self.protocol.overrides_of or self.protocol.name)

    def _real(self, domain: Domain, data: RealData, root: Path, split: Literal["train", "val"], count: int) -> RealSet:
        protocol, adapter = self.protocol, _adapter(domain, data)
        under_protocol = self._under_protocol(data)
        sizing: Sizing = Cover(protocol.image_size)
        if split == "train" and protocol.native:
            sizing = Native()
        elif split == "val" and under_protocol.size is not None:
            sizing = Evaluated(under_protocol.size)
        elif split == "val" and protocol.native:
            raise KdbenchError(
                f"domain '{domain.name}' does not say at what size it is evaluated under protocol '{protocol.name}': "
                "add it to the benchmark, RealData(..., under={...})."
            )
        parts, most = (
            (under_protocol.train, None if protocol.native else count)
            if split == "train"
            else (under_protocol.val, None)
        )
        label_map = protocol.label_maps.get(data.dataset, "")
        if adapter.name not in self._scans:
            self._scans[adapter.name] = adapter.scan(root)
        return RealSet(domain.name, self._scans[adapter.name], parts or (), sizing, label_map, most)


def _adapter(domain: Domain, data: RealData) -> Adapter:
    if data.dataset not in ADAPTERS:
        raise unknown(f"data set (of domain '{domain.name}')", data.dataset, ADAPTERS)
    return ADAPTERS[data.dataset]
