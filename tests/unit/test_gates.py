"""`kdbench check`: what passes and what must not."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats
from typer.main import get_command
from typer.testing import CliRunner

from kdbench import conformance
from kdbench.cli import app
from kdbench.engine.grid import Done
from kdbench.errors import KdbenchError
from kdbench.models.toy import ToyModels
from kdbench.protocol import MINI, SMOKE, Protocol, find_protocol
from kdbench.records import DomainResult, Record, Resolved, Result, RunInfo, Spec
from kdbench.report import shares
from kdbench.report.statistics import ENOUGH
from kdbench.synthetic import WORLDS
from kdbench.tools.ci_checks import boards, contract, records, scores, smoke, speed
from kdbench.tools.ci_checks.gate import Gate, Outcome, annotation, junit

PIN = f"{SMOKE.id} g2c dinov2-s:deit-s logit_kd[warm] seed 0"


def make_record(score: float = 40.0, error: str | None = None, **resolved: Any) -> Record:
    """A record of three classes that all have this IoU in percent on the one target."""
    fields: dict[str, Any] = {
        "protocol": "mini", "protocol_id": MINI.id, "decoder": "light", "data_source": WORLDS["street"],
        "benchmark": "b",
        "title": "A",
        "classes": ["road", "sky", "car"], "teacher": "big", "student": "small", "model_set": "toy-v1", "family": "F2L",
        "method": "one", "role": "distilled", "options": {}, "variant": "", "seed": 0, "footnote": "", "key": "0",
    } | resolved  # fmt: skip
    cell = Resolved(**fields)
    right = round(200 * score)
    confusion = np.eye(3, dtype=int) * right + np.roll(np.eye(3, dtype=int), 1, axis=1) * ((20_000 - right) // 2)
    domain = DomainResult(
        domain="t",
        role="target",
        data_source=cell.data_source,
        images=9,
        confusion=confusion,
        earlier=np.zeros((0, 2, 3), int),
    )
    run = RunInfo(
        started="", seconds=1, stage_seconds={}, cached=[], peak_memory_mb=1, host={}, versions={}, revision=""
    )
    result = None if error else Result(domains=[domain], stages=[], parameters={"deployed": 1})
    spec = Spec(passed={}, resolved=cell)
    return Record(status="failed" if error else "done", error=error, spec=spec, result=result, run=run)


def write(folder: Path, *held: Record) -> list[Path]:
    """Writes records to their places below a folder."""
    paths = [folder / record.path() for record in held]
    for path, record in zip(paths, held, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(record.to_json(), encoding="utf-8")
    return paths


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    change(record)
    path.write_text(json.dumps(record), encoding="utf-8")


def only(found: Any) -> Gate:
    (gate,) = found
    return gate


# Records


def test_sound_records_pass_in_one_line(tmp_path: Path) -> None:
    write(tmp_path, make_record(), make_record(seed=1))
    gate = only(records.gates([tmp_path]))
    assert (gate.outcome, gate.detail[:2]) == (Outcome.OK, "2 ")


def test_no_record_is_nothing_to_look_at(tmp_path: Path) -> None:
    assert only(records.gates([tmp_path])).outcome == Outcome.SKIP
    assert only(records.gates([])).outcome == Outcome.SKIP


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("decoder", None, "not a valid record"),
        ("protocol", "tiny", "unknown protocol 'tiny' (known: smoke, mini, paper, paper-text)"),
        ("protocol_id", "mini-00000000", f"made under mini-00000000; today's protocol is {MINI.id}"),
        ("data_source", "elsewhere", "unknown world 'elsewhere'"),
        ("seed", 7, "holds the record of"),
    ],
)
def test_a_record_with_a_fault_is_named_with_its_repair(tmp_path: Path, name: str, value: object, message: str) -> None:
    _, path = write(tmp_path, make_record(), make_record(seed=1))
    edit(path, lambda record: record["spec"]["resolved"].update({name: value}))
    gate = only(records.gates([tmp_path]))
    assert (gate.outcome, gate.file) == (Outcome.FAIL, path)
    assert message in gate.detail
    assert str(path) in gate.detail
    assert "Remove it and run its cell again" in gate.detail


def test_a_record_of_other_weights_than_those_shipped_is_named(tmp_path: Path) -> None:
    shipped = {
        "dinov2-l": ToyModels().card("dinov2-l").sha256[:16],
        "resnet50": ToyModels().card("resnet50").sha256[:16],
    }
    (path,) = write(
        tmp_path, make_record(model_set=MINI.model_set, teacher="dinov2-l", student="resnet50", weights=shipped)
    )
    assert only(records.gates([tmp_path])).outcome is Outcome.OK
    edit(path, lambda record: record["spec"]["resolved"]["weights"].update(resnet50="0" * 16))
    detail = only(records.gates([tmp_path])).detail
    assert "began with other weights of resnet50 than those shipped" in detail
    edit(path, lambda record: record["spec"]["resolved"].update(weights={"resnet51": "0" * 16}))
    assert "resnet51" in only(records.gates([tmp_path])).detail


def test_a_domain_of_an_unknown_world_is_named(tmp_path: Path) -> None:
    (path,) = write(tmp_path, make_record())
    edit(path, lambda record: record["result"]["domains"][0].update(data_source="elsewhere"))
    assert "unknown world 'elsewhere'" in only(records.gates([tmp_path])).detail


@pytest.mark.parametrize(
    ("protocol", "asked"),
    [
        (MINI.model_copy(update={"label_maps": {"some": "table"}}), {"label_maps": ["some=table"]}),
        (find_protocol("mini", "equal"), {"budget": "equal"}),
        (find_protocol("paper", resampling="pseudo-inverse"), {"resampling": "pseudo-inverse"}),
    ],
)
def test_label_maps_the_track_and_the_resampling_belong_to_the_protocol(
    tmp_path: Path, protocol: Protocol, asked: dict[str, object]
) -> None:
    (path,) = write(tmp_path, make_record(protocol=protocol.name, protocol_id=protocol.id))
    assert "made under" in only(records.gates([tmp_path])).detail
    edit(path, lambda record: record["spec"]["passed"].update(asked))
    assert only(records.gates([tmp_path])).outcome == Outcome.OK


# Boards


@pytest.fixture
def committed(tmp_path: Path) -> Path:
    """Records with the board that the command line writes for them."""
    write(tmp_path, make_record(30, method="alone", role="undistilled"), make_record(40))
    page = tmp_path / MINI.id / boards.PAGE
    page.write_text(boards.text(page.parent) + "\n", encoding="utf-8")
    return page


def test_boards_of_their_records_pass_whatever_blank_lines_end_them(committed: Path) -> None:
    assert only(boards.gates(committed.parent.parent)).outcome == Outcome.OK


def test_the_first_line_that_differs_is_shown_with_the_command_that_repairs_it(
    committed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = committed.read_text(encoding="utf-8")
    committed.write_text(old.replace("40.0", "41.0"), encoding="utf-8")
    number = next(i for i, line in enumerate(old.splitlines(), 1) if "40.0" in line)
    gate = only(boards.gates(committed.parent.parent))
    assert (gate.outcome, gate.file) == (Outcome.FAIL, committed)
    assert f"line {number} is" in gate.detail
    command = gate.detail[gate.detail.index("kdbench leaderboard") :]
    monkeypatch.setattr("kdbench.cli.boards.default_reference", lambda: committed.parent.parent)
    (tmp_path / "empty").mkdir()
    words = shlex.split(command.replace('"$(mktemp -d)"', str(tmp_path / "empty")))
    done = CliRunner().invoke(app, words[1:])
    assert done.exit_code == 0, done.output
    assert only(boards.gates(committed.parent.parent)).outcome == Outcome.OK


def test_a_record_that_is_not_on_the_board_is_found(committed: Path) -> None:
    write(committed.parent.parent, make_record(20, method="two"))
    assert only(boards.gates(committed.parent.parent)).outcome == Outcome.FAIL


def test_without_committed_boards_there_is_nothing_to_look_at(tmp_path: Path) -> None:
    assert only(boards.gates(tmp_path)).outcome == Outcome.SKIP
    assert only(boards.gates(None)).outcome == Outcome.SKIP


# Smoke


@pytest.fixture
def pinned(run_cells: Callable[..., list[Done]], tmp_path: Path) -> Path:
    """The file of one pinned smoke cell; the folder of pins is tmp_path/reference."""
    run_cells(methods=("logit_kd",), settings=("temperature=2",), label="warm", label_fraction="1/2")
    shutil.move(tmp_path / "results", tmp_path / "reference")
    (path,) = (tmp_path / "reference").rglob("*.json")
    return path


def test_a_pin_of_this_machine_is_met_exactly_whatever_the_code_was(pinned: Path) -> None:
    edit(pinned, lambda record: record["spec"]["resolved"].update(key="0"))
    edit(pinned, lambda record: record["result"]["stages"][0].update(key="0"))
    gate = only(smoke.gates(pinned.parents[4]))
    assert (gate.name, gate.outcome, gate.detail) == (PIN, Outcome.OK, "exactly the pin")


def test_a_result_that_differs_here_fails_with_the_command_that_pins_again(pinned: Path) -> None:
    edit(pinned, lambda record: record["result"]["stages"][-1]["losses"].update(other=[0.5]))
    gate = only(smoke.gates(pinned.parents[4]))
    assert (gate.outcome, gate.file) == (Outcome.FAIL, pinned)
    assert "stages differ, mIoU by up to 0.00 points, in the environment and on the processor" in gate.detail
    assert gate.detail.endswith(
        "kdbench run --method logit_kd --pair dinov2-s:deit-s --benchmark g2c --seed 0,1,2 --track paper "
        "--label-fraction 1/2 --set temperature=2 --as warm "
        f"--no-references --protocol smoke --device cpu --results {pinned.parents[4]}"
    )


def elsewhere(record: Record) -> Record:
    """The same from another machine."""
    return record.model_copy(update={"run": record.run.model_copy(update={"host": {"processor": "another"}})})


@pytest.mark.parametrize(
    ("fresh", "allowed", "outcome", "said"),
    [
        (make_record(40.0), None, Outcome.OK, "exactly the pin"),
        (make_record(40.1), 9.0, Outcome.FAIL, "domains differ, mIoU by up to 0.10 points, in the environment"),
        (elsewhere(make_record(40.0)), None, Outcome.OK, "exactly the pin"),
        (elsewhere(make_record(40.1)), 0.2, Outcome.OK, "0.10 points, in another environment (allowed 0.20"),
        (elsewhere(make_record(39.7)), 0.2, Outcome.FAIL, "0.30 points, in another environment (allowed 0.20"),
        (elsewhere(make_record(40.1)), None, Outcome.FAIL, "fewer than 3 pinned seeds give no tolerance"),
        (make_record(error="no memory"), 9.0, Outcome.FAIL, "the cell failed: no memory"),
    ],
)
def test_only_another_environment_is_given_a_tolerance(
    fresh: Record, allowed: float | None, outcome: Outcome, said: str
) -> None:
    found, detail = smoke.compare(make_record(40.0), fresh, allowed)
    assert found == outcome
    assert said in detail


def test_what_is_counted_agrees_on_every_machine() -> None:
    fresh = elsewhere(make_record())
    assert fresh.result is not None
    fresh.result.parameters["deployed"] = 2
    outcome, detail = smoke.compare(make_record(), fresh, 100.0)
    assert outcome == Outcome.FAIL
    assert "parameters: not the pin's domains, steps, images, passes or parameters" in detail


def test_a_failed_pin_fails() -> None:
    outcome, detail = smoke.compare(make_record(error="no memory"), make_record(), 9.0)
    assert (outcome, detail) == (Outcome.FAIL, "the pin is of a failed cell: no memory.")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("protocol_id", "smoke-00000000", "the pin is of smoke-00000000 in synthetic"),
        ("method", "gone", "unknown method 'gone'"),
        ("config", {"heat": 2}, "unknown knob of method 'logit_kd' 'heat'"),
    ],
)
def test_a_pin_that_cannot_be_run_again_fails(pinned: Path, name: str, value: object, message: str) -> None:
    edit(pinned, lambda record: record["spec"]["resolved"].update({name: value}))
    gate = only(smoke.gates(pinned.parents[4]))
    assert gate.outcome == Outcome.FAIL
    assert message in gate.detail
    assert "pin again" in gate.detail


def test_nothing_pinned_is_a_failure_not_a_pass(tmp_path: Path) -> None:
    gate = only(smoke.gates(tmp_path))
    assert gate.outcome == Outcome.FAIL
    assert "nothing was compared" in gate.detail


def test_the_tolerance_is_the_range_of_three_pinned_seeds_or_more() -> None:
    seeds = [make_record(score).result for score in (40.0, 42.5, 41.0)]
    assert smoke.tolerance(seeds) == pytest.approx(2.5)
    assert smoke.tolerance(seeds[:2]) is None
    assert smoke.tolerance([*seeds[:2], None]) is None


# Scores against an earlier state

EARLIER = (40.0, 42.0, 41.0, 43.0, 39.0)


def against(tmp_path: Path, now: Sequence[Record], before: Sequence[Record]) -> list[Gate]:
    write(tmp_path / "now", *now)
    write(tmp_path / "before", *before)
    return list(scores.gates(tmp_path / "now", None, tmp_path / "before"))


def row(values: Sequence[float], **resolved: Any) -> list[Record]:
    return [make_record(value, seed=seed, **resolved) for seed, value in enumerate(values)]


def test_the_same_records_have_not_fallen(tmp_path: Path) -> None:
    gate = only(against(tmp_path, row(EARLIER), row(EARLIER)))
    assert gate.outcome == Outcome.OK
    assert gate.detail.startswith("1 rows, lowest change +0.00")
    assert "1 not found worse over 5 seeds" in gate.detail


def test_a_significant_fall_fails_with_scipys_p(tmp_path: Path) -> None:
    now = (39.0, 41.5, 40.0, 42.0, 38.5)
    gate = only(against(tmp_path, row(now), row(EARLIER)))
    assert gate.outcome == Outcome.FAIL
    assert "fell by 0.80 points over 5 shared seeds" in gate.detail
    assert f"p {stats.ttest_rel(now, EARLIER).pvalue:.3f}, corrected" in gate.detail


def test_a_fall_within_the_scatter_and_a_rise_pass(tmp_path: Path) -> None:
    now = (35.0, 44.0, 41.0, 40.0, 41.0)
    assert stats.ttest_rel(now, EARLIER).pvalue > 0.05
    assert only(against(tmp_path, row(now), row(EARLIER))).outcome == Outcome.OK
    risen = [value + 1 for value in EARLIER]
    assert only(against(tmp_path, row(risen), row(EARLIER))).outcome == Outcome.OK


def test_p_is_corrected_over_the_methods_of_a_board(tmp_path: Path) -> None:
    now = (39.4, 41.8, 40.5, 42.1, 39.0)
    p = stats.ttest_rel(now, EARLIER).pvalue
    assert 0.05 / 2 < p < 0.05
    assert only(against(tmp_path / "alone", row(now), row(EARLIER))).outcome == Outcome.FAIL
    other = row((41.0, 41.0, 42.0, 42.0, 39.5), method="two")
    gate = only(against(tmp_path / "both", [*row(now), *other], [*row(EARLIER), *row(EARLIER, method="two")]))
    assert gate.outcome == Outcome.OK


def test_rows_without_a_verdict_do_not_weaken_those_that_have_one(tmp_path: Path) -> None:
    now = (39.4, 41.8, 40.5, 42.1, 39.0)
    begun, before = (
        [record for number in range(6) for record in row(values, method=f"begun{number}")]
        for values in ((40.0, 40.1), (40.0, 40.0))
    )
    gate = only(against(tmp_path, [*row(now), *begun], [*row(EARLIER), *before]))
    assert (gate.outcome, "fell by" in gate.detail) == (Outcome.FAIL, True)


@pytest.mark.parametrize(("fall", "outcome"), [(2.9, Outcome.OK), (3.1, Outcome.FAIL)])
def test_with_few_seeds_only_a_large_fall_fails(tmp_path: Path, fall: float, outcome: Outcome) -> None:
    now = [value - fall for value in EARLIER[:4]]
    gate = only(against(tmp_path, row(now), row(EARLIER)))
    assert gate.outcome == outcome
    assert "not resolvable below 5" in gate.detail
    assert "3.0 points" in gate.detail


def test_only_shared_cells_are_compared(tmp_path: Path) -> None:
    now = [*row(EARLIER), make_record(5.0, seed=9), make_record(5.0, method="new")]
    before = [*row(EARLIER), make_record(90.0, seed=8), make_record(90.0, method="old")]
    gate = only(against(tmp_path, now, before))
    assert (gate.outcome, gate.detail[:6]) == (Outcome.OK, "1 rows")


def test_nothing_shared_is_a_failure_not_a_pass(tmp_path: Path) -> None:
    gate = only(against(tmp_path, row(EARLIER), row(EARLIER, benchmark="c")))
    assert gate.outcome == Outcome.FAIL
    assert "nothing was compared" in gate.detail


def test_a_cell_that_fails_now_and_one_of_another_measurement_are_named(tmp_path: Path) -> None:
    now = [make_record(error="no memory\nhere"), make_record(classes=["road", "sky", "bus"], method="two")]
    failed, other = against(tmp_path, now, [make_record(), make_record(method="two")])
    assert failed.outcome == other.outcome == Outcome.FAIL
    assert "fails, which it did not: no memory." in failed.detail
    assert "other domains or classes" in other.detail


def test_an_earlier_state_without_records_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KdbenchError, match="no record lies there"):
        against(tmp_path, row(EARLIER), [])


# Speed


def costs(folder: Path, **measured: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    entries = [{"name": "n", "extra_info": {"method": name, "share": share}} for name, share in measured.items()]
    other = {"name": "step", "extra_info": {"ratio": 1.0}}
    (folder / shares.FILE).write_text(json.dumps({"benchmarks": [*entries, other]}), encoding="utf-8")


def timed(tmp_path: Path, now: dict[str, float], before: dict[str, float]) -> list[Gate]:
    costs(tmp_path / "now", **now)
    costs(tmp_path / "before", **before)
    return list(speed.gates(tmp_path / "now", None, tmp_path / "before"))


def test_a_slower_step_fails_by_its_ratio(tmp_path: Path) -> None:
    gate = only(timed(tmp_path, {"one": 0.75, "two": 0.1}, {"one": 0.5, "two": 0.1}))
    assert gate.outcome == Outcome.FAIL
    assert "one's step takes 4.00 undistilled steps, before 2.00: 2.00 times as long" in gate.detail


def test_a_step_within_the_ratio_or_faster_passes(tmp_path: Path) -> None:
    gate = only(timed(tmp_path, {"one": 0.55, "two": 0.0}, {"one": 0.5, "two": 0.4}))
    assert gate.outcome == Outcome.OK
    assert "highest 1.11 times (one" in gate.detail


def test_the_committed_costs_stand_in_for_those_of_a_run(tmp_path: Path) -> None:
    costs(tmp_path / "reference", one=0.75)
    costs(tmp_path / "before", one=0.5)
    gate = only(speed.gates(tmp_path / "now", tmp_path / "reference", tmp_path / "before"))
    assert "2.00 times as long" in gate.detail


def test_costs_that_cannot_be_compared(tmp_path: Path) -> None:
    assert only(timed(tmp_path, {"one": 0.5}, {"two": 0.5})).outcome == Outcome.FAIL
    (tmp_path / "now" / shares.FILE).unlink()
    assert only(speed.gates(tmp_path / "now", None, tmp_path / "before")).outcome == Outcome.FAIL
    assert only(speed.gates(tmp_path / "before", None, tmp_path / "now")).outcome == Outcome.SKIP


@pytest.mark.parametrize(
    "text", ["", "{}", '{"benchmarks": []}', '{"benchmarks": [{"extra_info": {"method": "a", "share": 1.0}}]}']
)
def test_a_file_without_costs_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    (tmp_path / shares.FILE).write_text(text, encoding="utf-8")
    with pytest.raises(KdbenchError, match=rf"{shares.FILE} holds no .*Measure: python -m pytest"):
        shares.read_costs(tmp_path / shares.FILE)


# The contract

PLUGIN = """
    from kdbench.method import Method


    class Mine(Method):
        def loss(self, batch, student, teacher):
            output = student(batch.image)
            return {name: value * WEIGHT for name, value in student.task_loss(output, batch.label).items()}
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """A plug-in's file whose losses have this weight, for one pair."""
    monkeypatch.setattr(conformance, "PAIRS", ("dinov2-s:deit-s",))

    def make(weight: str) -> str:
        path = tmp_path / "mine.py"
        path.write_text(dedent(PLUGIN).replace("WEIGHT", weight), encoding="utf-8")
        return str(path)

    return make


