"""A cell's JSON lines: what they say against the record, and a killed run that goes on in the same file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kdbench.engine import trainer
from kdbench.engine.event_log import SUFFIX, EventLog, Line, read_lines
from kdbench.engine.grid import Done, expand, make_context, run_grid
from kdbench.engine.store import StageFolder
from kdbench.names import domain_name
from kdbench.progress import Silent
from kdbench.records import DomainResult, Record, record_files
from kdbench.spec import RunSpec

MakeSpec = Callable[..., RunSpec]


class Killed(BaseException):
    """Ends a run where it stands, as no exception that a cell would survive."""


class KilledAt(Silent):
    """Kills when a stage reports that so many of its steps are done."""

    def __init__(self, stage: str, step: int) -> None:
        self._stage, self._step, self._here = stage, step, False

    def begin(self, what: str, total: int) -> None:
        self._here = what.endswith(f"· {self._stage}")

    def advance(self, done: int, losses: Mapping[str, float]) -> None:
        if self._here and done == self._step:
            raise Killed


@pytest.fixture(autouse=True)
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at the losses after each of a smoke stage's few steps; checkpoints are after every second."""
    monkeypatch.setattr(trainer, "REPORT_EVERY", 1)


def run(spec: RunSpec, progress: Silent | None = None) -> list[Done]:
    context = make_context(spec, progress or Silent())
    return list(run_grid(spec, context, expand(spec, context)))


def event_log(spec: RunSpec) -> Path:
    (path,) = spec.results.rglob(f"*{SUFFIX}")
    return path


def lines(spec: RunSpec) -> list[Line]:
    """As a program reads them that knows nothing of ours."""
    return [json.loads(text) for text in event_log(spec).read_text(encoding="utf-8").splitlines()]


def result(record: Record) -> str:
    assert record.result is not None, record.error
    return record.result.model_dump_json()


def timeless(found: list[Line]) -> list[Line]:
    return [{name: value for name, value in line.items() if name not in ("seconds", "started")} for line in found]


def of(found: list[Line], event: str) -> list[Line]:
    return [line for line in found if line["event"] == event]


def expected_miou(domain: DomainResult) -> list[float]:
    """Every kept point's mIoU in percent from the counts, class by class; a class that occurs nowhere is left out."""
    classes, matrix = len(domain.confusion), domain.confusion.tolist()
    truth = [sum(row) for row in matrix]
    last = [
        [matrix[k][k] for k in range(classes)],
        [sum(matrix[i][k] for i in range(classes) if i != k) for k in range(classes)],
    ]
    found = []
    for right, wrong in [*domain.earlier.tolist(), last]:
        ious = [100 * right[k] / (truth[k] + wrong[k]) for k in range(classes) if truth[k] + wrong[k]]
        found.append(sum(ious) / len(ious))
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, list[Line]]:
    """A cell that ran in one go."""
    folder = tmp_path_factory.mktemp("whole")
    spec = RunSpec(
        methods=("gkd",), pairs=("dinov2-s:deit-s",), benchmarks=("g2c",), protocol="smoke", device="cpu",
        references=False, store=folder / "store", results=folder / "results",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "REPORT_EVERY", 1)
        (done,) = run(spec)
    return done.record, lines(spec)


def test_the_lines_are_what_the_record_says(whole: tuple[Record, list[Line]]) -> None:
    record, found = whole
    assert record.result is not None
    header, ending = found[0], found[-1]
    cell = record.spec.resolved
    assert header["event"] == "cell"
    assert header["protocol"] == cell.protocol_id
    assert (header["method"], header["benchmark"], header["seed"]) == (cell.method, cell.benchmark, cell.seed)
    assert (header["teacher"], header["student"]) == (f"mini:{cell.teacher}", f"mini:{cell.student}")
    assert (header["started"], header["revision"]) == (record.run.started, record.run.revision)
    overall = 0
    for stage in record.result.stages:
        ours = [line for line in found if line.get("stage") == stage.name and line["event"] != "validation"]
        assert [line["event"] for line in ours] == ["begin", *["losses"] * stage.steps, "end"]
        losses = of(ours, "losses")
        assert [line["step"] for line in losses] == list(range(1, stage.steps + 1))
        assert [line["overall"] for line in losses] == [overall + line["step"] for line in losses]
        # So few steps that the record's means over tenths of the stage are the steps.
        assert {
            term: [float(f"{line['losses'][term]:.5g}") for line in losses] for term in stage.losses
        } == stage.losses
        assert sorted(line["seconds"] for line in losses) == [line["seconds"] for line in losses]
        overall += stage.steps
    tests = of(found, "validation")
    for domain in record.result.domains:
        ours = [line for line in tests if line["domain"] == domain_name(domain.domain, domain.data_source)]
        assert {line["role"] for line in ours} == {domain.role}
        assert [line["miou"] for line in ours] == pytest.approx(expected_miou(domain), rel=1e-12)
        assert [line["overall"] for line in ours] == [overall - 8 + step for step in (2, 4, 6, 8)]
    assert len(tests) == 4 * len(record.result.domains)
    targets = [expected_miou(domain)[-1] for domain in record.result.domains if domain.role == "target"]
    assert ending["event"] == "done"
    assert ending["miou"] == pytest.approx(sum(targets) / len(targets), rel=1e-12)


