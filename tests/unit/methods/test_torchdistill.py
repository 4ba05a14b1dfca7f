"""torchdistill's losses: each is what the package computes itself, weighed alike on every grid and width."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from kdbench.methods import torchdistill as ours
from kdbench.methods.at import AT, ATConfig
from kdbench.methods.review_kd import ReviewKD, ReviewKDConfig
from kdbench.methods.torchdistill import RULES, TorchDistill, TorchDistillConfig
from kdbench.methods.vid import VID, VIDConfig
from torch import Tensor, nn

from kdbench.losses import Projector
from kdbench.types import STUDENT, Part, Phase

IMAGES, WIDTH, CLASSES, GRID = 3, 5, 4, (8, 12)
POSITIONS = GRID[0] * GRID[1]
LOSSES = sorted(RULES)
ON_LOGITS = {"KDLoss", "LogitStdKDLoss", "DISTLoss", "DISTPlusLoss"}
ON_LEVELS = {"ATLoss", "AltActTransferLoss", "FSPLoss"}
UNPROJECTED = {"KDLoss", "LogitStdKDLoss", "DISTLoss", "ATLoss", "RKDLoss", "SPKDLoss"}

HERE = {"io": "output", "path": "layer"}
PAIRS = {"one": {"student": HERE, "teacher": HERE}}
STEPS = {
    "one": {
        f"{side}_{place}": {"io": "output", "path": place}
        for side in ("student", "teacher")
        for place in ("first", "second")
    }
}
MODULES = {f"{side}_module_{what}": value for side in ("student", "teacher") for what, value in
           (("path", "layer"), ("io", "output"))}  # fmt: skip
BOTH = {f"{side}_{map_}_module_{what}": value for side in ("student", "teacher") for map_, path in
        (("logit", "head"), ("feature", "layer")) for what, value in (("path", path), ("io", "output"))}  # fmt: skip
OUTPUTS = {"student_output_path": "layer", "teacher_output_path": "layer"}
PIXELS = {**MODULES, "alpha": 0, "beta": 1}

# The package's own arguments, and the weight of its value: its sample's, at the extent of these maps.
DIRECT: dict[str, tuple[dict[str, Any], float]] = {
    "KTALoss": (
        {"knowledge_translator_path": "layer", "feature_adapter_path": "layer"},
        50 * math.sqrt(WIDTH * POSITIONS / 36000),
    ),
    "FTLoss": (
        {"paraphraser_path": "layer", "translator_path": "layer"}, 1000 * math.sqrt(WIDTH * POSITIONS / 12544)
    ),
    "AffinityLoss": (dict(MODULES), POSITIONS / 3600 * 10 / WIDTH),
    "ATLoss": ({"at_pairs": PAIRS}, 1000 * POSITIONS / 196),
    "AltActTransferLoss": ({"feature_pairs": PAIRS, "margin": 1.0, "reduction": "mean"}, 1 / (WIDTH * POSITIONS)),
    "FSPLoss": ({"fsp_pairs": STEPS}, WIDTH**-1.5),
    "ChSimLoss": ({"feature_pairs": PAIRS}, 500 * IMAGES / 256),
    "RKDLoss": ({**OUTPUTS, "dist_factor": 1.0, "angle_factor": 2.0, "reduction": "mean"}, 1.0),
    "SPKDLoss": ({**OUTPUTS, "reduction": "batchmean"}, 1.0),
    "KDLoss": ({**PIXELS, "temperature": 1.0}, 0.5),
    "LogitStdKDLoss": ({**PIXELS, "temperature": 2.0}, 36.0),
    "DISTLoss": (dict(MODULES), 2.0),
    "DISTPlusLoss": ({**BOTH, "beta": 2.0, "gamma": 2.0, "iota": -1.0}, 2.0),
}  # fmt: skip


@pytest.fixture
def package() -> ModuleType:
    """The package's losses, called without the method."""
    return pytest.importorskip("torchdistill.losses.mid_level", reason="optional: torchdistill")


@pytest.fixture
def make(package, make_pair):
    """A method on three levels."""

    def build(loss: str, student: int = 3, teacher: int = WIDTH, cnn: bool = False, **config: float) -> TorchDistill:
        return TorchDistill(TorchDistillConfig(loss=loss, **config), make_pair(student, teacher, cnn, levels=3))

    return build