def test_a_sound_plug_in_passes_in_one_line(plugin: Callable[[str], str]) -> None:
    gate = only(contract.gates(plugin("1.0")))
    assert (gate.outcome, gate.file) == (Outcome.OK, None)


def test_every_check_that_failed_is_a_line_with_what_is_asked(plugin: Callable[[str], str]) -> None:
    path = plugin("float('nan')")
    found = {gate.name: gate for gate in contract.gates(path)}
    gate = found[f"method {path} losses_are_finite_scalars dinov2-s:deit-s"]
    assert (gate.outcome, gate.file) == (Outcome.FAIL, Path(path))
    assert "is nan" in gate.detail
    assert "The contract: Every stage returns named scalars" in gate.detail


def test_a_fault_that_shows_everywhere_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance, "PAIRS", ("dinov2-s:deit-s", "dinov2-b:deit-s"))
    path = tmp_path / "flat.py"
    path.write_text(
        dedent(PLUGIN).replace("* WEIGHT for", "for").replace("{name: value", "[value").replace("()}", "()]")
    )
    first, *others = contract.gates(str(path))
    assert first.name == f"method {path} losses_are_finite_scalars dinov2-s:deit-s"
    assert re.search(r"The same in [1-9]\d* further checks and pairs\.", first.detail)
    assert len({gate.detail.partition(" The contract")[0] for gate in (first, *others)}) == 1 + len(others)


