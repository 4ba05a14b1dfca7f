"""No method fell back against an earlier state, paired by seed.

A family of tests is a board: the methods of one protocol, world, benchmark and pair, corrected by Holm.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from kdbench.errors import KdbenchError
from kdbench.metrics import domains, mean_of, role_miou
from kdbench.report.comparison import Difference, judged
from kdbench.report.entries import Entry, read
from kdbench.report.old_statistics import ENOUGH
from kdbench.tools.ci_checks.result import NOWHERE, CheckResult

NAME = "scores"
TOLERANCE = 3.0
"""Points of mIoU that a mean may fall by where too few seeds are shared to tell: as much as another seed can cost."""


class Place(NamedTuple):
    """Where methods are compared."""

    protocol_id: str
    data_source: str
    benchmark: str
    label_fraction: str
    pair: str

    def __str__(self) -> str:
        few = "" if self.label_fraction == "1" else f"@{self.label_fraction}"
        return f"{self.protocol_id} {self.data_source} {self.benchmark}{few} {self.pair}"


Methods = Mapping[str, Mapping[int, Entry]]
"""Entries by method and seed."""


def check(results: Path, reference: Path | None, earlier: Path) -> Iterator[CheckResult]:
    """One line, or one for every method that fell back."""
    now, before = _places(read(results, reference).entries), _places(read(NOWHERE, earlier).entries)
    if not before:
        raise KdbenchError(f"--against {earlier}: no record lies there. Name a folder of an earlier state's records.")
    shared = sorted(now.keys() & before.keys())
    faults = [fault for place in shared for fault in _incomparable(place, now[place], before[place])]
    found = {
        f"{place} {method}": difference
        for place in shared
        for method, difference in differences(now[place], before[place]).items()
    }
    faults += [CheckResult(f"{NAME} {row}", "FAIL", fall) for row, each in found.items() if (fall := _fall(each))]
    if not found and not faults:
        repair = "Run its cells, or name the folder that holds their records with --results."
        detail = f"no cell of {earlier} is among today's records; nothing was compared. {repair}"
        yield CheckResult(NAME, "FAIL", detail)
    else:
        yield from faults or [_held(found)]


def _places(entries: list[Entry]) -> dict[Place, dict[str, dict[int, Entry]]]:
    found: dict[Place, dict[str, dict[int, Entry]]] = defaultdict(lambda: defaultdict(dict))
    for entry in entries:
        cell = entry.cell
        place = Place(cell.protocol_id, cell.data_source, cell.benchmark, cell.label_fraction, entry.pair)
        found[place][entry.label][cell.seed] = entry
    return found


def _incomparable(place: Place, now: Methods, before: Methods) -> Iterator[CheckResult]:
    """Cells that had a score and have none, or another measurement's."""
    for method in sorted(now.keys() & before.keys()):
        for seed in sorted(now[method].keys() & before[method].keys()):
            ours, theirs = now[method][seed], before[method][seed]
            if _score(theirs) is not None and (_score(ours) is None or _tested(ours) != _tested(theirs)):
                yield CheckResult(f"{NAME} {place} {method} seed {seed}", "FAIL", _lost(ours), ours.path)


def _lost(entry: Entry) -> str:
    if entry.record.status == "failed":
        reason = ((entry.record.error or "").strip().splitlines() or ["no reason recorded"])[0]
        return f"fails, which it did not: {reason}. Repair it and run the cell again."
    return "has other domains or classes than before, or no score. Run the earlier cell under today's benchmark."


def differences(now: Methods, before: Methods) -> dict[str, Difference]:
    """Now minus before of every method over the seeds that both have, with p values corrected over the methods."""
    return judged({method: _paired(now[method], before[method]) for method in sorted(now.keys() & before.keys())})


def _paired(now: Mapping[int, Entry], before: Mapping[int, Entry]) -> dict[int, float]:
    scores = {seed: (_score(now[seed]), _score(before[seed])) for seed in sorted(now.keys() & before.keys())}
    return {
        seed: ours - theirs
        for seed, (ours, theirs) in scores.items()
        if ours is not None and theirs is not None and _tested(now[seed]) == _tested(before[seed])
    }


def _score(entry: Entry) -> float | None:
    """The mean over the targets in percent."""
    return mean_of([role_miou(entry.record, "target")])


def _tested(entry: Entry) -> tuple[object, ...]:
    return entry.cell.classes, [(domain.domain, domain.data_source) for domain in domains(entry.record, "target")]


def _fall(found: Difference) -> str:
    fell = f"fell by {-found.value:.2f} points over {_seeds(len(found.seeds))}"
    repair = "Repair the method; if the fall is meant, compare with today's records from now on."
    if found.verdict == "worse":
        return f"{fell} (p {found.p:.3f}, corrected). {repair}"
    if found.verdict == "not resolvable" and found.value < -TOLERANCE:
        return f"{fell}: not resolvable below {ENOUGH}, but more than the {TOLERANCE} points allowed. {repair}"
    return ""


def _held(found: Mapping[str, Difference]) -> CheckResult:
    lowest = min(found, key=lambda row: found[row].value)
    few = sum(each.verdict == "not resolvable" for each in found.values())
    said = [f"{len(found)} rows, lowest change {found[lowest].value:+z.2f} ({lowest})"]
    if few < len(found):
        said.append(f"{len(found) - few} not found worse over {ENOUGH} seeds and more")
    if few:
        said.append(f"{few} not resolvable below {ENOUGH} shared seeds, fallen by at most {TOLERANCE} points")
    return CheckResult(NAME, "ok", "; ".join(said))


def _seeds(count: int) -> str:
    return f"{count} shared seed{'s' * (count > 1)}"
