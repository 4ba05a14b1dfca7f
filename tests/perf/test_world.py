"""How fast the built-in world draws, on one core. No test asserts a time.

    python -m pytest tests/perf/test_world.py -m slow -s

Aim: at least 300 images a second at the size of `mini` in every domain.
"""

from __future__ import annotations

import itertools
import time

import pytest

from kdbench.protocol import MINI
from kdbench.synthetic import DOMAINS, draw

pytestmark = pytest.mark.slow
IMAGES = 60


@pytest.mark.parametrize("domain", DOMAINS)
def test_images_a_second(benchmark, domain: str) -> None:
    draw(domain, "train", 0, MINI.image_size)
    indices = itertools.count(1)

    def some() -> None:
        for _ in range(IMAGES):
            draw(domain, "train", next(indices), MINI.image_size)

    started = time.process_time()
    benchmark.pedantic(some, rounds=2)
    rate = 2 * IMAGES / (time.process_time() - started)
    benchmark.extra_info["images a second of processor time"] = round(rate)
    print(f"\n{domain}: {rate:.0f} images a second of processor time")