@pytest.fixture
def network(fake, random):
    """Random logits, last map and levels."""

    def build(width: int, grid: tuple[int, int] = GRID, images: int = IMAGES, levels: int = 3, scale: float = 1):
        maps = [scale * random(images, width, *grid) for _ in range(levels + 1)]
        return fake(scale * random(images, CLASSES, *grid), maps[0], levels=maps[1:])

    return build


@pytest.fixture
def distil(make_batch):
    """The distillation term alone."""

    def run(method: TorchDistill, student: Any, teacher: Any) -> Tensor:
        terms = method.loss(make_batch(len(student.logits)), student, teacher)
        assert set(terms) == {"task", method.config.loss}
        return terms[method.config.loss]

    return run


def rows(logits: Tensor) -> Tensor:
    """Each pixel of each image as a row, one after the other."""
    return torch.stack([image[:, y, x] for image in logits for y in range(GRID[0]) for x in range(GRID[1])])


def as_hooked(**maps: Any) -> dict[str, dict[str, Any]]:
    return {path: {"output": map_} for path, map_ in maps.items()}


def direct(package: ModuleType, loss: str, student: Any, teacher: Any) -> float:
    """The package's loss of maps of one width and grid, weighed as DIRECT says."""
    arguments, weight = DIRECT[loss]
    criterion = getattr(package, loss)(**arguments)
    if loss == "DISTPlusLoss":
        # The spatial relation runs over the first axis: here positions, as it should, not images.
        maps = [(rows(n.logits), n.final.flatten(2).permute(2, 1, 0)) for n in (student, teacher)]
        pairs = [tuple(as_hooked(head=head, layer=layer) for head, layer in maps)]
    elif loss in ON_LOGITS:
        pairs = [(as_hooked(layer=rows(student.logits)), as_hooked(layer=rows(teacher.logits)))]
    elif loss == "FSPLoss":
        pairs = [
            tuple(as_hooked(first=n.levels[level], second=n.levels[level + 1]) for n in (student, teacher))
            for level in (0, 1)
        ]
    else:
        maps = (
            zip(student.levels, teacher.levels, strict=True) if loss in ON_LEVELS else [(student.final, teacher.final)]
        )
        pairs = [(as_hooked(layer=a), as_hooked(layer=b)) for a, b in maps]
    return weight * sum(criterion(*pair).item() for pair in pairs)


def unprojected(method: TorchDistill) -> TorchDistill:
    """The method with maps that are compared as they come, and codes that are the maps."""
    method.projectors = nn.ModuleList(nn.Identity() for _ in method.projectors)
    if hasattr(method, "paraphraser"):
        method.paraphraser.encoder = nn.Identity()
    return method


def test_the_file_loads_without_the_package_and_building_names_the_extra(make_pair, monkeypatch) -> None:
    for name in ("torchdistill", "torchdistill.losses.mid_level"):
        monkeypatch.setitem(sys.modules, name, None)
    spec = importlib.util.spec_from_file_location("loaded_without", ours.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "loaded_without", module)
    spec.loader.exec_module(module)
    with pytest.raises(ImportError, match=r'pip install "kdbench\[torchdistill\]"'):
        module.TorchDistill(module.TorchDistillConfig(), make_pair())


def test_the_package_is_not_taken_for_the_file_of_its_name(make) -> None:
    origin = sys.modules[type(make("KTALoss").criterion).__module__].__file__
    assert origin is not None
    assert Path(ours.__file__).resolve().parent not in Path(origin).resolve().parents


