"""What the harness costs on top of the bare arithmetic, as ratios within one run. No test asserts a time.

    make test-slow        # or: python -m pytest tests/perf -m slow -s

Aims: a training step at most 1.10 times, the evaluator at most 1.15 times the bare arithmetic; `kdbench leaderboard` on
200 records at most 3 times `python -c "import pandas"`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor

from kdbench.conformance import CLASSES
from kdbench.engine.evaluator import evaluate
from kdbench.engine.parts import Networks, views
from kdbench.engine.store import StageFolder
from kdbench.engine.trainer import Job, LossModule, make_optimizer, train
from kdbench.models.backbones import build_stand_in
from kdbench.models.segmentor import Segmentor, build_decoder
from kdbench.models.zoo import ROLES
from kdbench.plugins import load_method
from kdbench.progress import Silent
from kdbench.protocol import MINI
from kdbench.types import Batch, PairSpec, Phase

pytestmark = pytest.mark.slow
STEPS = 6
METHODS = ("baseline", "cwd", "gkd")
"""Without a teacher, with one beside the labels, and in a stage without labels."""


@pytest.fixture(autouse=True)
def all_cores() -> Iterator[None]:
    """Times are taken as users have them, not with the tests' one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, len(__import__("os").sched_getaffinity(0))))
    yield
    torch.set_num_threads(before)


def networks(method: str, teacher: str = "dinov2-b", student: str = "deit-s") -> Networks:
    def segmentor(name: str) -> Segmentor:
        encoder = build_stand_in(ROLES[name])
        return Segmentor(encoder, build_decoder("light", encoder.spec, CLASSES))

    plugin, models = load_method(method).method, (segmentor(teacher), segmentor(student))
    return Networks(*models, plugin(plugin.Config(), PairSpec(models[0].spec, models[1].spec, CLASSES)))


def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    size = (16, 3, *MINI.image_size)
    return [
        Batch(
            image=torch.rand(size, generator=generator),
            label=torch.randint(0, CLASSES, (16, *MINI.image_size), generator=generator),
            domain=("somewhere",) * 16,
            index=torch.arange(16),
        )
        for _ in range(STEPS)
    ]


def paired(benchmark, ours: Callable[[], object], bare: Callable[[], object], rounds: int) -> float:  # type: ignore[no-untyped-def]
    """The median of ours / bare, measured in turn; the machine's drift hits both alike."""
    ratios = []

    def once() -> None:
        started = time.perf_counter()
        bare()
        middle = time.perf_counter()
        ours()
        ratios.append((time.perf_counter() - middle) / (middle - started))

    once()
    ratios.clear()
    benchmark.pedantic(once, rounds=rounds, iterations=1)
    ratio = sorted(ratios)[len(ratios) // 2]
    benchmark.extra_info["ratio"] = ratio
    return ratio


@pytest.mark.parametrize("method", METHODS)
def test_step_against_the_bare_step(benchmark, tmp_path: Path, method: str) -> None:  # type: ignore[no-untyped-def]
    """The method's last stage, through the trainer and by hand: same networks, loss, optimiser and data in memory."""
    nets = networks(method)
    assert nets.method is not None
    stage = nets.method.stages()[0] if method_trains_first(nets) else nets.method.stages()[-1]
    data = batches()
    recipe = MINI.recipes[stage.phase]
    trained = nets.freeze_all_but(stage.trains)
    student, teacher = nets.student, nets.teacher
    fabric = Fabric(accelerator="cpu", devices=1)
    job = Job(
        what="perf", module=LossModule(trained, lambda b: stage.loss(b, *views(nets, stage))), recipe=recipe,
        steps=STEPS,
        batches=lambda start: iter(data), randomness=(0,), keep=(), checkpoint_every=10**9,
    )  # fmt: skip
    optimizer = make_optimizer(trained, recipe)

    class NoGrad:
        """The teacher as anyone would call it by hand."""

        spec = teacher.spec

        @torch.no_grad()
        def encode(self, image: Tensor):  # type: ignore[no-untyped-def]
            return teacher.encode(image)

        def decode(self, features):  # type: ignore[no-untyped-def]
            return teacher.decode(features)

        def __call__(self, image: Tensor):  # type: ignore[no-untyped-def]
            return teacher.decode(self.encode(image))

    def bare() -> None:
        for batch in data:
            total = sum(stage.loss(batch, student, NoGrad()).values())
            total.backward()
            optimizer.step()
            optimizer.zero_grad()

    ratio = paired(benchmark, lambda: train(fabric, job, StageFolder(tmp_path / "stage"), Silent()), bare, rounds=5)
    print(f"\nstep {method}: {ratio:.3f} x bare")


def method_trains_first(nets: Networks) -> bool:
    """Whether the first stage is the method's heavy one, as where the distillation comes before the task."""
    assert nets.method is not None
    return not nets.method.stages()[0].phase.labelled


class InMemory:
    """Samples as a set that costs nothing to read."""

    domain, world, identity = "memory", "none", {}

    def __init__(self) -> None:
        self._image = torch.randint(0, 255, (64, 3, *MINI.image_size), dtype=torch.uint8)
        self._label = torch.randint(0, CLASSES, (64, *MINI.image_size), dtype=torch.uint8)

    def __len__(self) -> int:
        return 64

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        return self._image[index], self._label[index]


@pytest.mark.parametrize("role", ["dinov2-b", "deit-s", "resnet50"])
def test_evaluator_against_the_bare_forward(benchmark, role: str) -> None:  # type: ignore[no-untyped-def]
    nets = networks("baseline", student=role)
    model, samples = nets.student, InMemory()
    assert model is not None
    model.eval()
    images = [samples._image[i : i + 16].float().div(255) for i in range(0, 64, 16)]

    @torch.no_grad()
    def bare() -> None:
        for image in images:
            model(image)

    def ours() -> None:
        evaluate(model, samples, CLASSES, MINI.evaluation, torch.device("cpu"))

    print(f"\nevaluator {role}: {paired(benchmark, ours, bare, rounds=9):.3f} x bare")


def test_leaderboard_of_200_records_against_importing_pandas(benchmark, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    golden = (Path(__file__).parents[1] / "golden" / "record-v1.json").read_text(encoding="utf-8")
    for seed in range(200):
        path = tmp_path / "results" / "p" / f"x-s{seed}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(golden.replace('"seed":0', f'"seed":{seed}'), encoding="utf-8")

    def run(*command: str) -> None:
        subprocess.run([sys.executable, *command], check=True, capture_output=True)

    ratio = paired(
        benchmark,
        lambda: run("-m", "kdbench.cli", "leaderboard", "--results", str(tmp_path / "results")),
        lambda: run("-c", "import pandas"),
        rounds=5,
    )
    print(f"\nleaderboard: {ratio:.2f} x import pandas")


def test_labelled_and_unlabelled_phases_are_both_measured() -> None:
    """A guard on the choice above: the distilling stage of a staged method is not passed over."""
    phases = {name: networks(name).method.stages()[0].phase for name in METHODS}  # type: ignore[union-attr]
    assert Phase.PROXY in phases.values()
