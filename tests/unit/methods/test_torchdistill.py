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
from closed_forms import array, convolve
from kdbench.methods import torchdistill as ours
from kdbench.methods.torchdistill import RULES, TorchDistill, TorchDistillConfig
from torch import Tensor, nn

from kdbench.types import STUDENT, Part, Phase

METHOD = TorchDistill
IMAGES, WIDTH, GRID = 3, 5, (8, 12)
POSITIONS = GRID[0] * GRID[1]
LOSSES = sorted(RULES)
WITHOUT_CODES = [loss for loss in LOSSES if loss != "FTLoss"]
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
    """A method on three levels, with maps that are compared as they come unless they are projected."""

    def build(loss: str, student: int = 3, teacher: int = WIDTH, projected: bool = True) -> TorchDistill:
        method = TorchDistill(TorchDistillConfig(loss=loss), make_pair(student, teacher, True, levels=3))
        if not projected:
            method.projectors = nn.ModuleList(nn.Identity() for _ in method.projectors)
        return method

    return build


@pytest.fixture
def network(fake, random):
    """Random logits, last map and levels."""

    def build(width: int, grid: tuple[int, int] = GRID):
        final, *levels = (random(IMAGES, width, *grid) for _ in range(4))
        return fake(random(IMAGES, 4, *grid), final, levels=levels)

    return build


def as_hooked(**maps: Any) -> dict[str, dict[str, Any]]:
    return {path: {"output": map_} for path, map_ in maps.items()}


def direct(package: ModuleType, loss: str, student: Any, teacher: Any) -> float:
    """The package's loss of maps of one width and grid, weighed as DIRECT says."""
    arguments, weight = DIRECT[loss]
    criterion, sides = getattr(package, loss)(**arguments), (student, teacher)
    # Each pixel of each image as a row, one after the other.
    pixels = [n.logits.permute(0, 2, 3, 1).reshape(-1, n.logits.shape[1]) for n in sides]
    if loss == "DISTPlusLoss":
        # The spatial relation runs over the first axis: here positions, as it should, not images.
        layers = [n.final.flatten(2).permute(2, 1, 0) for n in sides]
        pairs = [[as_hooked(head=head, layer=layer) for head, layer in zip(pixels, layers, strict=True)]]
    elif loss in ON_LOGITS:
        pairs = [[as_hooked(layer=each) for each in pixels]]
    elif loss == "FSPLoss":
        pairs = [[as_hooked(first=n.levels[k], second=n.levels[k + 1]) for n in sides] for k in (0, 1)]
    elif loss in ON_LEVELS:
        pairs = [[as_hooked(layer=n.levels[k]) for n in sides] for k in range(3)]
    else:
        pairs = [[as_hooked(layer=n.final) for n in sides]]
    return weight * sum(criterion(*pair).item() for pair in pairs)


def test_the_file_loads_without_the_package_and_building_names_the_extra(make_pair, monkeypatch) -> None:
    for name in ("torchdistill", "torchdistill.losses.mid_level"):
        monkeypatch.setitem(sys.modules, name, None)
    spec = importlib.util.spec_from_file_location("loaded_without", ours.__file__)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "loaded_without", module)
    spec.loader.exec_module(module)
    with pytest.raises(ImportError, match=r'pip install "kdbench\[torchdistill\]"'):
        module.TorchDistill(module.TorchDistillConfig(), make_pair())


def test_the_package_is_not_taken_for_the_file_of_its_name(make) -> None:
    origin = sys.modules[type(make("KTALoss").criterion).__module__].__file__
    assert Path(ours.__file__).resolve().parent not in Path(origin).resolve().parents


@pytest.mark.parametrize("loss", LOSSES)
def test_stages_read_logits_only_where_the_loss_does(loss: str, make) -> None:
    method = make(loss)
    *first, joint = method.stages()
    assert [stage.phase for stage in first] == [Phase.FIT_TEACHER] * (loss in ON_LOGITS) + [Phase.SOURCE] * (
        loss == "FTLoss"
    )
    assert joint.phase == Phase.TASK
    assert (Part.TEACHER_DECODER in joint.parts) == (loss in ON_LOGITS)
    assert joint.trains == STUDENT | (set() if loss in UNPROJECTED else {"projectors"})
    assert joint.smallest_batch == {"RKDLoss": 3, "SPKDLoss": 2}.get(loss, 1)


