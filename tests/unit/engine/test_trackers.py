"""Trackers hear what the JSON lines say; one that fails or is missing costs no run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric.loggers import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kdbench.cli.runs import _trackers
from kdbench.engine import trackers
from kdbench.engine.event_log import SUFFIX, Line, read_lines
from kdbench.engine.grid import Done, expand, make_context, run_grid
from kdbench.engine.tracking import TRACKERS, Place, Trackers, find_trackers, logdir
from kdbench.errors import KdbenchError
from kdbench.progress import Silent
from kdbench.spec import RunSpec

MakeSpec = Callable[..., RunSpec]
CALLS = ("init", "log_hyperparams", "log_metrics", "finalize")


class Noting(Silent):
    """Remembers notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


class Fake(Logger):
    """Remembers what it is told. fails: the call that raises."""

    def __init__(self, place: Place, fails: str = "") -> None:
        self.place, self._fails = place, fails
        self.told: list[tuple[dict[str, float], int]] = []
        self.parameters: dict[str, Any] = {}
        self.status = ""
        self._call("init")

    name = version = None

    def _call(self, name: str) -> None:
        if name == self._fails:
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

    def maker(fails: str) -> Callable[[Place], Fake]:
        def make(place: Place) -> Fake:
            made.append(Fake(place, fails))
            return made[-1]

        return make

    monkeypatch.setitem(TRACKERS, "fake", maker(""))
    for call in CALLS:
        monkeypatch.setitem(TRACKERS, call, maker(call))
    return made


def run(spec: RunSpec, progress: Silent | None = None) -> list[Done]:
    context = make_context(spec, progress or Silent())
    return list(run_grid(spec, context, expand(spec, context)))


def journals(spec: RunSpec) -> dict[Path, list[Line]]:
    """Lines by the record's place below the results."""
    return {
        path.relative_to(spec.results).with_name(path.name.removesuffix(SUFFIX)): read_lines(path)
        for path in sorted(spec.results.rglob(f"*{SUFFIX}"))
    }


def expected(lines: list[Line]) -> list[tuple[dict[str, float], int]]:
    """Metric names and steps over all stages, from the lines."""
    found = []
    for line in lines:
        if line["event"] == "losses":
            found.append(({f"{line['stage']}/{name}": loss for name, loss in line["losses"].items()}, line["overall"]))
        if line["event"] == "validation":
            found.append(({f"validation/{line['domain']}": line["miou"]}, line["overall"]))
    return found


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's own reading of a run."""
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def curves(lines: list[Line]) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for metrics, step in expected(lines):
        for name, value in metrics.items():
            found.setdefault(name, []).append((step, value))
    return found


def steps(found: dict[str, list[tuple[int, float]]]) -> dict[str, list[int]]:
    return {tag: [step for step, _ in curve] for tag, curve in found.items()}


def test_tensorboard_reads_what_the_lines_say(make_spec: MakeSpec) -> None:
    spec = make_spec(methods=("gkd", "cwd"), settings=("cwd.temperature=2",), watch=("tensorboard",))
    run(spec)
    found = journals(spec)
    assert len(found) == 2
    for place, lines in found.items():
        ours, theirs = curves(lines), scalars(logdir(spec.results) / place)
        assert theirs.keys() == ours.keys()
        assert "validation/synthetic cityscapes-like" in ours
        for tag, curve in ours.items():
            assert theirs[tag] == [(step, pytest.approx(value, rel=1e-6)) for step, value in curve]


