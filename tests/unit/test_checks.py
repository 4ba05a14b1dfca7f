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
from typing import Any

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from kdbench import conformance
from kdbench.cli import app
from kdbench.engine.grid import Done
from kdbench.errors import KdbenchError
from kdbench.models.toy import SHIPPED, toy_card
from kdbench.protocol import MINI, SMOKE, Protocol, find_protocol
from kdbench.records import DomainResult, Record, Resolved, Result, RunInfo, Spec
from kdbench.report import step_costs
from kdbench.synthetic import WORLDS
from kdbench.tools.ci_checks import boards, contract, records, scores, smoke, speed
from kdbench.tools.ci_checks.result import CheckResult


def make_record(score: float = 40.0, error: str | None = None, **resolved: Any) -> Record:
    """A record of three classes that all have this IoU in percent on the one target."""
    fields: dict[str, Any] = {
        "protocol": "mini", "protocol_id": MINI.id, "decoder": "light", "data_source": WORLDS["street"],
        "benchmark": "b", "title": "A", "classes": ["road", "sky", "car"], "teacher": "big", "student": "small",
        "model_set": "toy-v2", "family": "F2L", "method": "one", "role": "distilled", "options": {}, "variant": "",
        "seed": 0, "footnote": "", "key": "0",
    } | resolved  # fmt: skip
    cell = Resolved(**fields)
    right = round(200 * score)
    confusion = np.eye(3, dtype=int) * right + np.roll(np.eye(3, dtype=int), 1, axis=1) * ((20_000 - right) // 2)
    domain = DomainResult(
        domain="t", role="target", data_source=cell.data_source, images=9, confusion=confusion,
        earlier=np.zeros((0, 2, 3), int),
    )  # fmt: skip
    run = RunInfo(
        started="", seconds=1, stage_seconds={}, cached=[], peak_memory_mb=1, host={}, versions={}, revision=""
    )
    result = None if error else Result(domains=[domain], stages=[], parameters={"deployed": 1})
    spec = Spec(passed={}, resolved=cell)
    return Record(status="failed" if error else "done", error=error, spec=spec, result=result, run=run)


def write(folder: Path, *held: Record) -> list[Path]:
    """Write records to their places below a folder."""
    paths = [folder / record.path() for record in held]
    for path, record in zip(paths, held, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(record.to_json(), encoding="utf-8")
    return paths


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    change(record)
    path.write_text(json.dumps(record), encoding="utf-8")


def only(found: Any) -> CheckResult:
    (result,) = found
    return result


# Records


def test_sound_records_pass_in_one_line_and_none_are_skipped(tmp_path: Path) -> None:
    assert only(records.check([tmp_path])).status == only(records.check([])).status == "skip"
    write(tmp_path, make_record(), make_record(seed=1))
    result = only(records.check([tmp_path]))
    assert (result.status, result.detail[:2]) == ("ok", "2 ")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("decoder", None, "not a valid record"),
        ("protocol", "tiny", "unknown protocol 'tiny'. Did you mean 'mini'?"),
        ("protocol_id", "mini-00000000", f"made under mini-00000000; today's protocol is {MINI.id}"),
        ("data_source", "elsewhere", "unknown data source 'elsewhere'"),
        ("seed", 7, "holds the record of"),
        ("weights", {"resnet50": "0" * 16}, "began with other weights of resnet50 than those shipped"),
    ],
)
def test_a_record_with_a_fault_is_named_with_its_repair(tmp_path: Path, name: str, value: object, message: str) -> None:
    _, path = write(tmp_path, make_record(), make_record(seed=1))
    edit(path, lambda record: record["spec"]["resolved"].update({name: value}))
    result = only(records.check([tmp_path]))
    assert (result.status, result.file) == ("FAIL", path)
    assert message in result.detail
    assert str(path) in result.detail
    assert "Remove it and run its cell again" in result.detail


def test_weights_are_compared_with_those_shipped(tmp_path: Path) -> None:
    shipped = {"dinov2-l": toy_card(SHIPPED, "dinov2-l").weights, "mine": "key-v1"}
    (path,) = write(tmp_path, make_record(teacher="dinov2-l", student="mine", weights=shipped))
    assert only(records.check([tmp_path])).status == "ok"
    edit(path, lambda record: record["spec"]["resolved"]["weights"].update({"dinov2-l": "0" * 16}))
    assert "began with other weights of dinov2-l than those shipped" in only(records.check([tmp_path])).detail


