"""What OMP_WAIT_POLICY=PASSIVE costs on a quiet machine and gives on a loaded one. No test asserts a time.

    python -m pytest tests/perf/test_wait_policy.py -m slow -s

Training steps of a toy DeiT-S in processes of their own, with torch's default and with PASSIVE in turn; then the same
beside one busy process a core.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator

import pandas as pd
import pytest

pytestmark = pytest.mark.slow
ROUNDS = 3
STEPS = """
import time, torch  # torch first, so that it finds the variable as the test has set it
from kdbench.models.backbones import build_toy
from kdbench.models.registry import MODELS

network = build_toy(MODELS["deit-s"]).train()
optimizer = torch.optim.AdamW(network.parameters(), fused=True)
images, seconds = torch.rand(16, 3, 64, 128), []
while len(seconds) < 3 or len(seconds) < 40 and sum(seconds) < 5:
    began = time.perf_counter()
    network(images).final.square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    seconds.append(time.perf_counter() - began)
print(1000 * sorted(seconds[1:])[len(seconds[1:]) // 2])
"""


def step_time(policy: str) -> float:
    """Milliseconds of a median training step under a policy; "" is torch's default."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-W", "ignore", "-c", STEPS]
    environment |= {"OMP_WAIT_POLICY": policy} if policy else {}
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep so many cores busy."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_a_training_step_under_both_wait_policies() -> None:
    cores, rows = len(os.sched_getaffinity(0)), []
    for load in (0, cores):
        with busy(load):
            pairs = [(step_time(""), step_time("PASSIVE")) for _ in range(ROUNDS)]
        default, passive = map(statistics.median, zip(*pairs, strict=True))
        ratio = statistics.median(ours / theirs for theirs, ours in pairs)
        rows.append({"busy processes": load, "default, ms": default, "PASSIVE, ms": passive, "ratio": ratio})
    print(f"\n{cores} cores\n{pd.DataFrame(rows).to_markdown(index=False, floatfmt='.3g')}")
