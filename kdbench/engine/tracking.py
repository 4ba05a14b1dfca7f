"""Tells what a cell does while it runs: JSON lines beside its record, and their numbers to trackers."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from lightning.fabric.loggers import Logger, TensorBoardLogger
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

from kdbench.errors import KdbenchError, unknown
from kdbench.metrics import mious, role_miou, snapshots
from kdbench.names import domain_name, model_name
from kdbench.progress import Progress
from kdbench.records import DomainResult, Record, Resolved
from kdbench.spec import split_list

SUFFIX = ".log.jsonl"
PROJECT = "kdbench"
DEFAULT: Final = "tensorboard"
NONE = "none"
Event = dict[str, Any]


class WandbRun(WandbLogger):  # type: ignore[misc]
    """W&B's logger, which would leave its run open for whoever logs next in the process."""

    def finalize(self, status: str) -> None:
        """End the run."""
        self.experiment.finish(exit_code=int(status != "success"))


def logdir(results: Path) -> Path:
    """Return the folder of TensorBoard's files below the results."""
    return results / DEFAULT


TRACKERS: dict[str, Callable[[Path, Path, str, int | None], Logger]] = {
    DEFAULT: lambda results, cell, name, purge_step: TensorBoardLogger(
        logdir(results), "", str(cell), default_hp_metric=False, purge_step=purge_step, flush_secs=10
    ),
    "wandb": lambda results, cell, name, purge_step: WandbRun(project=PROJECT, name=name, save_dir=results),
    "mlflow": lambda results, cell, name, purge_step: MLFlowLogger(
        PROJECT, name, os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{results.resolve() / 'mlflow.db'}")
    ),
}
"""By name, which is also that of the package that it needs. Arguments: the results folder, the record's path below it
(no suffix), the cell's name, and the step from which a new run hides what an earlier one wrote."""


def find_trackers(text: str | None) -> tuple[str, ...]:
    """Return the trackers that a comma-separated list names; for None the default one, if it is installed.

    Raises KdbenchError where a name is unknown or its package is not installed.
    """
    if text is None:
        return (DEFAULT,) if find_spec(DEFAULT) else ()
    names = split_list(text)
    if names == (NONE,):
        return ()
    for name in names:
        if name == NONE:
            raise KdbenchError(f"--watch {text}: '{NONE}' stands alone. Leave it out, or the others.")
        if name not in TRACKERS:
            raise unknown("tracker", name, [*TRACKERS, NONE], where="in --watch")
        if not find_spec(name):
            raise KdbenchError(
                f"--watch {name}: the package {name} is not installed. Install it: pip install {name}; or leave it out."
            )
    return names


