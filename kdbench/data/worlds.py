"""Which world serves a domain: the built-in one, or the data sets under --data-root."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kdbench.benchmark import Benchmark, Domain
from kdbench.data import synthetic
from kdbench.data.domainset import DomainSet
from kdbench.data.real import ADAPTERS, RealSet
from kdbench.data.rendered import RenderedSet
from kdbench.errors import KdbenchError, unknown
from kdbench.protocol import Protocol


@dataclass(frozen=True)
class Worlds:
    """Opens domains as sets of samples; data_root None means the built-in world."""

    protocol: Protocol
    renders: Path
    data_root: Path | None = None
    _opened: dict[tuple[Domain, str], DomainSet] = field(default_factory=dict, repr=False)

    def check(self, benchmark: Benchmark) -> None:
        """Raises where a domain of the benchmark cannot be had, before anything is trained; opens every set once."""
        for domain in benchmark.evaluated():
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
        opened = [
            self.proxy(benchmark.proxy),
            *map(self.train, benchmark.sources),
            *map(self.val, benchmark.evaluated()),
        ]
        for samples in opened:
            len(samples)

    def world_of(self, benchmark: Benchmark) -> str:
        """The world of a benchmark's labelled domains."""
        return synthetic.WORLD if self.data_root is None else "real"

    def train(self, domain: Domain) -> DomainSet:
        """The domain's training split."""
        return self._open(domain, "train", self.protocol.train_images)

    def proxy(self, domain: Domain) -> DomainSet:
        """The proxy's images."""
        return self._open(domain, "train", self.protocol.proxy_images)

    def val(self, domain: Domain) -> DomainSet:
        """The domain's validation split."""
        return self._open(domain, "val", self.protocol.val_images)

    def _open(self, domain: Domain, split: str, count: int) -> DomainSet:
        if (domain, split) not in self._opened:
            self._opened[domain, split] = self._make(domain, split, count)
        return self._opened[domain, split]

    def _make(self, domain: Domain, split: str, count: int) -> DomainSet:
        if self.data_root is not None and domain.real is not None:
            parts = domain.real.train if split == "train" else domain.real.val
            if domain.real.dataset not in ADAPTERS:
                raise unknown(f"data set (of domain '{domain.name}')", domain.real.dataset, ADAPTERS)
            return RealSet(domain.name, ADAPTERS[domain.real.dataset], self.data_root, parts, self.protocol.image_size)
        if domain.synthetic is None:
            raise KdbenchError(f"domain '{domain.name}' is in neither world: add --data-root DIR.")
        size = self.protocol.image_size
        return RenderedSet(domain.name, domain.synthetic, split, count, size, self.renders, domain.adjust)