@pytest.mark.parametrize(
    ("protocol", "asked"),
    [
        (MINI.model_copy(update={"label_maps": {"some": "table"}}), {"label_maps": ["some=table"]}),
        (find_protocol("mini", "equal"), {"budget": "equal"}),
        (find_protocol("paper", resampling="pseudo-inverse"), {"resampling": "pseudo-inverse"}),
    ],
)
def test_the_requests_choices_belong_to_the_protocol(
    tmp_path: Path, protocol: Protocol, asked: dict[str, object]
) -> None:
    (path,) = write(tmp_path, make_record(protocol=protocol.name, protocol_id=protocol.id))
    assert "made under" in only(records.check([tmp_path])).detail
    edit(path, lambda record: record["spec"]["passed"].update(asked))
    assert only(records.check([tmp_path])).status == "ok"


# Boards


@pytest.fixture
def committed(tmp_path: Path) -> Path:
    """Records with the board that the command line writes for them."""
    write(tmp_path, make_record(30, method="alone", role="undistilled"), make_record(40))
    page = tmp_path / MINI.id / boards.PAGE
    page.write_text(boards.text(page.parent) + "\n", encoding="utf-8")
    return page


def test_the_first_line_that_differs_is_shown_with_the_command_that_repairs_it(
    committed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = committed.parent.parent
    assert only(boards.check(reference)).status == "ok"
    old = committed.read_text(encoding="utf-8")
    committed.write_text(old.replace("40.0", "41.0"), encoding="utf-8")
    number = next(i for i, line in enumerate(old.splitlines(), 1) if "40.0" in line)
    result = only(boards.check(reference))
    assert (result.status, result.file) == ("FAIL", committed)
    assert f"line {number} is" in result.detail
    command = result.detail[result.detail.index("kdbench leaderboard") :]
    monkeypatch.setattr("kdbench.cli.boards.default_reference", lambda: reference)
    (tmp_path / "empty").mkdir()
    words = shlex.split(command.replace('"$(mktemp -d)"', str(tmp_path / "empty")))
    done = CliRunner().invoke(app, words[1:])
    assert done.exit_code == 0, done.output
    assert only(boards.check(reference)).status == "ok"


def test_a_record_that_is_not_on_the_board_is_found_and_no_board_is_skipped(committed: Path) -> None:
    write(committed.parent.parent, make_record(20, method="two"))
    assert only(boards.check(committed.parent.parent)).status == "FAIL"
    committed.unlink()
    assert only(boards.check(committed.parent.parent)).status == only(boards.check(None)).status == "skip"


# Smoke


@pytest.fixture
def pinned(run_cells: Callable[..., list[Done]], tmp_path: Path) -> Path:
    """The file of one pinned smoke cell; the folder of pins is tmp_path/reference."""
    run_cells(methods=("logit_kd",), settings=("temperature=2",), label="warm", label_fraction="1/2")
    shutil.move(tmp_path / "results", tmp_path / "reference")
    (path,) = (tmp_path / "reference").rglob("*.json")
    return path


def test_a_pin_is_met_whatever_its_keys_and_a_difference_fails_with_the_command_that_pins_again(pinned: Path) -> None:
    root = pinned.parents[4]
    edit(pinned, lambda record: record["spec"]["resolved"].update(key="0"))
    edit(pinned, lambda record: record["result"]["stages"][0].update(key="0"))
    result = only(smoke.check(root))
    name = f"{SMOKE.id} g2c dinov2-s:deit-s logit_kd[warm] seed 0"
    assert (result.name, result.status, result.detail) == (name, "ok", "exactly the pin")
    edit(pinned, lambda record: record["result"]["stages"][-1]["losses"].update(other=[0.5]))
    result = only(smoke.check(root))
    assert (result.status, result.file) == ("FAIL", pinned)
    assert "stages differ, mIoU by up to 0.00 points, in the environment and on the processor" in result.detail
    assert result.detail.endswith(
        "kdbench run --method logit_kd --pair dinov2-s:deit-s --benchmark g2c --protocol smoke --seed 0,1,2 "
        "--label-fraction 1/2 --set temperature=2 --as warm --no-references --device cpu "
        f"--results {root}"
    )


def elsewhere(record: Record) -> Record:
    """The same from another machine."""
    return record.model_copy(update={"run": record.run.model_copy(update={"host": {"processor": "another"}})})


def with_parameters(record: Record, count: int) -> Record:
    assert record.result is not None
    record.result.parameters["deployed"] = count
    return record


@pytest.mark.parametrize(
    ("fresh", "allowed", "status", "said"),
    [
        (make_record(40.0), None, "ok", "exactly the pin"),
        (make_record(40.1), 9.0, "FAIL", "domains differ, mIoU by up to 0.10 points, in the environment"),
        (elsewhere(make_record(40.0)), None, "ok", "exactly the pin"),
        (elsewhere(make_record(40.1)), 0.2, "ok", "0.10 points, in another environment (allowed 0.20"),
        (elsewhere(make_record(39.7)), 0.2, "FAIL", "0.30 points, in another environment (allowed 0.20"),
        (elsewhere(make_record(40.1)), None, "FAIL", "fewer than 3 pinned seeds give no tolerance"),
        (with_parameters(elsewhere(make_record()), 2), 100.0, "FAIL", "parameters: not the pin's domains"),
        (make_record(error="no memory"), 9.0, "FAIL", "the cell failed: no memory"),
    ],
)
def test_a_rerun_is_compared_by_its_environment(fresh: Record, allowed: float | None, status: str, said: str) -> None:
    found, detail = smoke.compare(make_record(40.0), fresh, allowed)
    assert found == status
    assert said in detail
    pin_failed = smoke.compare(make_record(error="no memory"), make_record(), 9.0)
    assert pin_failed == ("FAIL", "the pin is of a failed cell: no memory.")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("protocol_id", "smoke-00000000", "the pin is of smoke-00000000 in synthetic"),
        ("method", "gone", "unknown method 'gone'"),
        ("options", {"heat": 2}, "unknown option 'heat' of method 'logit_kd'"),
    ],
)
def test_a_pin_that_cannot_be_run_again_fails(pinned: Path, name: str, value: object, message: str) -> None:
    edit(pinned, lambda record: record["spec"]["resolved"].update({name: value}))
    result = only(smoke.check(pinned.parents[4]))
    assert result.status == "FAIL"
    assert message in result.detail
    assert "pin again" in result.detail


