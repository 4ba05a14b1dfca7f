"""What one cell tells while it runs: JSON lines beside its record, and the same numbers to trackers."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdbench.engine.tracking import Trackers
from kdbench.errors import KdbenchError
from kdbench.files import write_atomically
from kdbench.metrics import mious, role_miou, snapshots
from kdbench.names import domain_name, model_name
from kdbench.progress import Progress
from kdbench.records import DomainResult, Record, Resolved

SUFFIX = ".log.jsonl"
Line = dict[str, Any]


class EventLog:
    """One cell's lines, from its header to how it ended; nothing is written before `open`.

    The lines of an earlier run of the same cell hold as far as this run agrees with them, so that one that was killed
    is continued: they are passed over, and dropped from where this run has something else to say.
    """

    def __init__(
        self,
        results: Path | None = None,
        trackers: Trackers | None = None,
        fresh: bool = False,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        """results: the folder of the records; without one nothing is written. fresh: earlier lines do not count. note:
        hears that no more lines can be written, which stops no training."""
        self._results, self._trackers, self._fresh, self._note = results, trackers, fresh, note
        self._path: Path | None = None
        self._lines: list[Line] = []
        self._held = 0
        self._appends = False
        self._broken = False

    def open(self, cell: Resolved, started: str, revision: str) -> None:
        """The header. started: the time in ISO 8601."""
        if self._results is None:
            return
        place = cell.id.path
        self._path = (self._results / place).with_suffix(SUFFIX)
        self._lines = [] if self._fresh else read_lines(self._path)
        header = _header(cell)
        if self._trackers is not None:
            self._trackers.open(place.with_suffix(""), _name(header), header)
        if not self._pass_over(lambda line: line["event"] == "cell" and header.items() <= line.items(), most=1):
            self.write({"event": "cell", **header, "started": started, "revision": revision})

    def stage(self, name: str, before: int, shown: Progress) -> StageLog:
        """A listener for the training of a stage that begins after so many steps of earlier stages."""
        self._catch_up()
        return StageLog(self, name, before, shown)

    def stored(self, stage: str, steps: int) -> None:
        """A stage was finished before this run came to it, here or in another cell."""
        self._catch_up()
        self._pass_over(lambda line: line.get("stage") == stage and line["event"] != "validation")
        last = self._lines[self._held - 1] if self._held else {}
        if last.get("stage") != stage or last["event"] not in ("end", "stored"):
            self.write({"event": "stored", "stage": stage, "steps": steps})

    def validation(self, result: DomainResult, stage: str, steps: Sequence[int], before: int) -> None:
        """A domain's mIoU in percent at every kept point of the last stage, which lie at these steps of it."""
        for step, value in zip(steps, mious(snapshots(result)), strict=True):
            self.write({
                "event": "validation", "stage": stage, "step": step, "overall": before + step, "role": result.role,
                "domain": domain_name(result.domain, result.data_source), "miou": _number(value),
            })  # fmt: skip

    def close(self, record: Record) -> None:
        """How it ended, with the mean mIoU of the targets in percent or the error."""
        if self._path is None:
            self.open(record.spec.resolved, record.run.started, record.run.revision)
        if record.status == "done":
            ending: Line = {"miou": _number(role_miou(record, "target"))}
        else:
            ending = {"error": record.error}
        self.write({"event": record.status, **ending, "seconds": record.run.seconds})
        if self._trackers is not None:
            self._trackers.close("success" if record.status == "done" else "failed")

    def write(self, line: Line) -> None:
        """Appends a line, in the place of what an earlier run said from here on; if that is the same, it stays."""
        if self._path is None or self._pass_over(lambda earlier: earlier == line, most=1):
            return
        self._lines[self._held :] = [line]
        self._keep()
        self._hold()

    def _keep(self) -> None:
        """Writes the last line: the first time with all before it, in the place of what an earlier run left."""
        if self._path is None or self._broken:
            return
        try:
            if self._appends:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(_text(self._lines[-1]))
            else:
                write_atomically(self._path, "".join(map(_text, self._lines)).encode())
                self._appends = True
        except (OSError, KdbenchError) as error:
            self._broken = True
            self._note(f"{self._path} is not continued: {error}")

    def _catch_up(self) -> None:
        """Takes in what another run of this cell has written while this one waited for a stage."""
        if self._path is not None and not self._appends and not self._fresh:
            lines = read_lines(self._path)
            if lines[: self._held] == self._lines[: self._held]:
                self._lines = lines

    def pass_over_losses(self, stage: str, step: int) -> float:
        """Keeps an earlier run's losses before a step of the stage. Returns the seconds of training that they tell."""
        self._pass_over(lambda line: line["event"] == "losses" and line["stage"] == stage and line["step"] < step)
        last = self._lines[self._held - 1] if self._held else {}
        return float(last["seconds"]) if last.get("event") == "losses" and last["stage"] == stage else 0.0

    def _pass_over(self, holds: Callable[[Line], bool], most: float = math.inf) -> int:
        passed = 0
        while self._held < len(self._lines) and passed < most and holds(self._lines[self._held]):
            self._hold()
            passed += 1
        return passed

    def _hold(self) -> None:
        line = self._lines[self._held]
        self._held += 1
        if self._trackers is not None and (metrics := _metrics(line)):
            self._trackers.log(metrics, line["overall"])


