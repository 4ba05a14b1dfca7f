"""What the harness costs on top of the bare arithmetic, as ratios within one run. No test asserts a time.

    make test-slow        # or: python -m pytest tests/perf -m slow -s

Aims: a training step at most 1.10 times, the evaluator at most 1.15 times the bare arithmetic; `kdbench leaderboard` on
200 records at most 3 times `python -c "import pandas"`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from kdbench.conformance import CLASSES
from kdbench.data.datasets import ADAPTERS
from kdbench.data.loading import SampleIndex, StepBatches
from kdbench.data.realset import RealSet
from kdbench.data.sizing import Native
from kdbench.data.transforms import make_views
from kdbench.engine.evaluation import evaluate
from kdbench.engine.parts import Networks, stage_models
from kdbench.engine.store import StageFolder
from kdbench.engine.trainer import LossModule, TrainingJob, make_optimizer, train
from kdbench.method import Stage
from kdbench.models.backbones import build_pretrained, build_toy
from kdbench.models.geometry import Geometry
from kdbench.progress import Silent
from kdbench.protocol import MINI, PAPER, Recipe
from kdbench.tools.prepare import pack
from kdbench.types import Batch, Phase

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("all_cores")]
STEPS, PAIR = 6, "dinov2-b:deit-s"
METHODS = ("baseline", "cwd", "gkd")
"""Without a teacher, with one beside the labels, and in a stage without labels."""


def trainer(nets: Networks, stage: Stage, recipe: Recipe, data: list[Batch], folder: Path) -> Callable[[], Any]:
    """Takes a stage's steps over some batches, through the engine's loop."""
    trained = nets.freeze_all_but(stage.trains)
    job = TrainingJob(
        what="perf", module=LossModule(trained, lambda b: stage.loss(b, *stage_models(nets, stage))), recipe=recipe,
        steps=len(data), batches=lambda start: iter(data), randomness=(0,), snapshots=(), checkpoint_every=10**9,
    )  # fmt: skip
    fabric = Fabric(accelerator="cpu", devices=1)
    return lambda: train(fabric, job, StageFolder(folder / "stage"), Silent())


@pytest.mark.parametrize("method", METHODS)
def test_step_against_the_bare_step(  # type: ignore[no-untyped-def]
    compare, build_networks, random_batches, tmp_path: Path, method: str
) -> None:
    """The method's last stage, through the trainer and by hand: same networks, loss, optimiser and data in memory."""
    nets = build_networks(method, PAIR, build_toy)
    assert nets.method is not None
    first, *_, last = nets.method.stages() * 2
    # Where the distillation comes before the task, the first stage is the heavy one.
    stage = last if first.phase.labelled else first
    data = random_batches(STEPS, 16)
    recipe = MINI.recipes[stage.phase]
    trained = nets.freeze_all_but(stage.trains)
    student, teacher = nets.student, nets.teacher
    ours = trainer(nets, stage, recipe, data, tmp_path)
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

    print(f"\nstep {method}: {compare(ours, bare, rounds=5)}")


