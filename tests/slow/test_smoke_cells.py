"""Every method's smoke cell, behind a store that holds what methods share: the images and the teacher's decoder.

    python -m pytest tests/slow/test_smoke_cells.py -m slow -s

Prints a markdown table of seconds; no test asserts a time.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from kdbench.engine.grid import Done
from kdbench.plugins import load_method, method_names

pytestmark = pytest.mark.slow
PAIRS = ("dinov2-b:deit-s",)


def row(done: Done) -> dict[str, object]:
    """A cell's method, which of its stages were there, and its seconds from start to record."""
    record = done.record
    return {"method": record.spec.resolved.method, "cached": ", ".join(record.run.cached), "s": record.run.seconds}


def test_every_methods_smoke_cell_is_done(run_cells: Callable[..., list[Done]], tmp_path: Path) -> None:
    methods = tuple(name for name in method_names() if not load_method(name).missing)
    store = tmp_path / "store"
    run_cells(methods=("baseline",), pairs=PAIRS, store=store, references=True)
    cells = run_cells(methods=methods, pairs=PAIRS, store=store, results=tmp_path / "warm")
    print("\n" + pd.DataFrame(map(row, cells)).sort_values("s").to_markdown(index=False, floatfmt=".2f"))
    assert {done.record.spec.resolved.method: done.record.error for done in cells} == dict.fromkeys(methods)
    assert not any(done.cached for done in cells)
