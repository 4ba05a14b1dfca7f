"""A cell's JSON lines against its record, what trackers hear, and that neither can end a run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric.loggers import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kdbench.api import make_request
from kdbench.engine import tracking, trainer
from kdbench.engine.grid import Done, expand, make_context, run_grid
from kdbench.engine.tracking import SUFFIX, TRACKERS, find_trackers, logdir
from kdbench.errors import KdbenchError
from kdbench.metrics import domain_miou
from kdbench.names import domain_name
from kdbench.progress import Silent
from kdbench.records import Record, record_files
from kdbench.spec import RunSpec

ROOT = Path(__file__).parents[3]
MakeSpec = Callable[..., RunSpec]
Curves = dict[str, list[tuple[int, float]]]
CALLS = ("init", "log_hyperparams", "log_metrics", "finalize")


class Killed(BaseException):
    """Ends a run where it stands, as no exception that a cell would survive."""


class Listener(Silent):
    """Keeps notes; raises an error once a stage reports that so many of its steps are done."""

    def __init__(self, stage: str = "", step: int = 0, error: BaseException | None = None) -> None:
        self.notes: list[str] = []
        self._stage, self._step, self._error, self._here = stage, step, error, False

    def begin(self, what: str, total: int) -> None:
        self._here = what.endswith(f"· {self._stage}")

    def advance(self, done: int, losses: Mapping[str, float]) -> None:
        if self._error is not None and self._here and done == self._step:
            raise self._error

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(autouse=True)
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Report the losses after each of a smoke stage's few steps."""
    monkeypatch.setattr(trainer, "REPORT_EVERY", 1)


def run(spec: RunSpec, progress: Silent | None = None) -> list[Done]:
    context = make_context(spec, progress or Silent())
    return list(run_grid(spec, context, expand(spec, context)))


def logs(spec: RunSpec) -> dict[str, list[dict[str, Any]]]:
    """Events by their file's place below the results, as a program reads them that knows nothing of ours."""
    return {
        str(path.relative_to(spec.results)).removesuffix(SUFFIX): [
            json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()
        ]
        for path in sorted(spec.results.rglob(f"*{SUFFIX}"))
    }


def only(spec: RunSpec) -> list[dict[str, Any]]:
    (events,) = logs(spec).values()
    return events


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in events]


def of(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == kind]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, list[dict[str, Any]]]:
    """A cell that ran in one go."""
    folder = tmp_path_factory.mktemp("whole")
    spec = RunSpec(
        methods=("gkd",), pairs=("dinov2-s:deit-s",), benchmarks=("g2c",), protocol="smoke", device="cpu",
        references=False, store=folder / "store", results=folder / "results",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "REPORT_EVERY", 1)
        (done,) = run(spec)
    return done.record, only(spec)


def test_the_lines_are_what_the_record_says(whole: tuple[Record, list[dict[str, Any]]]) -> None:
    record, events = whole
    assert record.result is not None
    header, ending, cell = events[0], events[-1], record.spec.resolved
    assert header["event"] == "cell"
    assert header["protocol_id"] == cell.protocol_id
    assert (header["method"], header["benchmark"], header["seed"]) == (cell.method, cell.benchmark, cell.seed)
    assert (header["teacher"], header["student"]) == (f"mini:{cell.teacher}", f"mini:{cell.student}")
    assert (header["started"], header["revision"]) == (record.run.started, record.run.revision)
    before = 0
    for stage in record.result.stages:
        ours = [event for event in events if event.get("stage") == stage.name and event["event"] != "validation"]
        assert kinds(ours) == ["begin", *["losses"] * stage.steps, "end"]
        losses = of(ours, "losses")
        assert [(event["step"], event["overall"]) for event in losses] == [
            (step, before + step) for step in range(1, stage.steps + 1)
        ]
        # So few steps that the record's means over tenths of the stage are the steps.
        told = {term: [float(f"{event['losses'][term]:.5g}") for event in losses] for term in stage.losses}
        assert told == stage.losses
        assert sorted(event["seconds"] for event in losses) == [event["seconds"] for event in losses]
        before += stage.steps
    for domain in record.result.domains:
        name = domain_name(domain.domain, domain.data_source)
        ours = [event for event in of(events, "validation") if event["domain"] == name]
        assert [(event["role"], event["overall"]) for event in ours] == [
            (domain.role, before - 8 + step) for step in (2, 4, 6, 8)
        ]
        assert ours[-1]["miou"] == pytest.approx(domain_miou(domain), rel=1e-12)
    targets = [domain_miou(domain) for domain in record.result.domains if domain.role == "target"]
    assert (ending["event"], ending["miou"]) == ("done", pytest.approx(sum(targets) / len(targets), rel=1e-12))