@pytest.mark.parametrize("loss", WITHOUT_CODES)
@pytest.mark.parametrize("grid", [GRID, (4, 6)])
def test_the_loss_is_what_the_package_computes_of_projected_and_resized_maps(
    loss: str, grid: tuple[int, int], package, make, network, fake, distil, resized
) -> None:
    width = WIDTH if loss in UNPROJECTED else 3
    student, teacher, method = network(width, grid), network(WIDTH), make(loss, width)

    def brought(map_: Tensor, level: int = 0) -> Tensor:
        values = array(map_)
        if loss not in UNPROJECTED:
            matrix = array(method.projectors[level if loss in ON_LEVELS else 0].linear.weight)
            values = np.einsum("ts,bshw->bthw", matrix, values)
        return torch.from_numpy(resized(values, GRID)).float()

    logits = torch.from_numpy(resized(student.logits, GRID)).float()
    levels = [brought(map_, level) for level, map_ in enumerate(student.levels)]
    expected = direct(package, loss, fake(logits, brought(student.final), levels=levels), teacher)
    assert distil(method, student, teacher).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_finer_grid_and_more_channels_of_the_same_content_change_nothing(
    loss: str, make, network, fake, distil
) -> None:
    def doubled(map_: Tensor, channels: int = 2) -> Tensor:
        return torch.cat([map_.repeat_interleave(2, 2).repeat_interleave(2, 3)] * channels, 1)

    def value(width: int, *sides: Any) -> float:
        method = make(loss, width, width, projected=False)
        if loss == "FTLoss":
            method.paraphraser.encoder = nn.Identity()
        return distil(method, *sides).item()

    sides = network(WIDTH), network(WIDTH)
    grown = [fake(doubled(n.logits, 1), doubled(n.final), levels=[doubled(level) for level in n.levels]) for n in sides]
    assert value(2 * WIDTH, *grown) == pytest.approx(value(WIDTH, *sides), rel=1e-4)


def test_dist_plus_rewards_channels_that_correlate(make, network, fake, distil) -> None:
    teacher, method = network(WIDTH), make("DISTPlusLoss", WIDTH, projected=False)
    flipped = fake(teacher.logits, -teacher.final)
    # Channels: from +1 to -1 at kappa 1; the sum over channels: the spatial relation from 0 to 2; both times two.
    assert distil(method, flipped, teacher) - distil(method, teacher, teacher) == pytest.approx(8, rel=1e-4)


def test_factors_are_compared_in_codes_of_half_the_channels(make, network, distil, resized) -> None:
    student, teacher, method = network(3, (4, 6)), network(8), make("FTLoss", 3, 8)

    def coded(map_: Any, layers: nn.Sequential) -> np.ndarray:
        """Convolutions, each with a slope of 0.1 below zero."""
        for layer in (each for each in layers if not isinstance(each, nn.LeakyReLU)):
            map_ = convolve(map_, layer)
            map_ = np.where(map_ > 0, map_, 0.1 * map_)
        return map_

    codes = resized(coded(student.final, method.projectors[0]), GRID), coded(teacher.final, method.paraphraser.encoder)
    assert codes[0].shape == codes[1].shape == (IMAGES, 4, *GRID)
    scaled = [code / np.sqrt((code**2).mean((1, 2, 3), keepdims=True)) for code in codes]
    expected = 1000 / math.sqrt(256 * 7 * 7) * np.abs(scaled[0] - scaled[1]).mean()
    assert distil(method, student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_the_paraphraser_learns_first_from_the_teacher_alone_and_is_frozen_after(make, network, make_batch) -> None:
    method, teacher = make("FTLoss"), network(WIDTH)
    first, joint = method.stages()
    assert (first.name, first.trains, first.parts) == ("paraphraser", {"paraphraser"}, {Part.TEACHER_ENCODER})
    assert (first.phase.labelled, first.student_forwards) == (False, 0)
    assert joint.trains == STUDENT | {"projectors"}
    terms = first.loss(make_batch(IMAGES), None, teacher)
    error = array(method.paraphraser(teacher.final)) - array(teacher.final)
    assert terms["paraphrase"].item() == pytest.approx((error**2).mean(), rel=1e-6)