@pytest.mark.parametrize("loss", LOSSES)
def test_stages_read_logits_only_where_the_loss_does(loss: str, make) -> None:
    method = make(loss)
    stages = method.stages()
    joint = stages[-1]
    first = [Phase.FIT_TEACHER] * (loss in ON_LOGITS) + [Phase.SOURCE] * (loss == "FTLoss")
    assert [stage.phase for stage in stages] == [*first, Phase.TASK]
    assert (Part.TEACHER_DECODER in joint.parts) == (loss in ON_LOGITS)
    own = set() if loss in UNPROJECTED else {"projectors"}
    assert joint.trains == STUDENT | own
    assert len(method.projectors) == (3 if loss in ON_LEVELS else 1)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_is_what_the_package_computes(loss: str, package, make, network, distil) -> None:
    student, teacher = network(WIDTH), network(WIDTH)
    method = unprojected(make(loss, WIDTH))
    expected = direct(package, loss, student, teacher)
    assert distil(method, student, teacher).item() == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_students_maps_are_projected_then_resized(loss: str, package, make, network, fake, distil, bilinear) -> None:
    student, teacher = network(3, (4, 6)), network(WIDTH)
    if loss in UNPROJECTED - ON_LOGITS:
        student.final, student.levels = (
            torch.cat((student.final, student.final[:, :2]), 1),
            tuple(torch.cat((level, level[:, :2]), 1) for level in student.levels),
        )
    method = make(loss, 3, cnn=True)
    if loss == "FTLoss":
        method.paraphraser.encoder = nn.Identity()
        method.projectors = nn.ModuleList([Projector(3, WIDTH, convolutional=True)])

    def brought(map_: Tensor, level: int) -> Tensor:
        array = map_.double().numpy()
        if loss not in UNPROJECTED:
            matrix = method.projectors[level if loss in ON_LEVELS else 0].linear.weight.detach().double().numpy()
            array = np.einsum("ts,bshw->bthw", matrix, array)
        return torch.from_numpy(bilinear(array, GRID)).float()

    resized = fake(
        torch.from_numpy(bilinear(student.logits.numpy(), GRID)).float(),
        brought(student.final, 0) if loss not in ON_LEVELS else None,
        levels=[brought(map_, level) for level, map_ in enumerate(student.levels)] if loss in ON_LEVELS else (),
    )
    expected = direct(package, loss, resized, teacher)
    assert distil(method, student, teacher).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_finer_grid_and_more_channels_of_the_same_content_change_nothing(
    loss: str, make, network, fake, distil
) -> None:
    def doubled(map_: Tensor, channels: int = 2) -> Tensor:
        finer = map_.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return torch.cat([finer] * channels, 1)

    def grown(n: Any) -> Any:
        return fake(doubled(n.logits, 1), doubled(n.final), levels=[doubled(level) for level in n.levels])

    student, teacher = network(WIDTH), network(WIDTH)
    before = distil(unprojected(make(loss, WIDTH)), student, teacher).item()
    after = distil(unprojected(make(loss, 2 * WIDTH, 2 * WIDTH)), grown(student), grown(teacher)).item()
    assert after == pytest.approx(before, rel=1e-4)


def test_dist_plus_rewards_channels_that_correlate(make, network, fake, distil) -> None:
    teacher = network(WIDTH)
    flipped = fake(teacher.logits, -teacher.final)
    method = unprojected(make("DISTPlusLoss", WIDTH))
    # Channels: from +1 to -1 at kappa 1; the sum over channels: the spatial relation from 0 to 2; both times two.
    assert distil(method, flipped, teacher) - distil(method, teacher, teacher) == pytest.approx(8, rel=1e-4)


def test_relations_of_images_ask_for_as_many(make) -> None:
    asked = {loss: make(loss).stages()[-1].smallest_batch for loss in LOSSES}
    assert {loss: count for loss, count in asked.items() if count > 1} == {"RKDLoss": 3, "SPKDLoss": 2}


@pytest.mark.parametrize("loss", ["RKDLoss", "SPKDLoss"])
def test_with_one_image_fewer_there_is_nothing_to_compare(loss: str, make, network, distil) -> None:
    method = make(loss)
    images = method.smallest_batch - 1
    assert distil(method, network(3, images=images), network(WIDTH, images=images)).item() == pytest.approx(0, abs=1e-9)


# Factor transfer: codes, from modules of the package.


def convolved(map_: Tensor, layers: nn.Sequential) -> Tensor:
    """Three 3x3 convolutions, each as nine shifted products in float64, with a slope of 0.1 below zero."""
    for conv in (layer for layer in layers if not isinstance(layer, nn.LeakyReLU)):
        padded = nn.functional.pad(map_.double(), (1, 1, 1, 1))
        height, width = map_.shape[-2:]
        shifted = sum(
            torch.einsum("oi,bihw->bohw", conv.weight[:, :, y, x].double(), padded[:, :, y : y + height, x : x + width])
            for y in range(3)
            for x in range(3)
        )
        value = shifted + conv.bias.double().view(-1, 1, 1)
        map_ = torch.where(value > 0, value, 0.1 * value)
    return map_


