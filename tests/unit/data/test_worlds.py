"""Domains are opened once each, at the count that their place in a benchmark asks for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kdbench.data.sources import DataSources
from kdbench.errors import KdbenchError
from kdbench.plugins import load_benchmark
from kdbench.protocol import MINI


def test_a_domain_with_other_classes_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    streets, camvid = load_benchmark("g2c"), load_benchmark("camvid")
    towns = replace(streets, labels=load_benchmark("p2r").labels)
    with pytest.raises(
        KdbenchError, match=r"scored on the 6 classes of .*domain 'cityscapes' is labelled with 19 of its"
    ):
        DataSources(MINI, tmp_path).check(towns)
    mixed = replace(camvid, labels=streets.labels)
    with pytest.raises(KdbenchError, match=r"scored on the 19 classes of .* is labelled with 11 of its own"):
        DataSources(MINI, tmp_path, tmp_path).check(mixed)


def test_a_domain_that_is_a_source_and_a_proxy_has_the_images_of_each(tmp_path: Path) -> None:
    (domain,) = load_benchmark("g2c").sources
    for first, second in (("train", "proxy"), ("proxy", "train")):
        data_sources = DataSources(MINI, tmp_path)
        counts = {name: len(getattr(data_sources, name)(domain)) for name in (first, second)}
        assert counts == {"train": MINI.train_images, "proxy": MINI.proxy_images}
    assert data_sources.train(domain) is data_sources.train(domain)