def test_nothing_pinned_is_a_failure_not_a_pass(tmp_path: Path) -> None:
    result = only(smoke.check(tmp_path))
    assert result.status == "FAIL"
    assert "nothing was compared" in result.detail


def test_the_tolerance_is_the_range_of_three_pinned_seeds_or_more() -> None:
    seeds = [make_record(score).result for score in (40.0, 42.5, 41.0)]
    assert smoke.tolerance(seeds) == pytest.approx(2.5)
    assert smoke.tolerance(seeds[:2]) is None
    assert smoke.tolerance([*seeds[:2], None]) is None


# Scores against an earlier state

EARLIER = (40.0, 42.0, 41.0, 43.0, 39.0)
WORSE = (39.4, 41.8, 40.5, 42.1, 39.0)
"""Worse than EARLIER alone (p between 0.025 and 0.05), not with two methods on the board."""


def against(tmp_path: Path, now: Sequence[Record], before: Sequence[Record]) -> list[CheckResult]:
    write(tmp_path / "now", *now)
    write(tmp_path / "before", *before)
    return list(scores.check(tmp_path / "now", None, tmp_path / "before"))


def row(values: Sequence[float], **resolved: Any) -> list[Record]:
    return [make_record(value, seed=seed, **resolved) for seed, value in enumerate(values)]


def test_the_same_records_have_not_fallen(tmp_path: Path) -> None:
    result = only(against(tmp_path, row(EARLIER), row(EARLIER)))
    assert result.status == "ok"
    assert result.detail.startswith("1 rows, lowest change +0.00")
    assert "1 not found worse over 5 seeds" in result.detail


def test_a_significant_fall_fails_with_scipys_p(tmp_path: Path) -> None:
    now = (39.0, 41.5, 40.0, 42.0, 38.5)
    result = only(against(tmp_path, row(now), row(EARLIER)))
    assert result.status == "FAIL"
    assert "fell by 0.80 points over 5 shared seeds" in result.detail
    assert f"p {stats.ttest_rel(now, EARLIER).pvalue:.3f}, corrected" in result.detail


