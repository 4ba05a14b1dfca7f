"""Pinned cells, run again from nothing on the CPU: exactly the pin where the environment is the same, else close to it.

Close: no domain's mIoU moves by more than the pinned seeds of the same cell differ on any domain. What adding up in
another order changes is little beside what another seed changes.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.data.subset import parse_fraction
from kdbench.engine.grid import make_context, run_grid
from kdbench.engine.plan import Cell, RunContext
from kdbench.errors import KdbenchError
from kdbench.method import MethodConfig
from kdbench.metrics import domain_miou
from kdbench.models.registry import find_model
from kdbench.plugins import load_benchmark, load_method
from kdbench.progress import Silent
from kdbench.records import Record, Resolved, Result
from kdbench.report.entries import Entry, read
from kdbench.spec import RunSpec, make_config
from kdbench.tools.ci_checks.gate import NOWHERE, Gate, Outcome

PROTOCOL = "smoke"
ENOUGH = 3
"""Pinned seeds of a cell from which on their differences are taken for what chance does."""
CODE: dict[str, Any] = {"stages": {"__all__": {"key"}}}
"""Names the code that ran, which may have changed."""
COMPUTED: dict[str, Any] = {
    "domains": {"__all__": {"confusion", "earlier"}},
    "stages": {"__all__": {"key", "losses", "micro_batches", "flops"}},
    "inference_flops": True,
}
"""The same, and what depends on the machine or its libraries; all else of a result is counted."""


FAILED = "the cell failed"


def gates(reference: Path | None) -> Iterator[Gate]:
    """One line for every pinned cell."""
    entries = read(NOWHERE, reference).entries
    pins: dict[tuple[object, ...], list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.cell.protocol == PROTOCOL:
            pins[entry.place, entry.pair, entry.label].append(entry)
    if not pins:
        example = "kdbench run --method METHOD --pair TEACHER:STUDENT --benchmark NAME"
        repair = f"{example} --protocol {PROTOCOL} --seed 0,1,2 --device cpu --results {reference or 'DIR'}"
        detail = f"no {PROTOCOL} record under {reference or 'no folder'}; nothing was compared. Pin: {repair}"
        yield Gate("smoke", Outcome.FAIL, detail)
        return
    with tempfile.TemporaryDirectory() as folder:
        for seeds in pins.values():
            allowed = tolerance([entry.record.result for entry in seeds])
            for entry in seeds:
                yield _gate(entry, allowed, Path(folder))


def tolerance(seeds: Sequence[Result | None]) -> float | None:
    """The largest difference between the pinned seeds on any domain, in points of mIoU; None of too few."""
    scores = [[domain_miou(domain) for domain in result.domains] for result in seeds if result]
    if len(scores) < ENOUGH or len({len(each) for each in scores}) > 1:
        return None
    return float(np.nanmax(np.ptp(np.array(scores), axis=0)))


def _gate(pin: Entry, allowed: float | None, folder: Path) -> Gate:
    name = f"{pin.cell.protocol_id} {pin.cell.benchmark} {pin.pair} {pin.label} seed {pin.cell.seed}"
    try:
        outcome, detail = compare(pin.record, _rerun(pin.record, folder), allowed)
    except KdbenchError as error:
        outcome, detail = Outcome.FAIL, str(error)
    meant = outcome == Outcome.FAIL and not detail.startswith(FAILED)
    repair = f" If that is meant, pin again: {_command(pin)}" if meant else ""
    return Gate(name, outcome, detail + repair, pin.path)


def compare(pin: Record, fresh: Record, allowed: float | None) -> tuple[Outcome, str]:
    """Whether a cell's record agrees with its pin, and how. allowed: points of mIoU in another environment."""
    if pin.result is None or fresh.result is None:
        what = "the pin is of a failed cell" if pin.result is None else FAILED
        return Outcome.FAIL, f"{what}: {fresh.error or pin.error}."
    counted = _differing(pin.result, fresh.result, COMPUTED)
    if counted:
        return Outcome.FAIL, f"{counted}: not the pin's domains, steps, images, passes or parameters."
    computed = _differing(pin.result, fresh.result, CODE)
    if not computed:
        return Outcome.OK, "exactly the pin"
    move = max(
        abs(domain_miou(a) - domain_miou(b)) for a, b in zip(pin.result.domains, fresh.result.domains, strict=True)
    )
    what = f"{computed} differ, mIoU by up to {move:.2f} points"
    if pin.run.host == fresh.run.host and pin.run.versions == fresh.run.versions:
        return Outcome.FAIL, f"{what}, in the environment and on the processor of the pin."
    if allowed is None:
        return Outcome.FAIL, f"{what}, in another environment; fewer than {ENOUGH} pinned seeds give no tolerance."
    outcome = Outcome.OK if move <= allowed else Outcome.FAIL
    return outcome, f"{what}, in another environment (allowed {allowed:.2f}: the range of the pinned seeds)."


