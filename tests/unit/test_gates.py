"""`kdbench check`: what passes and what must not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.engine.grid import Done
from kdbench.gates import gates


@pytest.fixture
def pinned(run_cells: Callable[..., list[Done]], tmp_path: Path) -> Path:
    """A folder of reference records with one smoke cell."""
    run_cells(methods=("logit_kd",), settings=("temperature=2",), label="warm")
    shutil.move(tmp_path / "results", tmp_path / "reference")
    return tmp_path / "reference"


def edit(folder: Path, change: Callable[[dict], None]) -> None:
    (path,) = folder.rglob("*.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    change(record)
    path.write_text(json.dumps(record), encoding="utf-8")


def outcome(tmp_path: Path, reference: Path) -> dict[str, tuple[bool, str]]:
    return {gate.name: (gate.passed, gate.detail) for gate in gates(tmp_path / "none", reference)}


def test_a_pin_of_this_machine_is_met_exactly(pinned: Path, tmp_path: Path) -> None:
    found = outcome(tmp_path, pinned)
    assert found["every record validates"][0]
    assert found["pinned g2c dinov2-s:deit-s logit_kd@warm"] == (True, "identical result")


def test_a_changed_result_fails_where_the_environment_is_equal(pinned: Path, tmp_path: Path) -> None:
    edit(pinned, lambda record: record["result"]["parameters"].update(deployed=1))
    passed, detail = outcome(tmp_path, pinned)["pinned g2c dinov2-s:deit-s logit_kd@warm"]
    assert not passed
    assert "differs in an equal environment" in detail


def test_another_environment_is_held_to_the_tolerance(pinned: Path, tmp_path: Path) -> None:
    edit(pinned, lambda record: record["run"]["versions"].update(torch="0.0"))
    passed, detail = outcome(tmp_path, pinned)["pinned g2c dinov2-s:deit-s logit_kd@warm"]
    assert passed
    assert "within 0.00" in detail


def test_a_record_that_does_not_validate_is_named(pinned: Path, tmp_path: Path) -> None:
    edit(pinned, lambda record: record["spec"]["resolved"].pop("decoder"))
    passed, detail = outcome(tmp_path, pinned)["every record validates"]
    assert not passed
    assert "logit_kd@warm-s0.json" in detail


def test_a_pin_of_another_protocol_says_so(pinned: Path, tmp_path: Path) -> None:
    edit(pinned, lambda record: record["spec"]["resolved"].update(protocol_id="smoke-00000000"))
    passed, detail = outcome(tmp_path, pinned)["pinned g2c dinov2-s:deit-s logit_kd@warm"]
    assert not passed
    assert "pin again" in detail


def test_nothing_pinned_is_a_failure_not_a_pass(tmp_path: Path) -> None:
    (tmp_path / "reference").mkdir()
    assert not outcome(tmp_path, tmp_path / "reference")["pinned cells agree"][0]
