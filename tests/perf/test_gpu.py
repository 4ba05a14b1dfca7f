"""What has to hold on a GPU: equal losses, memory that halves, resuming, and how fast it is. `make test-gpu`.

Without a GPU the same tests rehearse on the processor with small networks; those that need one are left out. Figures
are printed as a table, and written as JSON where KDBENCH_GPU_REPORT names a file. No test asserts a time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import Tensor, nn

from kdbench.conformance import CLASSES
from kdbench.engine.distributed import make_fabric
from kdbench.engine.evaluation import confusion, evaluate
from kdbench.engine.memory import release_memory
from kdbench.engine.parts import Networks, compile_encoder
from kdbench.engine.store import StageFolder
from kdbench.engine.trainer import LossModule, TrainingJob, train
from kdbench.metrics import role_miou
from kdbench.models.backbones import build_pretrained, build_toy
from kdbench.models.geometry import Geometry
from kdbench.models.registry import MODELS
from kdbench.models.segmentor import SegmentationModel, build_decoder, seeded
from kdbench.progress import Silent
from kdbench.protocol import Evaluation, Recipe
from kdbench.records import read_record, record_files
from kdbench.types import Batch

CUDA = torch.cuda.is_available()
pytestmark = pytest.mark.slow
NEEDS_GPU = pytest.mark.skipif(not CUDA, reason="optional: a GPU")
DEVICE = torch.device("cuda" if CUDA else "cpu")
KINDS = ("baseline", "logit_kd", "cwd", "gkd", "proteus", "simkd")
"""The student alone, logits, feature maps, stages without labels, several losses at once, a module that is deployed."""
TOLERANCE = {"32-true": 0.01, "bf16-mixed": 0.03}
"""How far a term's mean over a stage may be from the CPU's in single precision, in parts of it."""
Report = Callable[..., None]


def mean_losses(done: Any) -> dict[str, float]:
    assert done.record.status == "done", done.record.error
    return {
        f"{stage.name} {term}": sum(curve) / len(curve)
        for stage in done.record.result.stages
        for term, curve in stage.losses.items()
    }


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("method", KINDS)
def test_losses_are_those_of_the_cpu(
    method: str, precision: str, run_cells: Callable[..., list[Any]], tmp_path: Path, report: Report
) -> None:
    (single,) = run_cells(methods=(method,))
    protocol = {"name": "there", "base": "smoke", "precision": precision}
    (there,) = run_cells(methods=(method,), protocol=protocol, device=DEVICE.type, store=tmp_path / "store")
    expected, found = mean_losses(single), mean_losses(there)
    assert expected.keys() == found.keys()
    apart = {term: abs(found[term] - loss) / max(abs(loss), 1e-3) for term, loss in expected.items()}
    report("losses against the CPU's", f"{method}, {precision}", apart=max(apart.values()))
    assert max(apart.values()) <= TOLERANCE[precision], apart


class InMemory:
    """Images and labels of a set, drawn at random."""

    domain, data_source = "somewhere", "memory"

    def __init__(self, count: int, size: tuple[int, int]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)
        self.labels = torch.randint(0, CLASSES, (count, *size), dtype=torch.uint8, generator=generator)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


def window_by_window(model: nn.Module, samples: InMemory, evaluation: Evaluation) -> Tensor:
    """Confusion matrices as plain code has them: a forward pass a window, scores added in place."""
    (height, width), (down, right), found = evaluation.window, evaluation.stride, []
    for index in range(len(samples)):
        image, label = (tensor.to(DEVICE) for tensor in samples.read(index))
        whole, scores, counts = image[None].float() / 255, None, None
        rows = [min(y, whole.shape[-2] - height) for y in range(0, whole.shape[-2] - height + down, down)]
        columns = [min(x, whole.shape[-1] - width) for x in range(0, whole.shape[-1] - width + right, right)]
        for y in dict.fromkeys(rows):
            for x in dict.fromkeys(columns):
                part = model(whole[..., y : y + height, x : x + width]).logits
                part = F.interpolate(part.float(), (height, width), mode="bilinear", align_corners=False)
                if scores is None or counts is None:
                    scores = torch.zeros(1, CLASSES, *whole.shape[-2:], device=DEVICE)
                    counts = torch.zeros(1, 1, *whole.shape[-2:], device=DEVICE)
                scores[..., y : y + height, x : x + width] += part
                counts[..., y : y + height, x : x + width] += 1
        assert scores is not None
        found.append(confusion((scores / counts).argmax(1), label[None].long(), CLASSES))
    return torch.cat(found)


def test_the_evaluator_against_a_loop_of_windows(report: Report) -> None:
    build, name = (build_pretrained, "dinov2-b") if CUDA else (build_toy, "dinov2-s")
    side, size, count = (512, (1024, 2048), 8) if CUDA else (32, (32, 64), 3)
    encoder = seeded(lambda: build(MODELS[name]), "gpu")
    if CUDA:
        encoder.adapt(Geometry(16, (side, side), "bicubic"))
    model = SegmentationModel(encoder, build_decoder("light", encoder.spec, CLASSES)).to(DEVICE).eval()
    samples, evaluation = InMemory(count, size), Evaluation(window=(side, side), stride=(side // 2, side // 2), batch=8)
    ways: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: torch.as_tensor(evaluate(model, samples, CLASSES, evaluation, DEVICE)),
        "loop": lambda: window_by_window(model, samples, evaluation).cpu(),
    }
    seconds, counts = [], []
    with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16, enabled=CUDA):
        for run in ways.values():
            run()
            started = time.perf_counter()
            counts.append(run().sum(0))
            seconds.append(time.perf_counter() - started)
    same = torch.minimum(*counts).sum() / counts[0].sum()
    report("evaluator", name, images_a_second=count / seconds[0], times_the_loop=seconds[1] / seconds[0])
    assert same > (0.99 if CUDA else 0.9999)


@NEEDS_GPU
def test_a_batch_beyond_the_memory_is_halved_and_gives_the_same(
    build_networks: Callable[..., Networks], tmp_path: Path, report: Report
) -> None:
    fabric = make_fabric("cuda", 1, "32-true")
    images = torch.rand(64, 3, 224, 224, device=DEVICE)
    batch = Batch(images, None, ("somewhere",) * 64, torch.arange(64))

    def run(name: str) -> tuple[int, dict[str, list[float]]]:
        encoder = seeded(lambda: build_pretrained(MODELS["deit-s"]), "gpu").to(DEVICE)
        module = LossModule({"student.encoder": encoder}, lambda b: {"square": encoder(b.image).final.square().mean()})
        recipe = Recipe(steps=4, batch=64, lr=1e-4)
        job = TrainingJob(name, module, recipe, 4, lambda start: iter([batch] * 4), (0,), (), 4)
        done = train(fabric, job, StageFolder(tmp_path / name), Silent())
        return done.micro_batches, done.losses

    torch.cuda.reset_peak_memory_stats()
    whole, expected = run("whole")
    part = 0.6 * torch.cuda.max_memory_allocated() / torch.cuda.get_device_properties(0).total_memory
    release_memory()
    torch.cuda.set_per_process_memory_fraction(part)
    try:
        halved, found = run("halved")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    report("memory", "deit-s, 64 images", micro_batches=halved)
    assert (whole, halved) == (1, 2)
    assert found["square"] == pytest.approx(expected["square"], rel=1e-3)


@NEEDS_GPU
@pytest.mark.parametrize("name", ["deit-s", "dinov2-b", "resnet50"])
def test_compiled_encoders_are_the_encoders(name: str, report: Report) -> None:
    encoder = seeded(lambda: build_pretrained(MODELS[name]), "gpu").to(DEVICE)
    fabric = Fabric(accelerator="cuda", devices=1, precision="bf16-mixed")
    started = time.perf_counter()
    with fabric.autocast():
        # It compares what it compiled, and raises where that differs.
        compile_encoder(encoder, name, (224, 224), torch.bfloat16)
    report("torch.compile", name, seconds=time.perf_counter() - started)


def test_a_killed_run_goes_on(tmp_path: Path, report: Report) -> None:
    def command(place: str) -> list[str]:
        return [
            sys.executable, "-m", "kdbench.cli", "run", "--method", "gkd", "--pair", "dinov2-s:resnet18", "--protocol",
            "smoke", "--benchmark", "g2c", "--device", DEVICE.type, "--no-references", "--store",
            str(tmp_path / place / "store"), "--results", str(tmp_path / place / "results"),
        ]  # fmt: skip

    def finish(place: str) -> float:
        done = subprocess.run(command(place), capture_output=True, text=True, check=False, env=one_thread)
        assert done.returncode == 0, done.stderr
        (path,) = record_files(tmp_path / place / "results")
        return role_miou(read_record(path), "target")

    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command("killed"), env=one_thread, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list((tmp_path / "killed" / "store").glob("stages/*/checkpoint*")):
        time.sleep(0.02)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed, whole = finish("killed"), finish("whole")
    report("kill -9, then the same command", "gkd, smoke", points_apart=abs(killed - whole))
    # On a GPU the order of sums is free.
    assert killed == pytest.approx(whole, abs=1.5 if CUDA else 0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="optional: two GPUs")
def test_two_gpus_leave_one_record(tmp_path: Path, report: Report) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "kdbench.cli",
    ]
    asked = ["run", "--method", "gkd", "--pair", "dinov2-s:deit-s", "--benchmark", "g2c", "--protocol", "smoke"]
    places = ["--store", str(tmp_path / "store"), "--results", str(tmp_path / "results")]
    done = subprocess.run([*command, *asked, *places], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    records = {path.stem: read_record(path).status for path in record_files(tmp_path / "results")}
    report("two GPUs", "gkd, smoke", records=len(records))
    assert records == {"teacher-s0": "done", "baseline-s0": "done", "gkd-s0": "done"}