@pytest.mark.parametrize(("name", "said"), [("nowhere.py", "there is no method file"), ("nobody", "unknown method")])
def test_a_plug_in_that_is_not_there_fails(name: str, said: str) -> None:
    gate = only(contract.gates(name))
    assert gate.outcome == Outcome.FAIL
    assert said in gate.detail


# What is printed and written


def test_a_line_is_one_line() -> None:
    assert Gate("records", Outcome.OK, "two\n  words").line == "ok    records: two words"


def test_an_annotation_escapes_what_github_reads() -> None:
    gate = Gate("a: b", Outcome.FAIL, "50 % of it,\nhere: there", Path("some,where") / "x.json")
    assert annotation(gate) == (
        "::error file=some%2Cwhere/x.json,title=kdbench check%3A a%3A b::50 %25 of it,%0Ahere: there"
    )


def test_a_junit_report_counts_and_holds_every_gate() -> None:
    gates = [
        Gate("good", Outcome.OK, "fine"),
        Gate("bad", Outcome.FAIL, "1 < 2 & \x1b[1m"),
        Gate("none", Outcome.SKIP, "nothing"),
    ]
    (suite,) = ElementTree.fromstring(junit(gates))
    assert {key: suite.get(key) for key in ("tests", "failures", "skipped", "errors")} == {
        "tests": "3",
        "failures": "1",
        "skipped": "1",
        "errors": "0",
    }
    assert [(case.get("name"), [child.tag for child in case]) for case in suite] == [
        ("good", ["system-out"]),
        ("bad", ["failure"]),
        ("none", ["skipped"]),
    ]
    assert suite[1][0].get("message") == "1 < 2 & \ufffd[1m"