def _differing(pin: Result, fresh: Result, left_out: dict[str, Any]) -> str:
    """The parts of two results that are not the same. left_out: as pydantic's exclude."""
    ours, theirs = (each.model_dump(mode="json", exclude=left_out) for each in (pin, fresh))
    return " and ".join(part for part in ours if ours[part] != theirs[part])


def _rerun(pin: Record, folder: Path) -> Record:
    """The pin's cell once more; the folder's store is shared by the pins and is nobody else's."""
    spec = RunSpec(
        methods=(pin.spec.resolved.method,),
        pairs=(),
        benchmarks=(pin.spec.resolved.benchmark,),
        protocol=PROTOCOL,
        budget=pin.spec.passed.get("budget", "published"),
        device="cpu",
        results=folder / "results",
        store=folder / "store",
    )
    context = make_context(spec, Silent())
    cell = _cell(pin.spec.resolved, context)
    here = (context.protocol.id, context.data_sources.data_source_of(cell.benchmark))
    pinned = (pin.spec.resolved.protocol_id, pin.spec.resolved.data_source)
    if pinned != here:
        raise KdbenchError(f"the pin is of {' in '.join(pinned)}, and today's protocol is {' in '.join(here)}.")
    (done,) = run_grid(spec, context, [cell])
    return done.record


def _cell(pinned: Resolved, context: RunContext) -> Cell:
    plugin = load_method(pinned.method) if pinned.student else None
    return Cell(
        protocol=context.protocol,
        benchmark=load_benchmark(pinned.benchmark),
        teacher=find_model(pinned.teacher),
        student=find_model(pinned.student) if pinned.student else None,
        method=plugin,
        config=make_config(plugin, pinned.options) if plugin else MethodConfig(),
        variant=pinned.variant,
        seed=pinned.seed,
        labels=parse_fraction(pinned.label_fraction),
    )


def _command(pin: Entry) -> str:
    """The request that made the pin, with enough seeds for a tolerance."""
    passed = pin.record.spec.passed
    seeds = passed.get("seeds", [])
    asked = {
        "method": passed.get("methods", [pin.cell.method]),
        "pair": passed.get("pairs", [pin.pair]),
        "benchmark": passed.get("benchmarks", [pin.cell.benchmark]),
        "seed": seeds if len(seeds) >= ENOUGH else range(ENOUGH),
    }
    words = [f"--{option} {','.join(map(str, values))}" for option, values in asked.items()]
    words += [f"--budget {passed['budget']}"] if "budget" in passed else []
    words += [f"--label-fraction {pin.cell.label_fraction}"] if pin.cell.label_fraction != "1" else []
    words += [f"--set {setting}" for setting in passed.get("settings", [])]
    words += [f"--as {passed['label']}"] if passed.get("label") else []
    words += [] if passed.get("references", True) else ["--no-references"]
    root = pin.path.parents[len(pin.record.path().parts) - 1] if pin.path else Path("DIR")
    return f"kdbench run {' '.join(words)} --protocol {PROTOCOL} --device cpu --results {root}"
