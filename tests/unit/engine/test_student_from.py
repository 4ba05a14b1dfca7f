"""Students that start from a user's file: the stages that are left, what a record says, released files' layouts."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import kdbench
from kdbench.api import run_command
from kdbench.cli import app
from kdbench.engine.grid import Done
from kdbench.engine.plan import make_plan
from kdbench.errors import KdbenchError
from kdbench.models.backbones import build_toy
from kdbench.models.registry import MODELS
from kdbench.records import read_record, record_files

Run = Callable[..., list[Done]]


@pytest.fixture
def released(run_cells: Run, plan_cells: Callable[..., Any], tmp_path: Path) -> Path:
    """The student that GKD's stages before the task leave, as a file."""
    run_cells(results=tmp_path / "elsewhere")
    context, (cell,) = plan_cells()
    (source,) = (stage for stage in make_plan(context, cell).stages if stage.stage.name == "source")
    path = tmp_path / "student.safetensors"
    save_file(dict(source.trained("student.encoder", 0).state()), path)
    return path


def test_a_student_goes_on_where_the_file_ends(run_cells: Run, released: Path, tmp_path: Path) -> None:
    """The task stage ends as after the stages that the file has been through; references start as ever."""
    (whole,) = run_cells(results=tmp_path / "elsewhere")
    *references, done = run_cells(references=True, student_from=released, stages_done="proxy,source")
    assert [each.cell.id.label for each in references] == ["teacher", "baseline"]
    assert [stage.name for stage in done.record.result.stages] == ["task"]
    assert done.record.spec.resolved.variant.startswith("from=")
    assert done.record.spec.resolved.variant.endswith(",done=proxy+source")
    assert done.record.spec.resolved.weights["deit-s"].startswith("file-")
    ours, theirs = ([d.confusion.tolist() for d in each.record.result.domains] for each in (done, whole))
    assert ours == theirs
    (again,) = run_cells(student_from=released, stages_done="proxy,source")
    assert again.cached


def test_its_record_leads_to_its_student_and_its_command(
    run_cells: Run, released: Path, shared_store: Path, tmp_path: Path
) -> None:
    run_cells(student_from=released, stages_done="proxy,source", settings={"token": "0.5"}, label="half")
    (path,) = record_files(tmp_path / "results")
    record = read_record(path)
    command = shlex.split(run_command(record, [0]))
    again = CliRunner().invoke(
        app, [*command[1:], "--results", str(tmp_path / "again"), "--device", "cpu", "--store", str(shared_store)]
    )
    assert again.exit_code == 0, again.output
    (other,) = record_files(tmp_path / "again")
    assert other.relative_to(tmp_path / "again") == record.path()
    assert kdbench.load_student(path, store=shared_store).classes[0] == "road"
    released.write_bytes(released.read_bytes() + b" ")
    with pytest.raises(KdbenchError, match="is not the file that the record of"):
        kdbench.load_student(path, store=shared_store)


def test_files_of_gkds_first_stage_are_read(run_cells: Run, tmp_path: Path) -> None:
    """Its checkpoints keep the student's and the teacher's networks beside other things."""
    torch.manual_seed(0)
    encoder = build_toy(MODELS["deit-s"])
    body = {f"student.backbone.{name}": tensor for name, tensor in encoder.body.state_dict().items()}
    body["student.backbone.mask_token"] = encoder.mask_token.detach()
    teacher = {"teacher.backbone.cls_token": torch.zeros(1)}
    path = tmp_path / "checkpoint_300.pth"
    torch.save({"model": body | teacher, "epoch": 299}, path)
    (done,) = run_cells(student_from=path, stages_done="proxy,source")
    assert done.record.status == "done", done.record.error
    started = done.cell.student.source(done.cell.student, None).load()
    assert started.keys() == encoder.state_dict().keys()
    assert all(torch.equal(tensor, started[name]) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages_done": "proxy"}, "name their file with --student-from"),
        ({"student_from": "nothing.pth"}, "--student-from nothing.pth is no file"),
        (
            {"student_from": "FILE", "stages_done": "source"},
            "gkd has the stages proxy, source, task. Name some of the first",
        ),
        ({"student_from": "FILE", "stages_done": "proxy,source,task"}, "and not all"),
        ({"student_from": "FILE", "pairs": ("dinov2-s:resnet18",)}, "does not fit"),
    ],
)
def test_what_does_not_fit_is_told(
    run_cells: Run, released: Path, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    given = {name: released if value == "FILE" else value for name, value in options.items()}
    with pytest.raises(KdbenchError) as told:
        raise KdbenchError(run_cells(results=tmp_path / "new", **given)[0].record.error)
    assert message in str(told.value)