def test_factors_are_compared_in_codes_of_half_the_channels(make, network, distil, bilinear) -> None:
    student, teacher = network(3, (4, 6)), network(8)
    method = make("FTLoss", 3, 8)
    with torch.no_grad():
        ours = bilinear(convolved(student.final, method.projectors[0]).numpy(), GRID)
        theirs = convolved(teacher.final, method.paraphraser.encoder).numpy()
    assert ours.shape == theirs.shape == (IMAGES, 4, *GRID)
    total = 0.0
    for a, b in zip(ours, theirs, strict=True):
        total += np.abs(a / np.sqrt((a**2).mean()) - b / np.sqrt((b**2).mean())).mean() / IMAGES
    assert distil(method, student, teacher).item() == pytest.approx(1000 / 112 * total, rel=1e-5)


def test_the_paraphraser_learns_first_from_the_teacher_alone_and_is_frozen_after(make, network, make_batch) -> None:
    method, teacher = make("FTLoss"), network(WIDTH)
    first, joint = method.stages()
    assert (first.name, first.trains, first.parts) == ("paraphraser", {"paraphraser"}, {Part.TEACHER_ENCODER})
    assert (first.phase.labelled, first.student_forwards) == (False, 0)
    assert joint.trains == STUDENT | {"projectors"}
    terms = first.loss(make_batch(IMAGES), None, teacher)
    rebuilt = method.paraphraser(teacher.final).detach().double()
    expected = sum(((a - b) ** 2).sum() for a, b in zip(rebuilt, teacher.final.double(), strict=True)) / rebuilt.numel()
    assert terms["paraphrase"].item() == pytest.approx(expected.item(), rel=1e-6)
    terms["paraphrase"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in method.paraphraser.parameters())


# Our own files, against the package.


def test_our_attention_transfer_is_the_packages(package, make_pair, make_batch, network) -> None:
    student, teacher = network(3), network(WIDTH)
    term = AT(ATConfig(mean_weight=1), make_pair()).loss(make_batch(IMAGES), student, teacher)["at"]
    theirs = package.ATLoss(PAIRS)(as_hooked(layer=student.final), as_hooked(layer=teacher.final))
    # Theirs is the mean over positions too.
    assert term.item() == pytest.approx(POSITIONS * theirs.item(), rel=1e-6)


def test_our_variational_distillation_is_the_packages(package, make_pair, make_batch, network, random) -> None:
    student, teacher = network(3), network(WIDTH)
    method = VID(VIDConfig(), make_pair(levels=3))
    total = 0.0
    with torch.no_grad():
        for gaussian, map_, target in zip(method.gaussians, student.levels, teacher.levels, strict=True):
            gaussian.scale.add_(random(WIDTH))
            predicted = gaussian.mean(map_), (gaussian.scale.exp() + 1).log().view(-1, 1, 1) + 1e-5
            total += package.VIDLoss(PAIRS)(as_hooked(layer=predicted), as_hooked(layer=target)).item()
        term = method.loss(make_batch(IMAGES), student, teacher)["vid"]
    assert term.item() == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("grid", [GRID, (3, 6), (2, 2)])
def test_our_review_loss_is_the_packages(grid: tuple[int, int], package, make_pair, make_batch, network) -> None:
    student, teacher = network(3, grid), network(WIDTH, grid)
    method = ReviewKD(ReviewKDConfig(warm_up=0), make_pair(levels=3))
    criterion = package.HierarchicalContextLoss(**MODULES)
    residual, total = student.levels[-1], 0.0
    with torch.no_grad():
        levels = zip(method.fusions, student.levels[::-1], teacher.levels[::-1], strict=True)
        for fusion, map_, target in levels:
            output, residual = fusion(map_, residual, grid)
            total += criterion(as_hooked(layer=(output, residual)), as_hooked(layer=target)).item()
        term = method.loss(make_batch(IMAGES), student, teacher)["review_kd"]
    assert term.item() == pytest.approx(total, rel=1e-6)