@pytest.mark.parametrize(
    ("stage", "step", "goes_on_from"),
    [("proxy", 2, 0), ("source", 4, 2), ("task", 8, 6), ("testing", 2, None)],
)
def test_a_killed_run_continues_its_file(
    make_spec: MakeSpec,
    tmp_path: Path,
    whole: tuple[Record, list[Line]],
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    step: int,
    goes_on_from: int | None,
) -> None:
    spec = make_spec(store=tmp_path / "store")
    with pytest.raises(Killed):
        run(spec, KilledAt(stage, step))
    before = lines(spec)
    # What the killed process had just begun to write.
    with event_log(spec).open("a", encoding="utf-8") as file:
        file.write('{"event": "los')
    loaded = []
    monkeypatch.setattr(
        StageFolder, "load_checkpoint", lambda self, load=StageFolder.load_checkpoint: loaded.append(load(self))
        or loaded[-1],
    )  # fmt: skip
    (done,) = run(spec)
    assert timeless(lines(spec)) == timeless(whole[1])
    assert result(done.record) == result(whole[0])
    if goes_on_from is not None:
        # Without steps beyond the checkpoint in the file there would be nothing to drop.
        assert (loaded[0]["step"] if loaded[0] else 0) == goes_on_from
        assert before[-1].get("step", 0) == step - 1
    losses = of(lines(spec), "losses")
    for name in {line["stage"] for line in losses}:
        seconds = [line["seconds"] for line in losses if line["stage"] == name]
        assert seconds == sorted(seconds)


def test_a_stage_from_the_store_is_one_line(make_spec: MakeSpec, tmp_path: Path) -> None:
    store = tmp_path / "store"
    run(make_spec(store=store, results=tmp_path / "first"))
    spec = make_spec(store=store, results=tmp_path / "second")
    run(spec)
    found = lines(spec)
    assert [(line["event"], line.get("stage")) for line in found[:4]] == [
        ("cell", None), ("stored", "proxy"), ("stored", "source"), ("stored", "task"),
    ]  # fmt: skip
    assert {line["event"] for line in found[4:-1]} == {"validation"}