def check(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def test_the_status_and_every_output_tell_a_failure(tmp_path: Path) -> None:
    (path,) = write(tmp_path, make_record())
    sound = check("--results", tmp_path, "--reference", tmp_path, "--annotations", "--junit", tmp_path / "r.xml")
    assert sound.exit_code == 0
    assert [line[:4] for line in sound.stdout.splitlines()] == ["ok  ", "skip"]
    path.write_text("{}", encoding="utf-8")
    report = tmp_path / "reports" / "r.xml"
    broken = check("--results", tmp_path, "--reference", tmp_path, "--annotations", "--junit", report)
    assert broken.exit_code == 1
    assert "FAIL  records: " in broken.stdout
    assert "::error file=" in broken.stdout
    assert ElementTree.parse(report).getroot()[0].get("failures") == "1"


@pytest.mark.parametrize("option", ["--results", "--reference", "--against"])
def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path, option: str) -> None:
    failed = check(option, tmp_path / "none")
    assert isinstance(failed.exception, KdbenchError)
    assert failed.exception.status == 2
    assert option in str(failed.exception)


def test_without_training_gates_torch_is_not_imported(tmp_path: Path) -> None:
    write(tmp_path, make_record())
    costs(tmp_path, one=0.5)
    code = (
        "import sys; from kdbench.cli import app;"
        f"app(['check', '--reference', {str(tmp_path)!r}, '--against', {str(tmp_path)!r}], standalone_mode=False);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The page

PAGE = Path(__file__).parents[2] / "docs" / "ci.md"


def test_the_page_has_the_numbers_and_the_options_of_the_code() -> None:
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert f"at least {smoke.ENOUGH} pinned seeds" in page
    assert f"From {ENOUGH} shared seeds on" in page
    assert f"a fall of more than {scores.TOLERANCE} points" in page
    assert f"more than {speed.RATIO} times as long" in page
    assert speed.MEASURE.replace("DIR", "results/reference") in page
    asked = {
        option for command in re.findall(r"kdbench check[^`|]*", page) for option in re.findall(r"--[a-z]+", command)
    }
    offered = {name for parameter in get_command(app).commands["check"].params for name in parameter.opts}
    assert offered - asked == {"--results", "--reference", "--help"} & offered


def test_the_commands_of_the_page_are_those_of_kdbench() -> None:
    commands = re.findall(r"^[^#\n]*?(kdbench (?:run|leaderboard|check) --.*)$", PAGE.read_text(encoding="utf-8"), re.M)
    assert len(commands) > 5
    for command in commands:
        verb, *words = re.split(r"  +", command)[0].split()[1:]
        offered = {name for parameter in get_command(app).commands[verb].params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= offered, command
