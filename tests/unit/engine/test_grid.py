"""Whole cells: equal results from cold, warm and half-warm stores, failures that stay in their cell, identities."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdbench.engine import grid, preflight
from kdbench.engine.distributed import _fix_order
from kdbench.engine.environment import revision
from kdbench.engine.grid import Done, recorded_cell
from kdbench.engine.keys import ENGINE_VERSION
from kdbench.engine.plan import make_plan
from kdbench.engine.preflight import describe
from kdbench.errors import KdbenchError
from kdbench.metrics import hits, snapshots
from kdbench.models.toy import SHIPPED, ToyModels, toy_card
from kdbench.records import SIDE_FILE, StageSummary, read_record

Run = Callable[..., list[Done]]
Plan = Callable[..., tuple]
ROOT = Path(__file__).parents[3]


def result(done: Done) -> str:
    assert done.record.result is not None, done.record.error
    return done.record.result.model_dump_json()


def test_cold_warm_and_half_warm_stores_give_the_same_result(run_cells: Run, tmp_path: Path) -> None:
    """Law 4; and stages say which engine made them."""
    store = tmp_path / "own-store"
    (cold,) = run_cells(store=store)
    for path in store.rglob("stage.json"):
        summary = StageSummary.model_validate_json(path.read_bytes())
        assert summary.versions == cold.record.run.versions
        assert (summary.versions["engine"], summary.revision) == (str(ENGINE_VERSION), revision())
    (skipped,) = run_cells(store=store)
    assert skipped.cached
    (warm,) = run_cells(store=store, results=tmp_path / "other")
    assert not warm.cached
    assert warm.record.run.cached == ["proxy", "source", "task"]
    assert warm.record.run.stage_seconds == cold.record.run.stage_seconds
    shutil.rmtree(store / "evaluations")
    for stage in cold.record.result.stages[1:]:
        shutil.rmtree(store / "stages" / stage.key)
    (half,) = run_cells(store=store, results=tmp_path / "third")
    assert half.record.run.cached == ["proxy"]
    (fresh,) = run_cells(store=store, fresh=True)
    assert fresh.record.run.cached == []
    assert len({result(done) for done in (cold, skipped, warm, half, fresh)}) == 1


def test_a_run_until_a_stage_leaves_it_in_the_store_and_no_record(run_cells: Run, tmp_path: Path) -> None:
    asked = {"methods": ("gkd", "cwd"), "references": True, "store": tmp_path / "own-store"}
    (stopped,) = run_cells(**asked, until="source")
    # Teacher, student alone and CWD have no such stage.
    assert (stopped.cell.id.method, stopped.record.status) == ("gkd", "stopped")
    assert not list((tmp_path / "results").rglob("*.json"))
    done = {done.cell.id.method: done.record for done in run_cells(**asked)}
    assert done["gkd"].run.cached == ["proxy", "source"]
    # A record that is there already does not keep stages from being computed again, and stays.
    (path,) = (tmp_path / "results").rglob("gkd-s0.json")
    before = path.read_bytes()
    (again,) = run_cells(**asked | {"store": tmp_path / "other-store"}, until="proxy")
    assert (again.record.status, again.record.run.cached, path.read_bytes()) == ("stopped", [], before)
    with pytest.raises(KdbenchError, match=r"unknown stage 'prox' in --until\. Did you mean 'proxy'"):
        run_cells(**asked, until="prox")


def test_a_rehearsal_scales_the_steps_of_every_stage(plan_cells: Plan) -> None:
    for budget in ("published", "equal"):
        whole, half = (
            [stage.steps for cell in cells for stage in make_plan(context, cell).stages]
            for context, cells in (
                plan_cells(references=True, budget=budget, steps_scale=scale) for scale in (1.0, 0.5)
            )
        )
        assert half == [max(1, round(steps / 2)) for steps in whole]
        assert len(whole) == 5


def test_the_record_lies_where_the_design_says_with_its_side_file(run_cells: Run, tmp_path: Path) -> None:
    (done,) = run_cells(methods=("cwd",), settings=("temperature=2",))
    cell = done.cell.id
    folder = tmp_path / "results" / cell.protocol_id / cell.data_source / "g2c" / "dinov2-s--deit-s"
    resolved = read_record(folder / "cwd@temperature=2.0-s0.json").spec.resolved
    assert resolved.id == cell
    assert resolved.options["temperature"] == 2
    assert resolved.weights == {name: toy_card(SHIPPED, name).weights for name in (cell.teacher, cell.student)}
    assert recorded_cell(resolved, {}, ToyModels()) == done.cell
    with np.load(folder / f"cwd@temperature=2.0-s0{SIDE_FILE}") as counts:
        for domain in done.record.result.domains:
            assert counts[domain.domain].shape == (domain.images, 3, 19)
            assert np.array_equal(counts[domain.domain].sum(0), hits(domain.confusion))
            assert snapshots(domain).shape == (4, 3, 19)


def test_every_method_sees_the_same_images_from_the_same_weights(run_cells: Run) -> None:
    """Comparisons are paired: with its weight at zero, a method is the undistilled student bit for bit."""
    alone, zero = run_cells(methods=("baseline", "logit_kd"), settings=("logit_kd.weight=0",))
    assert [d.confusion.tolist() for d in alone.record.result.domains] == [
        d.confusion.tolist() for d in zero.record.result.domains
    ]


def test_a_record_counts_both_student_forwards_and_the_maps_strides(run_cells: Run) -> None:
    (done,) = run_cells(pairs=("dinov2-s:mit-b0",))
    stages = {stage.name: stage for stage in done.record.result.stages}
    # Where the student distils, half of a batch goes through it once more, with hidden tokens.
    assert {name: (stage.images, stage.student_forwards) for name, stage in stages.items()} == {
        "proxy": (32, 48), "source": (24, 36), "task": (32, 32)
    }  # fmt: skip
    both = {"teacher": [8], "student": [4, 8, 16]}
    assert [stage.strides for stage in stages.values()] == [both, both, {"student": [4, 8, 16]}]


@pytest.mark.parametrize(("pair", "told"), [("dinov2-s:mit-b0", 2), ("dinov2-s:deit-s", 0)])
def test_a_dry_run_tells_maps_that_differ_in_size(pair: str, told: int, plan_cells: Plan, tmp_path: Path) -> None:
    lines = [line for line in describe(*plan_cells(pairs=(pair,), store=tmp_path / "empty")) if "strides" in line]
    assert len(lines) == told
    assert all("strides of the maps: the teacher's 8 and the student's 4, 8, 16; " in line for line in lines)


def test_a_failing_cell_leaves_its_record_and_the_others_go_on(
    run_cells: Run, plugin: Callable[..., str], tmp_path: Path
) -> None:
    bad = plugin(
        "explodes",
        "    def loss(self, batch, student, teacher):\n"
        "        return {'boom': student(batch.image).logits.sum() * float('nan')}\n",
    )
    failed, fine = run_cells(methods=(bad, "baseline"))
    assert failed.record.status == "failed"
    assert "not finite at step 0 (boom = nan)" in failed.record.error
    assert fine.record.status == "done"
    (stored,) = (tmp_path / "results").rglob("explodes-s0.json")
    assert json.loads(stored.read_text(encoding="utf-8"))["status"] == "failed"
    again, _ = run_cells(methods=(bad, "baseline"))
    assert not again.cached


BUGS = {
    "its own line": ("{'x': batch.nothing}", "AttributeError: .*line 7, in loss"),
    "its line above a library's": ("{'x': self.config.nothing}", "line 7, in loss"),
    "a part that no loss reaches": (
        "{'x': student.encode(batch.image).final.square().mean()}",
        "trains student.decoder, but nothing in it moved",
    ),
    "an undeclared part": (
        "{'x': teacher(batch.image).logits.mean()}\n\n    def stages(self):\n"
        "        return (Stage('s', Phase.TASK, trains=STUDENT, uses=STUDENT, loss=self.loss),)\n",
        "stage 's' reads the teacher.encoder, which is not among its parts",
    ),
    "a closure, whose options its key could not tell": (
        "{}\n\n    def stages(self):\n        loss = lambda b, s, t: task_loss(b, s, t)\n"
        "        return (Stage('s', Phase.TASK, trains=STUDENT, uses=STUDENT, loss=loss),)\n",
        "its loss is 'Made.stages.<locals>.<lambda>'. Give a method of the class",
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_in_a_plug_in_is_a_failed_record_that_names_it(
    run_cells: Run, plugin: Callable[..., str], bug: str
) -> None:
    returned, message = BUGS[bug]
    (done,) = run_cells(
        methods=(plugin("buggy", f"    def loss(self, batch, student, teacher):\n        return {returned}"),)
    )
    assert done.record.status == "failed"
    assert re.search(message, done.record.error)


def test_a_dry_run_names_a_plug_ins_bug(plan_cells: Plan, plugin: Callable[..., str]) -> None:
    path = plugin("buggy", "    def loss(self, batch, student, teacher):\n        return {'x': batch.nothing}\n")
    with pytest.raises(KdbenchError, match=r"g2c · buggy cannot run: AttributeError: .*buggy\.py, line 7, in loss"):
        list(describe(*plan_cells(methods=(path,))))


def test_reference_cells_come_with_a_method_and_only_once(plan_cells: Plan) -> None:
    _, cells = plan_cells(methods=("baseline", "gkd"), references=True, seeds=(0, 1))
    assert [(cell.id.method, cell.seed) for cell in cells] == [
        (name, seed) for seed in (0, 1) for name in ("teacher", "baseline", "gkd")
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"methods": ("gdk",)}, "unknown method 'gdk'. Did you mean 'gkd'"),
        ({"pairs": ("dinov2-s:deit",)}, "unknown model 'deit' in pair 'dinov2-s:deit'. Did you mean 'deit-"),
        ({"benchmarks": ("g2x",)}, "unknown benchmark 'g2x'. Did you mean 'g2"),
        ({"protocol": "papr"}, "unknown protocol 'papr'"),
        ({"settings": ("mask_ratio=often",)}, "option 'mask_ratio' of method 'gkd' cannot be 'often'"),
        ({"label": "a/b", "settings": ("token=2",)}, "letters, digits"),
        ({"label": "warm"}, "--as warm"),
        ({"methods": ("gkd", "cwd"), "settings": ("temperature=2",)}, "write method.option=value"),
        ({"benchmarks": ("camvid",)}, "Add --data-root"),
        ({"benchmarks": ("camvid",), "data_root": Path("/nowhere")}, "--data-root /nowhere is not a folder"),
        ({"benchmarks": ("camvid",), "data_root": ROOT}, "data set 'camvid' is not under"),
        ({"label_maps": ("mapillary=robustnet",)}, "add --data-root DIR, or leave it out"),
        ({"label_maps": ("mapillary",), "data_root": Path("/nowhere")}, "--label-map mapillary: write dataset=table"),
        ({"label_maps": ("mapilary=rein",), "data_root": Path("/nowhere")}, "Did you mean 'mapillary'"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_refused_with_its_repair(
    plan_cells: Plan, tmp_path: Path, fields: dict, message: str
) -> None:
    with pytest.raises(KdbenchError, match=message):
        plan_cells(**fields)
    assert not (tmp_path / "results").exists()


def test_a_missing_data_root_is_refused_before_a_device_prints_its_lines(
    plan_cells: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdbench.engine.grid.make_fabric", lambda *_: pytest.fail("opened a device"))
    with pytest.raises(KdbenchError, match="--data-root /nowhere is not a folder"):
        plan_cells(protocol="paper", data_root=Path("/nowhere"))


def test_a_record_that_cannot_be_read_is_kept_beside_the_new_one(
    run_cells: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr("kdbench.progress.Silent.note", lambda _, text: notes.append(text))
    (done,) = run_cells(methods=("baseline",))
    path = tmp_path / "results" / done.cell.id.path
    path.write_text("{", encoding="utf-8")
    (again,) = run_cells(methods=("baseline",))
    assert (again.cached, result(again)) == (False, result(done))
    assert path.with_name(f"{path.name}.broken").read_text(encoding="utf-8") == "{"
    assert read_record(path).to_json() == again.record.to_json()
    assert [note for note in notes if f"kept as {path.name}.broken" in note]


def test_a_folder_that_cannot_be_written_is_refused_first(run_cells: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(KdbenchError, match=r"--results .*file cannot be written"):
        run_cells(results=tmp_path / "file")


def test_a_file_that_takes_a_shipped_methods_name_is_refused(plan_cells: Plan, plugin: Callable[..., str]) -> None:
    with pytest.raises(KdbenchError, match=r"two plug-ins are named 'baseline': .* and .*baseline\.py"):
        plan_cells(methods=(plugin("baseline", "    pass\n"),))
    _, cells = plan_cells(methods=(str(ROOT / "methods" / "baseline.py"),), references=True)
    assert [cell.id.method for cell in cells] == ["teacher", "baseline"]


def test_a_benchmark_without_data_sets_is_not_run_on_real_images(plan_cells: Plan, tmp_path: Path) -> None:
    text = (ROOT / "benchmarks" / "g2c.py").read_text(encoding="utf-8")
    text = text.replace("real=_GTAV", "real=None").replace('name="g2c"', 'name="mine"')
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    with pytest.raises(KdbenchError, match="no data set is declared for domain 'gtav'"):
        plan_cells(benchmarks=(str(tmp_path / "mine.py"),), data_root=tmp_path)


def test_a_changed_deployment_is_a_changed_cell(run_cells: Run, plugin: Callable[..., str], tmp_path: Path) -> None:
    body = (
        "    def stages(self):\n"
        "        return (Stage('s', Phase.TASK, trains=STUDENT, uses=STUDENT, loss=task_loss),)\n\n"
        "    def deploy(self, student, teacher):\n"
        "        return {}\n"
    )
    found = []
    for model in ("student", "teacher"):
        (tmp_path / model).mkdir()
        (done,) = run_cells(methods=(plugin("deployed", body.format(model), tmp_path / model),))
        assert not done.cached
        found.append((done.record.spec.resolved.key, result(done)))
    assert found[0][0] != found[1][0]
    assert found[0][1] != found[1][1]


def test_a_label_stands_for_one_setting(run_cells: Run) -> None:
    common = {"methods": ("baseline",), "label": "warm"}
    run_cells(**common, settings=("encoder=frozen",))
    (again,) = run_cells(**common, settings=("encoder=frozen",))
    assert again.cached
    for seeds in ((0,), (1,)):
        with pytest.raises(KdbenchError, match=r"'warm' of baseline stands for encoder=frozen in .*baseline@warm-s0"):
            run_cells(**common, settings=("encoder=fine-tuned",), seeds=seeds)
    # A label that begins like another is another.
    (other,) = run_cells(methods=("baseline",), label="warm-slow", settings=("encoder=fine-tuned",))
    (again,) = run_cells(**common, settings=("encoder=frozen",), seeds=(1,))
    assert [done.record.status for done in (other, again)] == ["done", "done"]


def test_a_check_that_fails_in_another_process_ends_this_one_too(
    plan_cells: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, cells = plan_cells(methods=("baseline",))
    preflight.check_together(context, cells)
    monkeypatch.setattr(preflight, "gathered", lambda fabric, mine: [mine, "no weights on the second node"])
    with pytest.raises(KdbenchError, match="no weights on the second node"):
        preflight.check_together(context, cells)


def test_kernels_add_in_a_fixed_order_on_a_cpu_alone(plan_cells: Plan) -> None:
    _fix_order(torch.device("cuda"))
    assert not torch.are_deterministic_algorithms_enabled()
    plan_cells()
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("environment", "devices", "expected"),
    [
        ({}, 1, 15),  # one of sixteen cores is the training's own
        ({}, 4, 3),
        ({"SLURM_CPUS_PER_TASK": "6"}, 1, 6),
        ({"SLURM_CPUS_PER_TASK": "6"}, 2, 3),
        ({"SLURM_CPUS_PER_TASK": "6", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}, 2, 6),
    ],
    ids=str,
)
def test_files_are_read_ahead_on_a_processes_share_of_the_jobs_cores(
    make_spec: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environment: dict, devices: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_NTASKS", "SLURM_STEP_ID", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    real = make_spec(data_root=tmp_path, devices=devices)
    assert grid._workers(real) == expected
    assert grid._workers(make_spec(devices=devices)) == 0
    assert grid._workers(make_spec(data_root=tmp_path, workers=2)) == 2
