"""Whole cells: equal results from cold, warm and half-warm stores, failures that stay in their cell, identities."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kdbench.engine import preflight, runner
from kdbench.engine.distributed import _fix_order
from kdbench.engine.grid import Done
from kdbench.engine.preflight import describe
from kdbench.errors import KdbenchError
from kdbench.metrics import hits, snapshots
from kdbench.models.toy import ToyModels
from kdbench.records import SIDE_FILE, read_record

Run = Callable[..., list[Done]]


def result(done: Done) -> str:
    assert done.record.result is not None, done.record.error
    return done.record.result.model_dump_json()


def test_cold_warm_and_half_warm_stores_give_the_same_result(run_cells: Run, tmp_path: Path) -> None:
    """Law 4."""
    store = tmp_path / "own-store"
    (cold,) = run_cells(store=store)
    (skipped,) = run_cells(store=store)
    assert skipped.cached
    (warm,) = run_cells(store=store, results=tmp_path / "other")
    assert not warm.cached
    assert warm.record.run.cached == ["proxy", "source", "task"]
    shutil.rmtree(store / "evaluations")
    for stage in cold.record.result.stages[1:]:
        shutil.rmtree(store / "stages" / stage.key)
    (half,) = run_cells(store=store, results=tmp_path / "third")
    assert half.record.run.cached == ["proxy"]
    (fresh,) = run_cells(store=store, fresh=True)
    assert fresh.record.run.cached == []
    assert len({result(done) for done in (cold, skipped, warm, half, fresh)}) == 1


def test_the_record_lies_where_the_design_says_with_its_side_file(run_cells: Run, tmp_path: Path) -> None:
    (done,) = run_cells(methods=("cwd",), settings=("temperature=2",))
    cell = done.record.spec.resolved
    folder = tmp_path / "results" / cell.protocol_id / cell.data_source / "g2c" / "dinov2-s--deit-s"
    cell = read_record(folder / "cwd@temperature=2.0-s0.json").spec.resolved
    assert cell.options["temperature"] == 2
    assert cell.weights == {name: ToyModels().card(name).weights for name in (cell.teacher, cell.student)}
    with np.load(folder / f"cwd@temperature=2.0-s0{SIDE_FILE}") as counts:
        for domain in done.record.result.domains:
            assert counts[domain.domain].shape == (domain.images, 3, 19)
            assert np.array_equal(counts[domain.domain].sum(0), hits(domain.confusion))
            assert snapshots(domain).shape == (4, 3, 19)


def test_every_method_sees_the_same_images_from_the_same_weights(run_cells: Run, tmp_path: Path) -> None:
    """Comparisons are paired: with its weight at zero, a method is the undistilled student bit for bit."""
    alone, zero = run_cells(methods=("baseline", "logit_kd"), settings=("logit_kd.weight=0",))
    assert [d.confusion.tolist() for d in alone.record.result.domains] == [
        d.confusion.tolist() for d in zero.record.result.domains
    ]


def test_a_failing_cell_leaves_its_record_and_the_others_go_on(run_cells: Run, tmp_path: Path) -> None:
    bad = tmp_path / "explodes.py"
    bad.write_text(
        "from kdbench.method import Method\n\n\n"
        "class Explodes(Method):\n"
        "    def loss(self, batch, student, teacher):\n"
        "        return {'boom': student(batch.image).logits.sum() * float('nan')}\n",
        encoding="utf-8",
    )
    failed, fine = run_cells(methods=(str(bad), "baseline"))
    assert failed.record.status == "failed"
    assert "not finite at step 0 (boom = nan)" in failed.record.error
    assert fine.record.status == "done"
    stored = list((tmp_path / "results").rglob("explodes-s0.json"))
    assert json.loads(stored[0].read_text(encoding="utf-8"))["status"] == "failed"
    again, _ = run_cells(methods=(str(bad), "baseline"))
    assert not again.cached


def test_a_bug_in_a_plug_in_names_its_file_and_line(
    run_cells: Run, plan_cells: Callable[..., tuple], tmp_path: Path
) -> None:
    bad = tmp_path / "buggy.py"
    bad.write_text(
        "from kdbench.method import Method\n\n\n"
        "class Buggy(Method):\n"
        "    def loss(self, batch, student, teacher):\n"
        "        return {'x': batch.nothing}\n",
        encoding="utf-8",
    )
    (done,) = run_cells(methods=(str(bad),))
    assert "buggy.py, line 6, in loss" in done.record.error
    with pytest.raises(KdbenchError, match=r"g2c · buggy cannot run: AttributeError: .*buggy\.py, line 6, in loss"):
        list(describe(*plan_cells(methods=(str(bad),))))


def test_reference_cells_come_with_a_method_and_only_once(plan_cells: Callable[..., tuple]) -> None:
    _, cells = plan_cells(methods=("baseline", "gkd"), references=True, seeds=(0, 1))
    names = [(cell.method.name if cell.method else "teacher", cell.seed) for cell in cells]
    assert names == [("teacher", 0), ("baseline", 0), ("gkd", 0), ("teacher", 1), ("baseline", 1), ("gkd", 1)]


def test_ledger_counts_both_student_passes(run_cells: Run) -> None:
    (done,) = run_cells()
    passes = {stage.name: (stage.images, stage.student_forwards) for stage in done.record.result.stages}
    # Where the student distils, half of a batch goes through it once more, with hidden tokens.
    assert passes == {"proxy": (32, 48), "source": (24, 36), "task": (32, 32)}


def test_a_stage_may_not_read_what_it_does_not_declare(run_cells: Run, tmp_path: Path) -> None:
    bad = tmp_path / "sneaky.py"
    bad.write_text(
        "from kdbench.method import Method, Stage\nfrom kdbench.types import STUDENT, Phase\n\n\n"
        "class Sneaky(Method):\n"
        "    def stages(self):\n"
        "        return (Stage('s', Phase.TASK, trains=STUDENT, uses=STUDENT, loss=self.loss),)\n\n"
        "    def loss(self, batch, student, teacher):\n"
        "        return {'x': teacher(batch.image).logits.mean() + student(batch.image).logits.mean()}\n",
        encoding="utf-8",
    )
    (done,) = run_cells(methods=(str(bad),))
    assert "stage 's' reads the teacher.encoder, which is not among its parts" in done.record.error


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"methods": ("gdk",)}, "unknown method 'gdk'. Did you mean 'gkd'"),
        ({"pairs": ("dinov2-s:deit",)}, "unknown model .* Did you mean 'deit-"),
        ({"benchmarks": ("g2x",)}, "unknown benchmark 'g2x'. Did you mean 'g2"),
        ({"protocol": "papr"}, "unknown protocol 'papr'"),
        ({"settings": ("mask_ration=1",)}, "unknown option .* Did you mean 'mask_ratio'"),
        ({"settings": ("mask_ratio=often",)}, "option 'mask_ratio' of method 'gkd' cannot be 'often'"),
        ({"settings": ("mask_ratio=1.5",)}, "less than or equal to 1"),
        ({"settings": ("mask_ratio",)}, "write option=value"),
        ({"label": "a/b", "settings": ("token=2",)}, "letters, digits"),
        ({"methods": ("gkd", "cwd"), "settings": ("temperature=2",)}, "write method.option=value"),
        ({"benchmarks": ("camvid",)}, "Add --data-root"),
        ({"label_maps": ("mapillary=robustnet",)}, "add --data-root DIR, or leave it out"),
        ({"label_maps": ("mapillary",), "data_root": Path("/nowhere")}, "--label-map mapillary: write dataset=table"),
        ({"label_maps": ("mapilary=rein",), "data_root": Path("/nowhere")}, "Did you mean 'mapillary'"),
        ({"label_fraction": "0"}, "--label-fraction '0': write a part"),
        ({"resampling": "pseudo-inverse"}, "under protocol 'smoke' none does"),
    ],
)
def test_a_wrong_request_is_refused_with_its_repair(
    plan_cells: Callable[..., tuple], fields: dict, message: str
) -> None:
    with pytest.raises(KdbenchError, match=message):
        plan_cells(**fields)


def plugin(folder: Path, name: str, body: str) -> str:
    """A method file whose class body is given."""
    path = folder / f"{name}.py"
    path.write_text(
        "from kdbench.method import Method, Stage, task_loss\nfrom kdbench.types import STUDENT, Phase\n"
        f"\n\nclass Made(Method):\n{body}",
        encoding="utf-8",
    )
    return str(path)


def test_a_closure_is_no_loss_because_its_key_could_not_tell_its_knobs(run_cells: Run, tmp_path: Path) -> None:
    body = (
        "    def stages(self):\n"
        "        loss = lambda b, s, t: task_loss(b, s, t)\n"
        "        return (Stage('s', Phase.TASK, trains=STUDENT, uses=STUDENT, loss=loss),)\n"
    )
    (done,) = run_cells(methods=(plugin(tmp_path, "closed", body),))
    assert "its loss is 'Made.stages.<locals>.<lambda>'. Give a method of the class" in done.record.error


def test_a_file_that_takes_a_shipped_methods_name_is_refused(plan_cells: Callable[..., tuple], tmp_path: Path) -> None:
    path = plugin(tmp_path, "baseline", "    pass\n")
    with pytest.raises(KdbenchError, match=r"two plug-ins are named 'baseline': .* and .*baseline\.py"):
        plan_cells(methods=(path,))
    shipped = Path(__file__).parents[3] / "methods" / "baseline.py"
    _, cells = plan_cells(methods=(str(shipped),), references=True)
    assert [cell.method and cell.method.name for cell in cells] == [None, "baseline"]


def test_a_benchmark_without_data_sets_is_not_run_on_real_images(
    plan_cells: Callable[..., tuple], tmp_path: Path
) -> None:
    shipped = Path(__file__).parents[3] / "benchmarks" / "g2c.py"
    text = shipped.read_text(encoding="utf-8").replace("real=_GTAV", "real=None").replace('name="g2c"', 'name="mine"')
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    with pytest.raises(KdbenchError, match="no data set is declared for domain 'gtav'"):
        plan_cells(benchmarks=(str(tmp_path / "mine.py"),), data_root=tmp_path)


def test_a_data_root_that_is_not_there_is_refused_before_anything_runs(
    plan_cells: Callable[..., tuple], tmp_path: Path
) -> None:
    with pytest.raises(KdbenchError, match=r"--data-root .*gone is not a folder"):
        plan_cells(benchmarks=("camvid",), data_root=tmp_path / "gone")
    with pytest.raises(KdbenchError, match="data set 'camvid' is not under"):
        plan_cells(benchmarks=("camvid",), data_root=tmp_path)
    assert not (tmp_path / "results").exists()


def test_a_changed_deployment_is_a_changed_cell(run_cells: Run, tmp_path: Path) -> None:
    body = (
        "    def stages(self):\n"
        "        return (Stage('s', Phase.TASK, trains=STUDENT, uses=STUDENT, loss=task_loss),)\n\n"
        "    def deploy(self, student, teacher):\n"
        "        return {}\n"
    )
    found = []
    for model in ("student", "teacher"):
        path = tmp_path / "deployed.py"
        path.unlink(missing_ok=True)
        (tmp_path / model).mkdir()
        file = plugin(tmp_path / model, "deployed", body.format(model))
        (done,) = run_cells(methods=(file,))
        assert not done.cached
        found.append((done.record.spec.resolved.key, result(done)))
    assert found[0][0] != found[1][0]
    assert found[0][1] != found[1][1]


def test_an_unreadable_store_is_a_failed_record_not_the_end_of_the_grid(
    run_cells: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = runner.train_stage
    calls = []

    def broken(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            raise PermissionError(13, "Permission denied", "/store/x")
        return whole(*arguments)

    monkeypatch.setattr(runner, "train_stage", broken)
    first, second = run_cells(methods=("baseline", "feature_kd"), fresh=True)
    assert "Permission denied" in first.record.error
    assert second.record.status == "done"


def test_a_part_that_no_loss_reaches_is_a_failure_not_a_row(run_cells: Run, tmp_path: Path) -> None:
    """As where a method forgets the task loss: its decoder would stay random and still be ranked."""
    body = (
        "    def loss(self, batch, student, teacher):\n"
        "        return {'x': student.encode(batch.image).final.square().mean()}\n"
    )
    (done,) = run_cells(methods=(plugin(tmp_path, "forgetful", body),))
    assert "trains student.decoder, but nothing in it moved" in done.record.error


def test_an_error_inside_a_library_names_the_authors_line(run_cells: Run, tmp_path: Path) -> None:
    body = "    def loss(self, batch, student, teacher):\n        return {'x': self.config.nothing}\n"
    (done,) = run_cells(methods=(plugin(tmp_path, "typo", body),))
    assert "(at typo.py, line 7, in loss)" in done.record.error


def test_a_place_that_cannot_be_written_is_refused_first(run_cells: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(KdbenchError, match=r"--results .*file cannot be written"):
        run_cells(results=tmp_path / "file")


def test_a_label_without_a_setting_is_refused_where_methods_are_several(plan_cells: Callable[..., tuple]) -> None:
    with pytest.raises(KdbenchError, match="--as warm"):
        plan_cells(methods=("gkd",), label="warm")


def test_kernels_add_in_a_fixed_order_on_a_cpu_alone(plan_cells: Callable[..., tuple]) -> None:
    _fix_order(torch.device("cuda"))
    assert not torch.are_deterministic_algorithms_enabled()
    plan_cells()
    assert torch.are_deterministic_algorithms_enabled()


def test_what_would_run_says_how_many_images_a_process_has(plan_cells: Callable[..., tuple]) -> None:
    context, cells = plan_cells()
    several = replace(context, fabric=SimpleNamespace(world_size=2, device=torch.device("cpu")))
    found = [[line for line in describe(each, cells) if " steps of 4" in line] for each in (context, several)]
    assert [len(lines) for lines in found] == [3, 3]
    assert not any("a process" in line for line in found[0])
    assert all(" steps of 4 (2 a process) " in line for line in found[1])


def test_a_label_stands_for_one_setting(run_cells: Callable[..., list[Done]]) -> None:
    common = {"methods": ("baseline",), "label": "warm"}
    run_cells(**common, settings=("encoder=frozen",))
    (again,) = run_cells(**common, settings=("encoder=frozen",))
    assert again.cached
    for seeds in ((0,), (1,)):
        with pytest.raises(KdbenchError, match=r"'warm' of baseline stands for encoder=frozen in .*baseline@warm-s0"):
            run_cells(**common, settings=("encoder=fine-tuned",), seeds=seeds)
    # A label that begins like another is another.
    (other,) = run_cells(methods=("baseline",), label="warm-slow", settings=("encoder=fine-tuned",))
    (again,) = run_cells(methods=("baseline",), label="warm", settings=("encoder=frozen",), seeds=(1,))
    assert [done.record.status for done in (other, again)] == ["done", "done"]


def test_a_check_that_fails_in_another_process_ends_this_one_too(
    plan_cells: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, cells = plan_cells(methods=("baseline",))
    preflight.check_together(context, cells)
    monkeypatch.setattr(preflight, "gathered", lambda fabric, mine: [mine, "no weights on the second node"])
    with pytest.raises(KdbenchError, match="no weights on the second node"):
        preflight.check_together(context, cells)