@pytest.mark.parametrize("now", [(35.0, 44.0, 41.0, 40.0, 41.0), [value + 1 for value in EARLIER]])
def test_a_fall_within_the_scatter_and_a_rise_pass(tmp_path: Path, now: Sequence[float]) -> None:
    assert only(against(tmp_path, row(now), row(EARLIER))).status == "ok"


def test_p_is_corrected_over_the_methods_of_a_board_that_have_a_verdict(tmp_path: Path) -> None:
    assert 0.05 / 2 < stats.ttest_rel(WORSE, EARLIER).pvalue < 0.05
    assert only(against(tmp_path / "alone", row(WORSE), row(EARLIER))).status == "FAIL"
    other = row((41.0, 41.0, 42.0, 42.0, 39.5), method="two")
    both = against(tmp_path / "both", [*row(WORSE), *other], [*row(EARLIER), *row(EARLIER, method="two")])
    assert only(both).status == "ok"
    begun, before = (
        [record for number in range(6) for record in row(values, method=f"begun{number}")]
        for values in ((40.0, 40.1), (40.0, 40.0))
    )
    result = only(against(tmp_path / "begun", [*row(WORSE), *begun], [*row(EARLIER), *before]))
    assert (result.status, "fell by" in result.detail) == ("FAIL", True)


@pytest.mark.parametrize(("fall", "status"), [(2.9, "ok"), (3.1, "FAIL")])
def test_with_few_seeds_only_a_large_fall_fails(tmp_path: Path, fall: float, status: str) -> None:
    now = [value - fall for value in EARLIER[:4]]
    result = only(against(tmp_path, row(now), row(EARLIER)))
    assert result.status == status
    assert "not resolvable below 5" in result.detail
    assert "3.0 points" in result.detail


def test_only_shared_cells_are_compared_and_none_shared_is_a_failure(tmp_path: Path) -> None:
    now = [*row(EARLIER), make_record(5.0, seed=9), make_record(5.0, method="new")]
    before = [*row(EARLIER), make_record(90.0, seed=8), make_record(90.0, method="old")]
    result = only(against(tmp_path / "a", now, before))
    assert (result.status, result.detail[:6]) == ("ok", "1 rows")
    result = only(against(tmp_path / "b", row(EARLIER), row(EARLIER, benchmark="c")))
    assert result.status == "FAIL"
    assert "nothing was compared" in result.detail
    with pytest.raises(KdbenchError, match="no record lies there"):
        against(tmp_path / "c", row(EARLIER), [])


def test_a_cell_that_fails_now_and_one_of_another_measurement_are_named(tmp_path: Path) -> None:
    now = [make_record(error="no memory\nhere"), make_record(classes=["road", "sky", "bus"], method="two")]
    failed, other = against(tmp_path, now, [make_record(), make_record(method="two")])
    assert failed.status == other.status == "FAIL"
    assert "fails, which it did not: no memory." in failed.detail
    assert "other domains or classes" in other.detail


# Speed