class EventLog:
    """Writes a run's events, one cell after the other.

    A file or a tracker that fails is named once and left out from then on; no training ends for it.
    """

    def __init__(
        self,
        results: Path | None = None,
        trackers: Sequence[str] = (),
        fresh: bool = False,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        """results: the records' folder; without one nothing is written. fresh: every cell's file begins anew."""
        self._results, self._trackers, self._fresh, self._note = results, trackers, fresh, note
        self._path: Path | None = None
        self._loggers: dict[str, Logger] = {}
        self._failed: set[str] = set()

    def open(self, cell: Resolved, started: str, revision: str) -> None:
        """Begin a cell: append to its file, or begin that anew where another key stands in it."""
        if self._results is None:
            return
        place, (header, title) = cell.id.path.with_suffix(""), _describe(cell)
        self._path = self._results / f"{place}{SUFFIX}"
        anew = self._fresh or _key_in(self._path) != cell.key
        self._attempt(str(self._path), partial(_prepare, self._path, anew))
        for name in self._trackers:
            self._attempt(name, partial(self._open_tracker, name, place, title, header, 0 if anew else None))
        self.write({"event": "cell", **header, "started": started, "revision": revision})

    def stage(self, name: str, before: int, shown: Progress) -> StageProgress:
        """Return a listener for a stage's training. before: steps of all earlier stages."""
        return StageProgress(self, name, before, shown)

    def validation(self, result: DomainResult, stage: str, steps: Sequence[int], before: int) -> None:
        """Tell a domain's mIoU in percent at every snapshot of the last stage, taken after these steps of it."""
        for step, value in zip(steps, mious(snapshots(result)), strict=True):
            self.write({
                "event": "validation", "stage": stage, "step": step, "overall": before + step, "role": result.role,
                "domain": domain_name(result.domain, result.data_source), "miou": _number(value),
            })  # fmt: skip

    def finish(self, record: Record) -> None:
        """Tell how a cell ended: the mean mIoU of its targets in percent, or its error."""
        if self._path is None:
            self.open(record.spec.resolved, record.run.started, record.run.revision)
        if record.status == "done":
            ending: Event = {"miou": _number(role_miou(record, "target"))}
        else:
            ending = {"error": record.error} if record.error else {}
        self.write({"event": record.status, **ending, "seconds": record.run.seconds})
        self.close("failed" if record.status == "failed" else "success")

    def close(self, status: str = "failed") -> None:
        """End the open cell in all trackers."""
        for name, logger in self._loggers.items():
            self._attempt(name, partial(logger.finalize, status))
        self._path, self._loggers = None, {}

    def write(self, event: Event) -> None:
        """Append a line to the open cell's file, and send its numbers to the trackers."""
        if self._path is None:
            return
        self._attempt(str(self._path), partial(_append, self._path, event))
        if metrics := _metrics(event):
            for name, logger in self._loggers.items():
                self._attempt(name, partial(logger.log_metrics, metrics, event["overall"]))

    def _open_tracker(self, name: str, place: Path, title: str, header: Event, purge_step: int | None) -> None:
        assert self._results is not None
        self._loggers[name] = TRACKERS[name](self._results, place, title, purge_step)
        self._loggers[name].log_hyperparams(header)

    def _attempt(self, name: str, action: Callable[[], object]) -> None:
        if name in self._failed:
            return
        try:
            action()
        except Exception as error:  # neither a full disk nor a server that is gone ends hours of training
            self._failed.add(name)
            self._note(f"{name} failed and is left out from here on: {type(error).__name__}: {error}")


class StageProgress(Progress):
    """Shows a stage's progress and writes it to the event log."""

    def __init__(self, event_log: EventLog, stage: str, before: int, shown: Progress) -> None:
        self._event_log, self._stage, self._before, self._shown = event_log, stage, before, shown
        self._done, self._total, self._began = 0, 0, 0.0

    def begin(self, what: str, total: int) -> None:
        """The stage begins, or goes on."""
        self._shown.begin(what, total)
        self._total, self._began = total, time.perf_counter()
        self._event_log.write({"event": "begin", "stage": self._stage, "steps": total, "overall": self._before})

    def advance(self, done: int, losses: Mapping[str, float]) -> None:
        """So many steps are done; the latest losses."""
        self._shown.advance(done, losses)
        self._done = done
        self._event_log.write({
            "event": "losses", "stage": self._stage, "step": done, "overall": self._before + done,
            "seconds": self._seconds(), "losses": dict(losses),
        })  # fmt: skip

    def end(self) -> None:
        """The stage is over, done or not."""
        self._shown.end()
        if self._done == self._total:
            self._event_log.write({"event": "end", "stage": self._stage, "seconds": self._seconds()})

    def note(self, text: str) -> None:
        """Show a note."""
        self._shown.note(text)

    def _seconds(self) -> float:
        return round(time.perf_counter() - self._began, 2)


def _key_in(path: Path) -> str | None:
    """Return the key that the first line of an event log gives; None where there is none."""
    try:
        with path.open(encoding="utf-8") as file:
            key: str | None = json.loads(file.readline()).get("key")
            return key
    except (OSError, ValueError, AttributeError):
        return None


def _prepare(path: Path, anew: bool) -> None:
    """Make the file; drop what it holds, or only a line that a killed run or a full disk left unfinished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = b"" if anew else path.read_bytes()
    with path.open("ab") as file:
        file.truncate(lines.rfind(b"\n") + 1)


def _append(path: Path, event: Event) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")


def _number(value: float) -> float | None:
    """JSON has no nan."""
    return float(value) if math.isfinite(value) else None


def _describe(cell: Resolved) -> tuple[Event, str]:
    """Return what a cell is, and its title in a tracker."""
    teacher = model_name(cell.teacher, cell.model_set)
    student = model_name(cell.student, cell.model_set) if cell.student else None
    header = {**vars(cell.id), "teacher": teacher, "student": student, "key": cell.key}
    pair = f"{teacher} -> {student}" if student else teacher
    return header, f"{cell.benchmark} · {cell.id.label} · {pair} · seed {cell.seed}"


def _metrics(event: Event) -> dict[str, float]:
    """Return an event's numbers as trackers name them."""
    if event["event"] == "losses":
        return {f"{event['stage']}/{term}": value for term, value in event["losses"].items()}
    if event["event"] == "validation" and event["miou"] is not None:
        return {f"validation/{event['domain']}": event["miou"]}
    return {}