def test_a_stage_that_another_cell_has_finished_meanwhile_is_told_as_stored(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    spec = make_spec(store=tmp_path / "store")
    with pytest.raises(Killed):
        run(spec, KilledAt("proxy", 4))
    run(make_spec(store=tmp_path / "store", results=tmp_path / "other"))
    run(spec)
    ours = [(line["event"], line.get("step")) for line in lines(spec) if line.get("stage") == "proxy"]
    assert ours == [("begin", None), ("losses", 1), ("losses", 2), ("losses", 3), ("stored", None)]


def test_a_run_that_waited_for_another_of_its_cell_keeps_what_that_wrote(
    tmp_path: Path, whole: tuple[Record, list[Line]]
) -> None:
    first, second = EventLog(tmp_path), EventLog(tmp_path)
    for each in (first, second):
        each.open(whole[0].spec.resolved, "2026-01-01T00:00:00+00:00", "0.1.0")
    told = first.stage("proxy", 0, Silent())
    told.begin("proxy", 2)
    for step in (1, 2):
        told.advance(step, {"qsd": 1 / step})
    told.end()
    second.stored("proxy", 2)
    second.close(whole[0])
    (path,) = tmp_path.rglob("*.jsonl")
    assert [line["event"] for line in read_lines(path)] == ["cell", "begin", "losses", "losses", "end", "done"]


def test_what_is_done_is_left_alone_and_fresh_begins_anew(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(store=tmp_path / "store")
    run(spec)
    mark = '{"event": "mine"}\n'
    with event_log(spec).open("a", encoding="utf-8") as file:
        file.write(mark)
    (again,) = run(spec)
    assert again.cached
    assert event_log(spec).read_text(encoding="utf-8").endswith(mark)
    run(spec.model_copy(update={"fresh": True}))
    assert "mine" not in {line["event"] for line in lines(spec)}
    assert not of(lines(spec), "stored")


def test_another_cell_under_the_same_name_begins_anew(make_spec: MakeSpec, tmp_path: Path) -> None:
    """A record of older code lies there: its key differs."""
    spec = make_spec(store=tmp_path / "store")
    run(spec)
    path = event_log(spec)
    path.write_text(path.read_text(encoding="utf-8").replace('"key": "', '"key": "older'), encoding="utf-8")
    (record,) = record_files(spec.results)
    record.unlink()
    run(spec)
    assert "older" not in path.read_text(encoding="utf-8")
    assert len(of(lines(spec), "stored")) == 3


def test_a_failed_cell_says_why_and_goes_on_when_it_can(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(store=tmp_path / "store")

    class Failing(KilledAt):
        def advance(self, done: int, losses: Mapping[str, float]) -> None:
            if self._here and done == self._step:
                raise OSError("the cable is out")

    (failed,) = run(spec, Failing("task", 4))
    assert failed.record.error is not None
    last = lines(spec)[-1]
    assert (last["event"], last["error"]) == ("failed", failed.record.error)
    assert "the cable is out" in last["error"]
    run(spec)
    assert not of(lines(spec), "failed")
    assert [line["step"] for line in of(lines(spec), "losses") if line["stage"] == "task"] == list(range(1, 9))


def test_a_cell_that_cannot_be_planned_says_so(make_spec: MakeSpec, tmp_path: Path) -> None:
    bad = tmp_path / "unplanned.py"
    bad.write_text(
        "from kdbench.method import Method\n\n\n"
        "class Unplanned(Method):\n"
        "    def stages(self):\n"
        "        raise OSError('no plan')\n",
        encoding="utf-8",
    )
    spec = make_spec(methods=(str(bad),))
    for _ in range(2):
        run(spec)
        header, ending = lines(spec)
        assert header["method"] == "unplanned"
        assert "no plan" in ending["error"]


def test_a_line_can_be_read_at_once_and_the_file_is_no_record(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(store=tmp_path / "store")

    seen = []

    class Reader(Silent):
        def advance(self, done: int, losses: Mapping[str, float]) -> None:
            seen.append(len(lines(spec)))

    run(spec, Reader())
    # Each look of the first stage finds the header, the stage's beginning and all earlier looks.
    assert seen[:8] == list(range(2, 10))
    assert [path.suffix for path in record_files(spec.results)] == [".json"]


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`kdbench budgets`, and all processes but the first."""
    monkeypatch.chdir(tmp_path)
    silent = EventLog()
    log = silent.stage("task", 0, Silent())
    log.begin("task", 1)
    log.advance(1, {"loss": 1.0})
    log.end()
    silent.stored("task", 1)
    assert not list(tmp_path.iterdir())


class Heard(Silent):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_journal_that_cannot_be_written_stops_no_run(make_spec: MakeSpec) -> None:
    spec = make_spec()
    run(spec)
    event_log(spec).unlink()
    path = next(record_files(spec.results)).with_suffix(SUFFIX)
    path.mkdir()
    heard = Heard()
    (done,) = run(spec.model_copy(update={"fresh": True}), heard)
    assert done.record.status == "done"
    assert [note for note in heard.notes if str(path) in note] == heard.notes[:1] != []


def test_a_line_is_one_line_whatever_an_error_says(tmp_path: Path, whole: tuple[Record, list[Line]]) -> None:
    record = whole[0].model_copy(update={"status": "failed", "error": "one\u2028two\x85three\nfour"})
    log = EventLog(tmp_path)
    log.close(record)
    (path,) = tmp_path.rglob(f"*{SUFFIX}")
    *earlier, last = read_lines(path)
    assert last["error"] == record.error
    path.write_bytes(path.read_bytes()[:-4])
    assert read_lines(path) == earlier


@pytest.mark.parametrize("text", ["", "no json\n", "[1]\n", '{"event": "cell"}', '{"a": 1}\n', b"\xff\n"])
def test_what_is_no_journal_does_not_stop_a_run(make_spec: MakeSpec, tmp_path: Path, text: Any) -> None:
    path = tmp_path / "x.log.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert read_lines(path) in ([], [{"event": "cell"}])
    assert read_lines(tmp_path / "missing.log.jsonl") == []


def test_the_example_of_the_page_is_what_a_run_writes(whole: tuple[Record, list[Line]]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "watching.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```json\n(.*?)```", page, flags=re.DOTALL)
    shown = [json.loads(text) for text in example.splitlines()]
    assert {line["event"] for line in shown} == {line["event"] for line in whole[1]}
    for line in shown:
        assert list(line) == list(of(whole[1], line["event"])[0])
