"""Runs pinned cells again from nothing on the CPU: exactly the pin where the environment is the same, else close to it.

Close: no domain's mIoU moves by more than the pinned seeds of the same cell differ on any domain. Adding up in another
order changes much less than another seed does.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kdbench.api import run_command
from kdbench.engine.grid import make_context, recorded_cell, run_grid
from kdbench.errors import KdbenchError
from kdbench.metrics import domain_miou
from kdbench.models.toy import ToyModels
from kdbench.progress import Silent
from kdbench.records import Record, Result, read_record, record_files
from kdbench.spec import RunSpec
from kdbench.tools.ci_checks.result import CheckResult

PROTOCOL = "smoke"
ENOUGH = 3
"""Pinned seeds of a cell whose differences count as what chance does."""
KEYS: dict[str, Any] = {"stages": {"__all__": {"key"}}}
"""Parts of a result that name its code, which may have changed."""
COMPUTED: dict[str, Any] = {
    "domains": {"__all__": {"confusion", "earlier"}},
    "stages": {"__all__": {"key", "losses", "micro_batches", "flops"}},
    "inference_flops": True,
}
"""The same, and what depends on the machine or its libraries; all else of a result is counted."""
CELL_FAILED = "the cell failed"


def check(reference: Path | None) -> Iterator[CheckResult]:
    """Yield one result for every pinned cell: every record of protocol smoke below the folder."""
    pins: dict[object, dict[Path, Record]] = defaultdict(dict)
    for path in record_files(reference) if reference else ():
        record = read_record(path)
        if record.spec.resolved.protocol == PROTOCOL:
            pins[replace(record.spec.resolved.id, seed=0)][path] = record
    if not pins:
        example = "kdbench run --method METHOD --pair TEACHER:STUDENT --benchmark NAME"
        repair = f"{example} --protocol {PROTOCOL} --seed 0,1,2 --device cpu --results {reference or 'DIR'}"
        detail = f"no {PROTOCOL} record under {reference or 'no folder'}; nothing was compared. Pin: {repair}"
        yield CheckResult(PROTOCOL, "FAIL", detail)
    with tempfile.TemporaryDirectory() as folder:
        for seeds in pins.values():
            allowed = tolerance([pin.result for pin in seeds.values()])
            for path, pin in seeds.items():
                yield _check(path, pin, allowed, Path(folder))


def tolerance(seeds: Sequence[Result | None]) -> float | None:
    """Return the largest difference between pinned seeds on any domain, in points of mIoU; None of too few."""
    scores = [[domain_miou(domain) for domain in result.domains] for result in seeds if result]
    if len(scores) < ENOUGH or len({len(each) for each in scores}) > 1:
        return None
    return float(np.nanmax(np.ptp(np.array(scores), axis=0)))


def _check(path: Path, pin: Record, allowed: float | None, folder: Path) -> CheckResult:
    cell = pin.spec.resolved.id
    name = f"{cell.protocol_id} {cell.benchmark} {cell.pair} {cell.label} seed {cell.seed}"
    try:
        status, detail = compare(pin, _rerun(pin, folder), allowed)
    except KdbenchError as error:
        status, detail = "FAIL", str(error)
    if status == "FAIL" and not detail.startswith(CELL_FAILED):
        detail += f" If that is meant, pin again: {_command(path, pin)}"
    return CheckResult(name, status, detail, path)


def compare(pin: Record, fresh: Record, allowed: float | None) -> tuple[Literal["ok", "FAIL"], str]:
    """Return whether a cell's record agrees with its pin, and how. allowed: points of mIoU in another environment."""
    if pin.result is None or fresh.result is None:
        what = "the pin is of a failed cell" if pin.result is None else CELL_FAILED
        return "FAIL", f"{what}: {fresh.error or pin.error}."
    counted = _differing(pin.result, fresh.result, COMPUTED)
    if counted:
        return "FAIL", f"{counted}: not the pin's domains, steps, images, student forwards or parameters."
    computed = _differing(pin.result, fresh.result, KEYS)
    if not computed:
        return "ok", "exactly the pin"
    move = max(
        abs(domain_miou(a) - domain_miou(b)) for a, b in zip(pin.result.domains, fresh.result.domains, strict=True)
    )
    what = f"{computed} differ, mIoU by up to {move:.2f} points"
    if pin.run.host == fresh.run.host and pin.run.versions == fresh.run.versions:
        return "FAIL", f"{what}, in the environment and on the processor of the pin."
    if allowed is None:
        return "FAIL", f"{what}, in another environment; fewer than {ENOUGH} pinned seeds give no tolerance."
    status: Literal["ok", "FAIL"] = "ok" if move <= allowed else "FAIL"
    return status, f"{what}, in another environment (allowed {allowed:.2f}: the range of the pinned seeds)."


def _differing(pin: Result, fresh: Result, left_out: dict[str, Any]) -> str:
    """Name the parts of two results that are not the same. left_out: as pydantic's exclude."""
    ours, theirs = (each.model_dump(mode="json", exclude=left_out) for each in (pin, fresh))
    return " and ".join(part for part in ours if ours[part] != theirs[part])


def _rerun(pin: Record, folder: Path) -> Record:
    """Run the pin's cell once more; the folder's store is shared by the pins and is nobody else's."""
    pinned = pin.spec.resolved
    spec = RunSpec(
        methods=(pinned.method,),
        pairs=(),
        benchmarks=(pinned.benchmark,),
        protocol=PROTOCOL,
        budget=pin.spec.passed.get("budget", "published"),
        device="cpu",
        results=folder / "results",
        store=folder / "store",
    )
    context = make_context(spec, Silent())
    # A pin tells what is computed today, so it trains what is shipped too.
    context = replace(context, store=replace(context.store, shipped=None))
    cell = recorded_cell(pinned, {}, ToyModels())
    today = context.protocol.id, context.data_sources.data_source_of(cell.benchmark)
    if (pinned.protocol_id, pinned.data_source) != today:
        raise KdbenchError(
            f"the pin is of {pinned.protocol_id} in {pinned.data_source}, and today's protocol is {' in '.join(today)}."
        )
    (done,) = run_grid(spec, context, [cell])
    return done.record


def _command(path: Path, pin: Record) -> str:
    """Return the request that makes the pin, with enough seeds for a tolerance."""
    cell, seeds = pin.spec.resolved.id, pin.spec.passed.get("seeds", [])
    command = run_command(pin, seeds if len(seeds) >= ENOUGH else range(ENOUGH))
    return f"{command} --device cpu --results {path.parents[len(cell.path.parts) - 1]}"
