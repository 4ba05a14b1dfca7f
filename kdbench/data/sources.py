"""Where a domain's images come from: the built-in world, or the data sets under --data-root."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from kdbench import synthetic
from kdbench.benchmark import Benchmark, Domain, ProtocolOverrides, RealData
from kdbench.data.datasets import ADAPTERS, Adapter
from kdbench.data.datasets.adapter import Scan
from kdbench.data.datasets.patterns import adapter_of
from kdbench.data.domainset import DomainSet
from kdbench.data.realset import RealSet
from kdbench.data.rendered import RenderedSet
from kdbench.data.sizing import Cover, Evaluated, Native, Sizing
from kdbench.errors import KdbenchError, unknown
from kdbench.protocol import Protocol

Split = Literal["train", "val"]


@dataclass(frozen=True)
class DataSources:
    """Opens domains as sets of samples; data_root None means the built-in world."""

    protocol: Protocol
    renders: Path
    data_root: Path | None = None
    _scans: dict[str, Scan] = field(default_factory=dict, repr=False)
    _opened: dict[tuple[Domain, str, int], DomainSet] = field(default_factory=dict, repr=False)

    def check(self, benchmark: Benchmark) -> None:
        """Raise where a domain of the benchmark cannot be had, before anything is trained; open every set once."""
        for domain in self.evaluated(benchmark):
            self._check_domain(benchmark, domain)
        for samples in (*map(self.train, benchmark.sources), *map(self.val, self.evaluated(benchmark))):
            len(samples)

    def _check_domain(self, benchmark: Benchmark, domain: Domain) -> None:
        """Raise where a domain is not there, or has other classes, which would be scored as the benchmark's own."""
        ours = benchmark.labels.classes
        if self.data_root is None:
            if domain.synthetic is None:
                raise KdbenchError(
                    f"benchmark '{benchmark.name}' needs real images: domain '{domain.name}' is not in the built-in "
                    "world. Add --data-root DIR, the folder that holds the data set."
                )
            synthetic.check_adjustment(domain.synthetic, domain.adjust)
            # The built-in world knows its classes by their number.
            count = synthetic.DOMAINS[domain.synthetic].classes
            fits = count == len(ours)
        else:
            if domain.real is None:
                raise KdbenchError(
                    f"benchmark '{benchmark.name}' cannot run on real images yet: no data set is declared for domain "
                    f"'{domain.name}'. Leave --data-root out to run it in the built-in world. Data sets that are read: "
                    f"{', '.join(sorted(ADAPTERS))}."
                )
            space = adapter_for(domain, domain.real).classes
            count, fits = (len(space), space.classes == ours) if space else (0, False)
        if not fits:
            raise KdbenchError(
                f"benchmark '{benchmark.name}' is scored on the {len(ours)} classes of '{benchmark.labels.name}', and "
                f"domain '{domain.name}' is labelled with {count} of its own. Choose domains of one label space."
            )

    def evaluated(self, benchmark: Benchmark) -> list[Domain]:
        """Return what is scored: the targets, and the sources that have images left to test on."""
        real = self.data_root is not None
        tested = [d for d in benchmark.sources if not (real and d.real) or self._overridden(d.real).val]
        return [*benchmark.targets, *tested]

    def states_sizes(self, benchmark: Benchmark) -> bool:
        """Return whether every scored data set states its size, where the protocol has no size for all."""
        real = [domain.real for domain in self.evaluated(benchmark) if domain.real]
        return not self.protocol.native or all(self._overridden(data).size is not None for data in real)

    def data_source_of(self, benchmark: Benchmark) -> str:
        """Return the data source of a benchmark's labelled domains."""
        return "real" if self.data_root is not None else self.val(benchmark.targets[0]).data_source

    def train(self, domain: Domain) -> DomainSet:
        """Open the domain's training split."""
        return self._open(domain, "train", self.protocol.train_images)

    def proxy(self, domain: Domain) -> DomainSet:
        """Open the proxy's images; the built-in ones where its data set is not there and the protocol allows it."""
        root, replaceable = self.data_root, not self.protocol.native
        if root and domain.real and replaceable and not adapter_for(domain, domain.real).folder(root):
            domain = replace(domain, real=None)
        return self._open(domain, "train", self.protocol.proxy_images)

    def val(self, domain: Domain) -> DomainSet:
        """Open the domain's validation split."""
        return self._open(domain, "val", self.protocol.val_images)

    def _open(self, domain: Domain, split: Split, count: int) -> DomainSet:
        known = (domain, split, count)
        if known not in self._opened:
            if self.data_root is not None and domain.real is not None:
                self._opened[known] = self._real(domain, domain.real, self.data_root, split, count)
            elif domain.synthetic is not None:
                size = self.protocol.image_size
                drawn = RenderedSet(domain.name, domain.synthetic, split, count, size, self.renders, domain.adjust)
                self._opened[known] = drawn
            else:
                raise KdbenchError(f"domain '{domain.name}' is in no data source: add --data-root DIR.")
        return self._opened[known]

    def _real(self, domain: Domain, data: RealData, root: Path, split: Split, count: int) -> RealSet:
        """Open parts of a data set: all pairs, or for training under protocols of small images at most `count`."""
        protocol, adapter, data_here = self.protocol, adapter_for(domain, data), self._overridden(data)
        sizing = self._sizing(domain, data_here, split)
        parts = (data_here.train if split == "train" else data_here.val) or ()
        most = count if split == "train" and not protocol.native else None
        if adapter.name not in self._scans:
            self._scans[adapter.name] = adapter.scan(root)
        label_map = protocol.label_maps.get(data.dataset, "")
        return RealSet(domain.name, self._scans[adapter.name], parts, sizing, label_map, most)

    def _sizing(self, domain: Domain, data: ProtocolOverrides, split: Split) -> Sizing:
        if split == "val" and data.size is not None:
            return Evaluated(**asdict(data.size))
        if not self.protocol.native:
            return Cover(self.protocol.image_size)
        if split == "train":
            return Native()
        raise KdbenchError(
            f"domain '{domain.name}' does not say at what size it is evaluated under protocol '{self.protocol.name}': "
            "add it to the benchmark, RealData(..., overrides={...})."
        )

    def _overridden(self, data: RealData) -> ProtocolOverrides:
        """Return a data set's parts and size under the protocol."""
        return data.under_protocol(self.protocol.overrides_of or self.protocol.name)


def adapter_for(domain: Domain, data: RealData) -> Adapter:
    """Return what reads a domain's data set: its adapter, or one of a user's own patterns."""
    if data.patterns:
        return adapter_of(data.dataset, data.patterns, (*data.train, *data.val))
    if data.dataset not in ADAPTERS:
        raise unknown("data set", data.dataset, ADAPTERS, where=f"of domain '{domain.name}'")
    return ADAPTERS[data.dataset]