def costs(folder: Path, **measured: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    entries = [{"name": "n", "extra_info": {"method": name, "share": share}} for name, share in measured.items()]
    other = {"name": "step", "extra_info": {"ratio": 1.0}}
    (folder / step_costs.FILE).write_text(json.dumps({"benchmarks": [*entries, other]}), encoding="utf-8")


def timed(tmp_path: Path, now: dict[str, float], before: dict[str, float]) -> CheckResult:
    costs(tmp_path / "now", **now)
    costs(tmp_path / "before", **before)
    return only(speed.check(tmp_path / "now", None, tmp_path / "before"))


def test_a_slower_step_fails_by_its_ratio(tmp_path: Path) -> None:
    slower = timed(tmp_path, {"one": 0.75, "two": 0.1}, {"one": 0.5, "two": 0.1})
    assert slower.status == "FAIL"
    assert "one's step takes 4.00 undistilled steps, before 2.00: 2.00 times as long" in slower.detail
    result = timed(tmp_path, {"one": 0.55, "two": 0.0}, {"one": 0.5, "two": 0.4})
    assert result.status == "ok"
    assert "highest 1.11 times (one" in result.detail


def test_the_committed_costs_stand_in_for_those_of_a_run(tmp_path: Path) -> None:
    costs(tmp_path / "reference", one=0.75)
    costs(tmp_path / "before", one=0.5)
    result = only(speed.check(tmp_path / "now", tmp_path / "reference", tmp_path / "before"))
    assert "2.00 times as long" in result.detail


def test_costs_that_cannot_be_compared(tmp_path: Path) -> None:
    assert timed(tmp_path, {"one": 0.5}, {"two": 0.5}).status == "FAIL"
    (tmp_path / "now" / step_costs.FILE).unlink()
    assert only(speed.check(tmp_path / "now", None, tmp_path / "before")).status == "FAIL"
    assert only(speed.check(tmp_path / "before", None, tmp_path / "now")).status == "skip"


@pytest.mark.parametrize(
    "text", ["", "{}", '{"benchmarks": []}', '{"benchmarks": [{"extra_info": {"method": "a", "share": 1.0}}]}']
)
def test_a_file_without_costs_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    (tmp_path / step_costs.FILE).write_text(text, encoding="utf-8")
    with pytest.raises(KdbenchError, match=rf"{step_costs.FILE} holds no .*Measure: python -m pytest"):
        step_costs.read_costs(tmp_path / step_costs.FILE)


# The contract


LOSS = "    def loss(self, batch, student, teacher):\n        output = student(batch.image)\n        return {}\n"


@pytest.fixture
def checked(plugin: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[CheckResult]]:
    """Checks a plug-in whose loss returns this, on two pairs."""
    monkeypatch.setattr(conformance, "PAIRS", ("dinov2-s:deit-s", "dinov2-b:deit-s"))
    return lambda returned: list(contract.check(plugin("mine", LOSS.format(returned))))


def test_a_sound_plug_in_passes_in_one_line(checked: Callable[[str], list[CheckResult]]) -> None:
    result = only(checked("student.task_loss(output, batch.label)"))
    assert (result.status, result.file) == ("ok", None)


def test_a_fault_is_told_once_with_what_the_contract_asks(
    checked: Callable[[str], list[CheckResult]], tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    found = checked("{n: v * float('nan') for n, v in student.task_loss(output, batch.label).items()}")
    (result,) = [each for each in found if each.name == f"method {path} losses_are_finite_scalars dinov2-s:deit-s"]
    assert (result.status, result.file) == ("FAIL", path)
    assert "is nan" in result.detail
    assert "The contract: Every stage returns named scalars" in result.detail
    first, *others = checked("[output]")
    assert re.search(r"The same in [1-9]\d* further checks and pairs\.", first.detail)
    assert len({each.detail.partition(" The contract")[0] for each in (first, *others)}) == 1 + len(others)


# What is printed


def test_a_line_is_one_line_and_an_annotation_escapes_what_github_reads() -> None:
    assert CheckResult("records", "ok", "two\n  words").line == "ok    records: two words"
    result = CheckResult("a: b", "FAIL", "50 % of it,\nhere: there", Path("some,where") / "x.json")
    assert result.annotation == (
        "::error file=some%2Cwhere/x.json,title=kdbench check%3A a%3A b::50 %25 of it,%0Ahere: there"
    )


def check(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def test_the_status_and_every_output_tell_a_failure(tmp_path: Path) -> None:
    (path,) = write(tmp_path, make_record())
    sound = check("--results", tmp_path, "--reference", tmp_path, "--annotations")
    assert sound.exit_code == 0
    assert [line[:4] for line in sound.stdout.splitlines()] == ["ok  ", "skip", "skip"]
    path.write_text("{}", encoding="utf-8")
    broken = check("--results", tmp_path, "--reference", tmp_path, "--annotations")
    assert broken.exit_code == 1
    assert "FAIL  records: " in broken.stdout
    assert "::error file=" in broken.stdout


def test_without_training_checks_torch_is_not_imported(tmp_path: Path) -> None:
    write(tmp_path, make_record())
    costs(tmp_path, one=0.5)
    code = (
        "import sys; from kdbench.cli import app;"
        f"app(['check', '--reference', {str(tmp_path)!r}, '--against', {str(tmp_path)!r}], standalone_mode=False);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
