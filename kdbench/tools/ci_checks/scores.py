"""No method fell back against an earlier state, paired by seed.

A family of tests is a board: the methods of one protocol, data source, benchmark and pair, corrected by Holm.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from kdbench.errors import KdbenchError
from kdbench.metrics import mean_of
from kdbench.report.frame import read
from kdbench.report.statistics import ENOUGH, judge
from kdbench.tools.ci_checks.result import CheckResult

NAME = "scores"
TOLERANCE = 3.0
"""Points of mIoU that a mean may fall by where too few seeds are shared to tell: as much as another seed can cost."""


def check(results: Path, reference: Path | None, earlier: Path) -> Iterator[CheckResult]:
    """One line, or one for every method that fell back."""
    now, before = _cells(read(results, reference).frame), _cells(read(None, earlier).frame)
    if before.empty:
        raise KdbenchError(f"--against {earlier}: no record lies there. Name a folder of an earlier state's records.")
    both = before.add_suffix("_before").join(now, how="inner").sort_index()
    comparable = both.score.notna() & (both.tested == both.tested_before)
    lost = both[both.score_before.notna() & ~comparable]
    faults = [
        CheckResult(f"{NAME} {board} {method} seed {seed}", "FAIL", _lost(cell), cell.path)
        for (board, method, seed), cell in lost.iterrows()
    ]
    found = differences(both.score[comparable] - both.score_before[comparable])
    faults += [CheckResult(f"{NAME} {name}", "FAIL", fall) for name, row in found.iterrows() if (fall := _fall(row))]
    if found.empty and not faults:
        repair = "Run its cells, or name the folder that holds their records with --results."
        detail = f"no cell of {earlier} is among today's records; nothing was compared. {repair}"
        yield CheckResult(NAME, "FAIL", detail)
    else:
        yield from faults or [_held(found)]


def _cells(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row per board, method and seed: mean mIoU of the targets, what was tested, and whether it failed."""
    rows = {}
    for cell, held in frame[frame["last"]].groupby("cell", sort=False):
        first, targets = held.iloc[0], held[held.domain_role == "target"]
        few = "" if cell.label_fraction == "1" else f"@{cell.label_fraction}"
        board = f"{cell.protocol_id} {cell.data_source} {cell.benchmark}{few} {cell.pair}"
        rows[board, cell.label, cell.seed] = {
            "score": mean_of(targets.miou),
            "tested": (first.classes, tuple(targets.domain), tuple(targets.domain_source)),
            "status": first.status,
            "error": first.error,
            "path": first.path,
        }
    columns = ["score", "tested", "status", "error", "path"]
    index = pd.MultiIndex.from_tuples(rows, names=["board", "method", "seed"]) if rows else None
    return pd.DataFrame(list(rows.values()), index, columns).astype({"score": float})


def _lost(cell: pd.Series) -> str:
    if cell.status == "failed":
        reason = ((cell.error or "").strip().splitlines() or ["no reason recorded"])[0]
        return f"fails, which it did not: {reason}. Repair it and run the cell again."
    return "has other domains or classes than before, or no score. Run the earlier cell under today's benchmark."


def differences(changes: pd.Series) -> pd.DataFrame:
    """Judge changes (by board, method and seed), with p values corrected over the methods of a board."""
    wide = changes.unstack("seed")
    judged = {
        board: judge(held.droplevel("board")).add_prefix(f"{board} ", axis=0) for board, held in wide.groupby("board")
    }
    return pd.concat(judged.values()) if judged else judge(pd.DataFrame())


def _fall(found: pd.Series) -> str:
    fell = f"fell by {-found.value:.2f} points over {_seeds(len(found.seeds))}"
    repair = "Repair the method; if the fall is meant, compare with today's records from now on."
    if found.verdict == "worse":
        return f"{fell} (p {found.p:.3f}, corrected). {repair}"
    if found.verdict == "not resolvable" and found.value < -TOLERANCE:
        return f"{fell}: not resolvable below {ENOUGH}, but more than the {TOLERANCE} points allowed. {repair}"
    return ""


def _held(found: pd.DataFrame) -> CheckResult:
    lowest = found.value.idxmin()
    few = int((found.verdict == "not resolvable").sum())
    said = [f"{len(found)} rows, lowest change {found.value[lowest]:+z.2f} ({lowest})"]
    if few < len(found):
        said.append(f"{len(found) - few} not found worse over {ENOUGH} seeds and more")
    if few:
        said.append(f"{few} not resolvable below {ENOUGH} shared seeds, fallen by at most {TOLERANCE} points")
    return CheckResult(NAME, "ok", "; ".join(said))


def _seeds(count: int) -> str:
    return f"{count} shared seed{'s' * (count > 1)}"