def test_a_resumed_run_appends_and_drops_an_unfinished_line(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(store=tmp_path / "store", watch=("tensorboard",))
    with pytest.raises(Killed):
        run(spec, Listener("source", 4, Killed()))
    before = only(spec)
    (path,) = spec.results.rglob(f"*{SUFFIX}")
    with path.open("a", encoding="utf-8") as file:
        file.write('{"event": "los')
    run(spec)
    events = only(spec)
    assert events[: len(before)] == before
    after = events[len(before) :]
    assert kinds(after)[:3] == ["cell", "stored", "begin"]
    # The checkpoint is after the second step.
    assert [event["step"] for event in of(after, "losses") if event["stage"] == "source"] == [3, 4, 5, 6]
    assert kinds(after)[-1] == "done"
    (place,) = logs(spec)
    assert set(scalars(logdir(spec.results) / place)) == set(curves(events))


def test_what_is_done_is_left_alone_and_fresh_or_another_key_begins_anew(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(store=tmp_path / "store")
    run(spec)
    (path,) = spec.results.rglob(f"*{SUFFIX}")
    mark = '{"event": "mine"}\n'
    path.write_text(path.read_text(encoding="utf-8") + mark, encoding="utf-8")
    assert run(spec)[0].cached
    assert path.read_text(encoding="utf-8").endswith(mark)
    run(spec.model_copy(update={"fresh": True}))
    assert not {"mine", "stored"} & set(kinds(only(spec)))
    path.write_text(path.read_text(encoding="utf-8").replace('"key": "', '"key": "older'), encoding="utf-8")
    next(record_files(spec.results)).unlink()
    run(spec)
    assert "older" not in path.read_text(encoding="utf-8")
    assert kinds(only(spec)).count("stored") == 3


def test_a_log_that_cannot_be_written_stops_no_run(make_spec: MakeSpec) -> None:
    spec, listener = make_spec(), Listener()
    run(spec)
    path = next(record_files(spec.results)).with_suffix(SUFFIX)
    path.unlink()
    path.mkdir()
    (done,) = run(spec.model_copy(update={"fresh": True}), listener)
    assert done.record.status == "done"
    (note,) = listener.notes
    assert note.startswith(f"{path} failed and is left out from here on")


def test_the_example_of_the_page_is_what_a_run_writes(whole: tuple[Record, list[dict[str, Any]]]) -> None:
    page = (ROOT / "docs" / "watching.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```json\n(.*?)```", page, flags=re.DOTALL)
    shown = [json.loads(text) for text in example.splitlines()]
    assert set(kinds(shown)) == set(kinds(whole[1]))
    for event in shown:
        assert list(event) == list(of(whole[1], event["event"])[0])


# --- trackers


class Fake(Logger):
    """Remembers what it is told. fails: the call that raises."""

    name = version = None

    def __init__(self, title: str, fails: str) -> None:
        self.title, self.fails, self.status = title, fails, ""
        self.told: list[tuple[dict[str, float], int]] = []
        self.parameters: dict[str, Any] = {}
        self._call("init")

    def _call(self, name: str) -> None:
        if name == self.fails:
            raise ConnectionError("the network is gone")

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        self._call("log_hyperparams")
        self.parameters = params

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._call("log_metrics")
        self.told.append((dict(metrics), step or 0))

    def finalize(self, status: str) -> None:
        self._call("finalize")
        self.status = status


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> list[Fake]:
    """Every tracker that is made; "fake" never fails, and those named for a call fail in it."""
    made: list[Fake] = []

    def maker(fails: str) -> Callable[..., Fake]:
        def make(results: Path, cell: Path, title: str, purge_step: int | None) -> Fake:
            made.append(Fake(title, fails))
            return made[-1]

        return make

    for name in ("fake", *CALLS):
        monkeypatch.setitem(TRACKERS, name, maker(name))
    return made


def metrics(events: list[dict[str, Any]]) -> list[tuple[dict[str, float], int]]:
    """Metric names and steps over all stages, from the lines."""
    found = []
    for event in events:
        if event["event"] == "losses":
            terms = {f"{event['stage']}/{name}": loss for name, loss in event["losses"].items()}
            found.append((terms, event["overall"]))
        if event["event"] == "validation":
            found.append(({f"validation/{event['domain']}": event["miou"]}, event["overall"]))
    return found


def curves(events: list[dict[str, Any]]) -> Curves:
    found: Curves = {}
    for values, step in metrics(events):
        for name, value in values.items():
            found.setdefault(name, []).append((step, value))
    return found


def scalars(folder: Path) -> Curves:
    """TensorBoard's own reading of a run."""
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_what_the_lines_say_and_a_fresh_run_replaces_it(make_spec: MakeSpec) -> None:
    spec = make_spec(methods=("baseline", "cwd"), settings=("cwd.temperature=2",), watch=("tensorboard",))
    run(spec)
    run(spec.model_copy(update={"fresh": True}))
    found = logs(spec)
    assert len(found) == 2
    for place, events in found.items():
        ours, theirs = curves(events), scalars(logdir(spec.results) / place)
        assert theirs.keys() == ours.keys()
        assert "validation/synthetic cityscapes-like" in ours
        for tag, curve in ours.items():
            assert theirs[tag] == [(step, pytest.approx(value, rel=1e-6)) for step, value in curve]


def test_a_tracker_is_told_every_line_with_a_name_and_what_the_cell_is(
    make_spec: MakeSpec, fakes: list[Fake], tmp_path: Path
) -> None:
    spec = make_spec(watch=("fake",), seeds=(0, 1), store=tmp_path / "store")
    run(spec)
    assert [fake.told for fake in fakes] == [metrics(events) for events in logs(spec).values()]
    assert [fake.status for fake in fakes] == ["success", "success"]
    assert fakes[1].title == "g2c · gkd · mini:dinov2-s -> mini:deit-s · seed 1"
    assert fakes[1].parameters["student"] == "mini:deit-s"
    run(spec)
    assert len(fakes) == 2  # what is done already tells nothing


@pytest.mark.parametrize("error", [OSError("boom"), KeyboardInterrupt()])
def test_trackers_end_when_a_cell_fails_or_a_run_is_interrupted(
    make_spec: MakeSpec, fakes: list[Fake], tmp_path: Path, error: BaseException
) -> None:
    spec = make_spec(watch=("fake",), store=tmp_path / "store")
    try:
        run(spec, Listener("source", 2, error))
        assert "boom" in only(spec)[-1]["error"]
    except KeyboardInterrupt:
        assert isinstance(error, KeyboardInterrupt)
    assert [fake.status for fake in fakes] == ["failed"]


@pytest.mark.parametrize("call", CALLS)
def test_a_tracker_that_fails_is_left_out_and_named_once(make_spec: MakeSpec, fakes: list[Fake], call: str) -> None:
    listener, spec = Listener(), make_spec(watch=(call, "fake"), seeds=(0, 1))
    assert [each.record.status for each in run(spec, listener)] == ["done", "done"]
    assert listener.notes == [f"{call} failed and is left out from here on: ConnectionError: the network is gone"]
    told = [fake.told for fake in fakes if fake.fails == "fake"]
    assert told == [metrics(events) for events in logs(spec).values()]


def test_names_are_checked_and_kept_in_order() -> None:
    assert find_trackers("none") == ()
    assert find_trackers("tensorboard") == ("tensorboard",)
    with pytest.raises(KdbenchError, match="'none' stands alone"):
        find_trackers("none,tensorboard")
    with pytest.raises(KdbenchError, match=r"unknown tracker 'tensorbord' in --watch\. Did you mean 'tensorboard'"):
        find_trackers("tensorbord")


def test_a_tracker_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*missing: str) -> Callable[[str], ModuleSpec | None]:
        return lambda name: None if name in missing else find_spec("json")

    monkeypatch.setattr(tracking, "find_spec", without("wandb", "tensorboard"))
    assert find_trackers("mlflow") == ("mlflow",)
    with pytest.raises(KdbenchError, match=r"--watch wandb: .* pip install wandb"):
        find_trackers("mlflow,wandb")
    with pytest.raises(KdbenchError, match="pip install tensorboard"):
        find_trackers("tensorboard")
    notes: list[str] = []
    assert make_request(notes.append, method="gkd", pair="dinov2-s:deit-s").watch == ()
    assert "tensorboard is not installed" in notes.pop()
    monkeypatch.setattr(tracking, "find_spec", without("wandb"))
    assert make_request(notes.append, method="gkd", pair="dinov2-s:deit-s").watch == ("tensorboard",)
    assert not notes


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_real_tracker_takes_a_cell(make_spec: MakeSpec, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name, reason=f"optional: {name}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    listener = Listener()
    (done,) = run(make_spec(watch=(name,)), listener)
    assert done.record.status == "done"
    assert listener.notes == []
