"""Domains are opened once each, at the count that their place in a benchmark asks for."""

from __future__ import annotations

from pathlib import Path

from kdbench.data.worlds import Worlds
from kdbench.plugins import load_benchmark
from kdbench.protocol import MINI


def test_a_domain_that_is_a_source_and_a_proxy_has_the_images_of_each(tmp_path: Path) -> None:
    (domain,) = load_benchmark("g2c").sources
    for first, second in (("train", "proxy"), ("proxy", "train")):
        worlds = Worlds(MINI, tmp_path)
        counts = {name: len(getattr(worlds, name)(domain)) for name in (first, second)}
        assert counts == {"train": MINI.train_images, "proxy": MINI.proxy_images}
    assert worlds.train(domain) is worlds.train(domain)
