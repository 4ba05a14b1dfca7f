"""Laws 3, 5 and 6 on real cells: what moves, what a method sees, and that every sample carries its domain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdbench.engine.grid import Done
from kdbench.engine.plan import make_plan, stage_sets
from kdbench.engine.runner import train_stage
from kdbench.engine.tracking import EventLog
from kdbench.plugins import benchmark_names, load_benchmark, method_names
from kdbench.types import Phase

WITNESS = """
from pathlib import Path

from kdbench.method import Method, Stage
from kdbench.types import ENCODERS, STUDENT, Part, Phase


class Witness(Method):
    def stages(self):
        return tuple(
            Stage(phase.value, phase, trains=frozenset({Part.STUDENT_ENCODER}) if not phase.labelled else STUDENT,
                  uses=ENCODERS if not phase.labelled else STUDENT, loss=self.loss)
            for phase in (Phase.PROXY, Phase.SOURCE, Phase.TASK)
        )

    def loss(self, batch, student, teacher):
        with open(FILE, "a", encoding="utf-8") as file:
            labels = "none" if batch.label is None else "labels"
            file.write(f"{labels} {' '.join(sorted(set(batch.domain)))} {len(batch.domain)} {batch.progress:.3f}\\n")
        if batch.label is None:
            return {"x": student.encode(batch.image).final.square().mean()}
        return student.task_loss(student(batch.image), batch.label)
"""


@pytest.mark.parametrize("name", ["c2a", "p2r"])
def test_labels_and_targets_never_reach_an_unlabelled_stage(
    run_cells: Callable[..., list[Done]], tmp_path: Path, name: str
) -> None:
    """Law 5, from inside a method."""
    seen = tmp_path / "seen.txt"
    plugin = tmp_path / "witness.py"
    plugin.write_text(f"FILE = {str(seen)!r}\n{WITNESS}", encoding="utf-8")
    (done,) = run_cells(methods=(str(plugin),), benchmarks=(name,), fresh=True)
    assert done.record.status == "done", done.record.error
    source = {"c2a": "cityscapes", "p2r": "potsdam-rgb"}[name]
    # Operations are counted with blank images, before anything is trained.
    lines = [line.split() for line in seen.read_text(encoding="utf-8").splitlines() if " blank" not in line]
    assert {tuple(line[:2]) for line in lines} == {("none", "proxy"), ("none", source), ("labels", source)}
    assert {line[2] for line in lines} == {"4"}
    progress = [float(line[3]) for line in lines if line[0] == "labels"]
    assert progress == pytest.approx([step / 8 for step in range(8)], abs=1e-3)


@pytest.mark.parametrize("name", [name for name in benchmark_names() if name not in ("camvid", "gsu2c")])
def test_no_phase_of_any_benchmark_opens_a_target(plan_cells: Callable[..., tuple], name: str) -> None:
    benchmark = load_benchmark(name)
    context, cells = plan_cells(benchmarks=(name,))
    targets = {domain.name for domain in benchmark.targets}
    for phase in Phase:
        assert not targets & {samples.domain for samples in stage_sets(context, cells[0], phase)}


@pytest.mark.parametrize("method", method_names())
def test_exactly_what_trains_moves_through_the_engine(
    plan_cells: Callable[..., tuple], tmp_path: Path, method: str
) -> None:
    """Law 3, after whole stages of the real loop."""
    context, cells = plan_cells(methods=(method,), store=tmp_path / "own-store")
    plan = make_plan(context, cells[-1])
    for step in plan.stages:
        plan.networks.load(step.inputs)
        modules = plan.networks.modules()
        before = {name: {k: v.clone() for k, v in m.state_dict().items()} for name, m in modules.items()}
        step.folder.finish(train_stage(context, plan, step, None, EventLog()))
        for name, module in modules.items():
            same = all(torch.equal(value, before[name][key]) for key, value in module.state_dict().items())
            assert same == (name not in step.stage.trains), f"{step.stage.name}: {name}"
            training = {part.training for part in module.modules()}
            assert training == {name in step.stage.trains}


def test_initial_weights_do_not_depend_on_the_method(plan_cells: Callable[..., tuple]) -> None:
    context, cells = plan_cells(methods=("gkd", "cwd", "feature_kd"))
    decoders = [make_plan(context, cell).networks.student.decoder.state_dict() for cell in cells]
    for other in decoders[1:]:
        assert all(torch.equal(value, other[name]) for name, value in decoders[0].items())
