"""The Python interface: the same request as the command line, its records as a frame, its models ready to predict."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image
from typer.testing import CliRunner

import kdbench
from kdbench.api import make_request, run_command
from kdbench.cli import app
from kdbench.engine.evaluation import confusion
from kdbench.engine.grid import Done
from kdbench.errors import KdbenchError
from kdbench.records import record_files

ROOT = Path(__file__).parents[2]


def test_import_is_quick_and_every_public_name_is_there() -> None:
    code = "import sys, kdbench; sys.exit(any(name in sys.modules for name in ('torch', 'pandas', 'pydantic')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert all(getattr(kdbench, name) for name in kdbench.__all__)
    with pytest.raises(AttributeError, match="no attribute 'runs'"):
        kdbench.runs  # noqa: B018


def test_the_example_of_the_page_runs(tmp_path: Path) -> None:
    script = ROOT / "docs" / "api_example.py"
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "logit_kd[temperature=2.0]" in done.stdout
    assert "classes found: " in done.stdout
    assert script.read_text(encoding="utf-8") in (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


def test_texts_and_python_values_are_the_same_request(tmp_path: Path) -> None:
    typed = make_request(
        print, method="gkd, cwd", pair="dinov2-s:deit-s", benchmark="g2c", seed="0-1,4", set=["gkd.mask_ratio=0.5"],
        label_fraction="1/2", results=tmp_path, watch="none",
    )  # fmt: skip
    passed = make_request(
        print, method=["gkd", "cwd"], pair=["dinov2-s:deit-s"], benchmark=["g2c"], seed=[0, 1, 4],
        set={"gkd.mask_ratio": 0.5}, label_fraction=0.5, results=str(tmp_path), watch=[],
    )  # fmt: skip
    assert typed == passed
    assert typed.passed() == passed.passed()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocl": "mini"}, r"unknown option 'protocl'\. Did you mean 'protocol'"),
        ({"methods": "gkd"}, r"unknown option 'methods'\. Did you mean 'method'"),
        ({"budget": "equall"}, r"option budget cannot be 'equall': .*'published' or 'equal'"),
        ({"seed": "a"}, "seeds are whole numbers"),
        ({"data_root": "/nowhere"}, "--data-root /nowhere is not a folder"),
    ],
)
def test_a_wrong_option_says_what_exists(options: dict[str, Any], message: str) -> None:
    with pytest.raises(KdbenchError, match=message):
        kdbench.run("gkd", "dinov2-s:deit-s", **options)


def test_a_loaded_student_predicts_what_was_evaluated(
    run_cells: Callable[..., list[Done]], plan_cells: Callable[..., Any], shared_store: Path, tmp_path: Path
) -> None:
    """A method that deploys a module of its own and the teacher's decoder, and the teacher itself."""
    run_cells(methods=("simkd",), references=True)
    context, cells = plan_cells(methods=("simkd",))
    benchmark = cells[0].benchmark
    samples = context.data_sources.val(benchmark.targets[0])
    images, labels = (torch.stack(each) for each in zip(*map(samples.read, range(len(samples))), strict=True))
    for path in record_files(tmp_path / "results"):
        record = kdbench.records.read_record(path)
        model = kdbench.load_student(path, store=shared_store)
        assert not model.training
        counts = confusion(model.predict(images), labels.long(), len(model.classes)).sum(0)
        assert (counts.numpy() == record.result.domains[0].confusion).all(), path
    one = model.predict(images[0])
    assert one.shape == images.shape[-2:]
    to_pil_image(images[0]).save(tmp_path / "image.png")
    for same in (images[0] / 255, Image.open(tmp_path / "image.png"), tmp_path / "image.png"):
        assert torch.equal(model.predict(same), one)
    with pytest.raises(KdbenchError, match=r"shape \(3, H, W\)"):
        model.predict(images[0, 0])
    with pytest.raises(KdbenchError, match=r"float in \[0, 1\]"):
        model.predict(images[0].float())


def test_a_store_without_the_weights_says_which_command_computes_them(
    run_cells: Callable[..., list[Done]], tmp_path: Path
) -> None:
    (done,) = run_cells(methods=("logit_kd",), settings={"temperature": "2"}, label="warm", seeds=(3,))
    store = tmp_path / "empty"
    with pytest.raises(KdbenchError, match="lacks stage 'joint' of logit_kd\\[warm\\]") as raised:
        kdbench.load_student(done.record, store=store)
    command = shlex.split(str(raised.value)[str(raised.value).index("kdbench run") :])
    again = CliRunner().invoke(app, [*command[1:], "--results", str(tmp_path / "again"), "--device", "cpu"])
    assert again.exit_code == 0, again.output
    (path,) = record_files(tmp_path / "again")
    assert path.relative_to(tmp_path / "again") == done.record.path()
    assert kdbench.load_student(path, store=store).classes[0] == "road"


def test_a_record_under_a_users_protocol_needs_no_file(
    run_cells: Callable[..., list[Done]], shared_store: Path, tmp_path: Path
) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text("base: smoke\nrecipes: {task: {steps: 3}}\n", encoding="utf-8")
    (done,) = run_cells(methods=("logit_kd",), protocol=str(path), steps_scale=2)
    path.unlink()
    record = kdbench.records.read_record(tmp_path / "results" / done.record.path())
    assert [stage.steps for stage in record.result.stages] == [12, 6]
    assert kdbench.load_student(record, store=shared_store).protocol.id == record.spec.resolved.protocol_id
    assert "--protocol lab.yaml" in run_command(record, [0])
    assert "--steps-scale 2.0" in run_command(record, [0])


def test_the_record_of_a_failed_cell_has_no_student(run_cells: Callable[..., list[Done]]) -> None:
    (done,) = run_cells(methods=("logit_kd",))
    failed = done.record.model_copy(update={"result": None, "status": "failed", "error": "no memory"})
    with pytest.raises(KdbenchError, match="failed cell: no memory"):
        kdbench.load_student(failed)