def test_a_run_that_goes_on_has_one_curve(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(methods=("baseline",), store=tmp_path / "store", watch=("tensorboard",))

    class Killed(BaseException):
        pass

    class KilledInTheTests(Silent):
        def begin(self, what: str, total: int) -> None:
            if what.endswith("testing"):
                raise Killed

    with pytest.raises(Killed):
        run(spec, KilledInTheTests())
    ((place, lines),) = journals(spec).items()
    folder = logdir(spec.results) / place
    assert steps(scalars(folder)) == steps(curves(lines)) == {"task/task": [8]}
    run(spec)
    assert len(list(folder.iterdir())) == 2
    ((_, lines),) = journals(spec).items()
    assert len(curves(lines)) == 3
    assert steps(scalars(folder)) == steps(curves(lines))


def test_a_tracker_is_told_every_line_once_with_a_name_and_what_the_cell_is(
    make_spec: MakeSpec, fakes: list[Fake], tmp_path: Path
) -> None:
    spec = make_spec(watch=("fake",), seeds=(0, 1), store=tmp_path / "store")
    run(spec)
    assert [fake.told for fake in fakes] == [expected(lines) for lines in journals(spec).values()]
    assert [fake.status for fake in fakes] == ["success", "success"]
    assert fakes[1].place.name == "g2c · gkd · mini:dinov2-s -> mini:deit-s · seed 1"
    assert fakes[1].parameters["student"] == "mini:deit-s"
    run(spec)
    assert len(fakes) == 2  # what is done already tells nothing


def test_a_failed_cell_ends_as_failed(make_spec: MakeSpec, fakes: list[Fake], tmp_path: Path) -> None:
    bad = tmp_path / "explodes.py"
    bad.write_text(
        "from kdbench.method import Method\n\n\n"
        "class Explodes(Method):\n"
        "    def loss(self, batch, student, teacher):\n"
        "        raise OSError('boom')\n",
        encoding="utf-8",
    )
    (done,) = run(make_spec(methods=(str(bad),), watch=("fake",)))
    assert done.record.status == "failed"
    assert [fake.status for fake in fakes] == ["failed"]


@pytest.mark.parametrize("call", CALLS)
def test_a_tracker_that_fails_is_left_out_and_named_once(make_spec: MakeSpec, fakes: list[Fake], call: str) -> None:
    progress = Noting()
    spec = make_spec(watch=(call, "fake"), seeds=(0, 1))
    done = run(spec, progress)
    assert [each.record.status for each in done] == ["done", "done"]
    (note,) = progress.notes
    assert note == f"{call} failed and is left out from here on: ConnectionError: the network is gone"
    # It is asked for once; the other one goes on, in both cells.
    assert len(fakes) == (2 if call == "init" else 3)
    assert [fake.told for fake in fakes if not fake._fails] == [expected(lines) for lines in journals(spec).values()]


def test_trackers_end_when_a_run_is_interrupted(make_spec: MakeSpec, fakes: list[Fake], tmp_path: Path) -> None:
    class Interrupted(Silent):
        def advance(self, done: int, losses: Mapping[str, float]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make_spec(watch=("fake",), store=tmp_path / "store"), Interrupted())
    assert [fake.status for fake in fakes] == ["failed"]


def test_a_request_does_not_change_with_who_looks_on(make_spec: MakeSpec) -> None:
    assert make_spec(watch=("tensorboard",)).passed() == make_spec().passed()


def test_names_are_checked_and_kept_in_order() -> None:
    assert find_trackers("none") == ()
    assert find_trackers("tensorboard") == ("tensorboard",)
    with pytest.raises(KdbenchError, match="'none' stands alone"):
        find_trackers("none,tensorboard")
    with pytest.raises(KdbenchError, match=r"unknown tracker .*'tensorbord'.*Did you mean 'tensorboard'"):
        find_trackers("tensorbord")
    with pytest.raises(KdbenchError, match="names nothing"):
        find_trackers(",")


def without(*missing: str) -> Callable[[str], ModuleSpec | None]:
    return lambda name: None if name in missing else find_spec("json")


def test_a_tracker_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(trackers, "find_spec", without("wandb", "tensorboard"))
    assert find_trackers("mlflow,trackio") == ("mlflow", "trackio")
    with pytest.raises(KdbenchError, match=r"--watch wandb: .* pip install 'kdbench\[wandb\]'"):
        find_trackers("mlflow,wandb")
    with pytest.raises(KdbenchError, match="pip install tensorboard"):
        find_trackers("tensorboard")
    assert _trackers(None) == ()
    assert "tensorboard is not installed" in capsys.readouterr().err
    monkeypatch.setattr(trackers, "find_spec", without("wandb"))
    assert _trackers(None) == ("tensorboard",)
    assert capsys.readouterr().err == ""


def test_every_tracker_has_an_extra() -> None:
    """The repair that an error names has to exist."""
    from configparser import ConfigParser

    config = ConfigParser()
    config.read(Path(__file__).parents[3] / "setup.cfg", encoding="utf-8")
    extras = config["options.extras_require"]
    optional = [name for name in TRACKERS if name != trackers.DEFAULT]
    assert all(extras[name].startswith(name) for name in optional)
    assert [line.partition(">")[0] for line in extras["tracking"].split()] == optional
    assert trackers.DEFAULT in config["options"]["install_requires"]


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_real_tracker_takes_a_cell(
    make_spec: MakeSpec, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip(name, reason=f"optional: {name}")
    for variable, value in {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio")}.items():
        monkeypatch.setenv(variable, value)
    progress = Noting()
    (done,) = run(make_spec(watch=(name,)), progress)
    assert done.record.status == "done"
    assert progress.notes == []


def test_nobody_listens_where_nobody_was_asked_for(tmp_path: Path) -> None:
    """`kdbench budgets` and the smoke gate."""
    assert RunSpec(methods=(), pairs=(), benchmarks=(), results=tmp_path, store=tmp_path).watch == ()
    nobody = Trackers((), tmp_path, pytest.fail)
    nobody.open(Path("a"), "a", {})
    nobody.log({"a": 1.0}, 1)
    nobody.close()
    assert not list(tmp_path.iterdir())