def proxy_step_by_hand(nets: Networks, recipe: Recipe) -> Callable[[Batch], Tensor]:
    """GKD's proxy step in timm's and torch's own calls (paper, section 3); returns the loss.

    As released but for one thing: the student's two passes are one batch, in which unmasked images stand once.
    """
    nets.teacher.requires_grad_(False)
    student, heads = nets.student.encoder, nets.method
    teacher, body = nets.teacher.encoder.body, student.body
    learns = [*student.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(learns, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)

    def step(batch: Batch) -> Tensor:
        image = (batch.image - student.mean) / student.std
        with torch.no_grad():
            goal = teacher.forward_features(image)
        half, count = len(image) // 2, goal.shape[1] - 1
        hidden = torch.rand(len(image), count).argsort(1).argsort(1) < count // 2
        patches = body.patch_embed(torch.cat((image, image[:half])))
        patches[len(image) :][hidden[:half].view(half, *patches.shape[1:3])] = student.mask_token
        found = body.norm(body.blocks(body._pos_embed(patches)))
        whole, masked = found[: len(image)], torch.cat((found[len(image) :, 1:], found[half : len(image), 1:]))
        token = heads.token_head(whole[:, :1], goal[:, :1])
        rows = torch.cat((token, heads.feature_head(whole[:, 1:], goal[:, 1:])), 1)
        patch = F.mse_loss(heads.patch_head(masked, goal[:, 1:]), goal[:, 1:])
        total = F.mse_loss(token, goal[:, :1]) + F.mse_loss(rows, goal) + patch
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        return total.detach()

    return step


def test_proxy_step_of_real_networks_against_bare_arithmetic(  # type: ignore[no-untyped-def]
    compare, build_networks, random_batches, tmp_path: Path
) -> None:
    """ViT-B as DINOv2's to ViT-S as DeiT's, random weights: 4 images of 224 pixels a step, as in the paper's recipe."""
    recipe = PAPER.recipes[Phase.PROXY].model_copy(update={"repeats": 1})
    size = recipe.size(PAPER.image_size)
    assert recipe.patch is not None
    geometry, data = Geometry(recipe.patch, size, PAPER.resampling), random_batches(2, 4, size=size)
    nets = build_networks("gkd", PAIR, build_pretrained, geometry)
    assert nets.method is not None
    stage = nets.method.stages()[0]
    ours, by_hand = trainer(nets, stage, recipe, data, tmp_path), proxy_step_by_hand(nets, recipe)

    torch.manual_seed(0)
    expected = sum(term.item() for term in stage.loss(data[0], *stage_models(nets, stage)).values())
    torch.manual_seed(0)
    assert by_hand(data[0]).item() == pytest.approx(expected, rel=1e-4)
    print(f"\nproxy step {PAIR}: {compare(ours, lambda: [*map(by_hand, data)], rounds=3)}")


class InMemory:
    """Samples as a set that costs nothing to read."""

    domain, data_source, identity = "memory", "none", {}

    def __init__(self) -> None:
        self._image = torch.randint(0, 255, (64, 3, *MINI.image_size), dtype=torch.uint8)
        self._label = torch.randint(0, CLASSES, (64, *MINI.image_size), dtype=torch.uint8)

    def __len__(self) -> int:
        return 64

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        return self._image[index], self._label[index]


def test_views_against_torchvision_sample_by_sample(compare) -> None:  # type: ignore[no-untyped-def]
    recipe, samples, size = MINI.recipes[Phase.TASK], [InMemory().read(index) for index in range(8)], MINI.image_size
    ours, jitter = make_views(recipe.augmentation, size), recipe.augmentation
    theirs = v2.Compose([
        v2.RandomResizedCrop(size, jitter.scale, ratio=(1.6, 2.5), antialias=True),
        v2.RandomHorizontalFlip(jitter.flip),
        v2.ColorJitter(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue),
    ])  # fmt: skip

    def bare() -> None:
        for image, label in samples:
            theirs(tv_tensors.Image(image), tv_tensors.Mask(label))

    print(f"\nviews of a batch: {compare(lambda: ours(samples, range(8)), bare, rounds=50)}")


@pytest.mark.parametrize("role", ["deit-s", "resnet50"])
def test_evaluator_against_the_bare_forward(compare, build_networks, role: str) -> None:  # type: ignore[no-untyped-def]
    nets = build_networks("baseline", f"dinov2-b:{role}", build_toy)
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

    print(f"\nevaluator {role}: {compare(ours, bare, rounds=9)}")


def test_leaderboard_of_200_records_against_importing_pandas(compare, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    golden = (Path(__file__).parents[1] / "golden" / "record-v1.json").read_text(encoding="utf-8")
    for seed in range(200):
        path = tmp_path / "results" / "p" / f"x-s{seed}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(golden.replace('"seed":0', f'"seed":{seed}'), encoding="utf-8")

    def run(*command: str) -> None:
        subprocess.run([sys.executable, *command], check=True, capture_output=True)

    found = compare(
        lambda: run("-m", "kdbench.cli", "leaderboard", "--results", str(tmp_path / "results")),
        lambda: run("-c", "import pandas"),
        rounds=5,
    )
    print(f"\nleaderboard against importing pandas: {found}")


@pytest.mark.parametrize("packed", [False, True], ids=["files", "packed"])
def test_reading_against_a_decoding_for_every_view(compare, tmp_path: Path, packed: bool) -> None:  # type: ignore[no-untyped-def]
    """GKD's source views of PNGs of GTAV's size, each image three times in a batch."""
    seeded = np.random.default_rng(0)

    def open_set(root: Path) -> StepBatches:
        samples = RealSet("source", ADAPTERS["urbansyn"].scan(root), ("all",), Native(), labelled=False)
        return StepBatches((samples,), PAPER.recipes[Phase.SOURCE], (512, 512), 0, Phase.SOURCE)

    for index in range(4):
        coarse = Image.fromarray(seeded.integers(0, 256, (66, 120, 3), np.uint8))
        picture = np.asarray(coarse.resize((1914, 1052), Image.Resampling.BICUBIC), np.int16)
        noisy = (picture + seeded.normal(0, 3, picture.shape)).clip(0, 255).astype(np.uint8)
        for name, pixels in (("rgb", noisy), ("ss", noisy[..., 0] // 14)):
            path = tmp_path / "files/urbansyn" / name / f"{name}_{index:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    files = open_set(tmp_path / "files")
    if packed:
        shutil.copytree(tmp_path / "files", tmp_path / "packed")
        pack(ADAPTERS["urbansyn"], tmp_path / "packed", (), 1, Silent())
    ours = open_set(tmp_path / ("packed" if packed else "files"))
    drawn = [SampleIndex(0, place // 3, place % 3) for place in range(12)]
    bare = lambda: [files[[index]] for index in drawn]  # noqa: E731
    print(f"\nrepeated views, packed {packed}: {compare(lambda: ours[drawn], bare, rounds=5)}")