class StageLog:
    """A stage's progress, written as it is shown."""

    def __init__(self, event_log: EventLog, stage: str, before: int, shown: Progress) -> None:
        self._event_log, self._stage, self._before, self._shown = event_log, stage, before, shown
        self._done, self._total, self._began = 0, 0, 0.0

    def begin(self, what: str, total: int) -> None:
        """The stage begins, or goes on."""
        self._shown.begin(what, total)
        self._total, self._began = total, time.perf_counter()
        self._event_log.write({"event": "begin", "stage": self._stage, "steps": total, "overall": self._before})

    def advance(self, done: int, losses: Mapping[str, float]) -> None:
        """A look at the losses."""
        self._shown.advance(done, losses)
        if not self._done:
            self._began -= self._event_log.pass_over_losses(self._stage, done)
        self._done = done
        self._event_log.write({
            "event": "losses", "stage": self._stage, "step": done, "overall": self._before + done,
            "seconds": self._seconds(), "losses": dict(losses),
        })  # fmt: skip

    def end(self) -> None:
        """The stage is over, if all of its steps are done."""
        self._shown.end()
        if self._done == self._total:
            self._event_log.write({"event": "end", "stage": self._stage, "seconds": self._seconds()})

    def note(self, text: str) -> None:
        """For whoever looks on."""
        self._shown.note(text)

    def _seconds(self) -> float:
        return round(time.perf_counter() - self._began, 2)


def read_lines(path: Path) -> list[Line]:
    """A journal's lines, up to one that a killed run has left unfinished; none of a file that is no journal."""
    lines: list[Line] = []
    try:
        for text in path.read_bytes().split(b"\n"):
            line = json.loads(text)
            if not (isinstance(line, dict) and "event" in line):
                break
            lines.append(line)
    except (OSError, ValueError):
        return lines
    return lines


def _text(line: Line) -> str:
    return json.dumps(line) + "\n"


def _number(value: float) -> float | None:
    """JSON has no nan."""
    return float(value) if math.isfinite(value) else None


def _header(cell: Resolved) -> Line:
    return {
        "protocol": cell.protocol_id,
        "data_source": cell.data_source,
        "benchmark": cell.benchmark,
        "teacher": model_name(cell.teacher, cell.model_set),
        "student": model_name(cell.student, cell.model_set) if cell.student else None,
        "method": cell.method,
        "variant": cell.variant,
        "seed": cell.seed,
        "label_fraction": cell.label_fraction,
        "key": cell.key,
    }


def _name(header: Line) -> str:
    """A run's name in a tracker."""
    method = f"{header['method']}[{header['variant']}]" if header["variant"] else header["method"]
    pair = " -> ".join(name for name in (header["teacher"], header["student"]) if name)
    return f"{header['benchmark']} · {method} · {pair} · seed {header['seed']}"


def _metrics(line: Line) -> dict[str, float]:
    """A line's numbers as trackers name them."""
    if line["event"] == "losses":
        return {f"{line['stage']}/{term}": value for term, value in line["losses"].items()}
    if line["event"] == "validation" and line["miou"] is not None:
        return {f"validation/{line['domain']}": line["miou"]}
    return {}
