"""Feature-based distillation: root mean squares of attended features, channels, positions and non-local relations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kdbench.methods.fbkd import FBKD, FBKDConfig, LevelAdapters, NonLocal
from torch import Tensor, nn

NAMES = ("feature", "channel", "spatial", "relation")
WEIGHTS = {"feature": 0.192, "channel": 0.0905, "spatial": 0.687, "relation": 0.192}


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def pointwise(map_: np.ndarray, layer: nn.Conv2d) -> np.ndarray:
    out = np.einsum("oc,bchw->bohw", array(layer.weight)[:, :, 0, 0], map_)
    return out if layer.bias is None else out + array(layer.bias)[:, None, None]


def non_local(map_: np.ndarray, block: NonLocal) -> np.ndarray:
    """Position by position: the mean over pooled positions n of (q . k_n) v_n, mapped back, normed and added."""
    batch, _, height, width = map_.shape
    query = pointwise(map_, block.query)
    keys, values = ([] for _ in range(2))
    for layer, cells in ((block.key, keys), (block.value, values)):
        full = pointwise(map_, layer)
        tall, wide = min(2, height), min(2, width)
        for y in range(height // tall):
            for x in range(width // wide):
                cells.append(full[:, :, tall * y : tall * y + tall, wide * x : wide * x + wide].max((2, 3)))
    gathered = np.zeros_like(query)
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                for key, value in zip(keys, values, strict=True):
                    gathered[b, :, y, x] += query[b, :, y, x] @ key[b] * value[b] / len(keys)
    out = pointwise(gathered, block.output[0])
    out = (out - out.mean((0, 2, 3), keepdims=True)) / np.sqrt(out.var((0, 2, 3), keepdims=True) + 1e-5)
    return map_ + out * array(block.output[1].weight)[:, None, None] + array(block.output[1].bias)[:, None, None]


def attended(map_: np.ndarray, temperature: float) -> np.ndarray:
    out = np.zeros((len(map_), 1, *map_.shape[-2:]))
    for b, image in enumerate(map_):
        raised = np.exp(np.abs(image).mean(0) / temperature)
        out[b, 0] = raised / raised.sum() * raised.size
    return out


def errors(level: LevelAdapters, student: np.ndarray, teacher: np.ndarray, temperature: float) -> dict[str, float]:
    mask = (attended(student, temperature) + attended(teacher, temperature)) / 2
    height, width = teacher.shape[-2:]
    padded = np.pad(student.mean(1), ((0, 0), (1, 1), (1, 1)))
    weight = array(level.spatial.weight)[0, 0]
    blurred = array(level.spatial.bias) + sum(
        weight[y, x] * padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)
    )
    channel = student.mean((2, 3)) @ array(level.channel.weight).T + array(level.channel.bias)
    block, adapter = level.student_relation
    relation = pointwise(non_local(student, block), adapter) - non_local(teacher, level.teacher_relation)
    squares = {
        "feature": (pointwise(student, level.feature) - teacher) ** 2 * mask,
        "channel": (channel - teacher.mean((2, 3))) ** 2,
        "spatial": (blurred - teacher.mean(1)) ** 2,
        "relation": relation**2,
    }
    return {name: math.sqrt(square.sum() / square.size) for name, square in squares.items()}


@pytest.fixture
def rough(random):
    """Norms and scales away from their start values, which would hide them."""

    def run(method: FBKD) -> FBKD:
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.add_(0.3 * random(*parameter.shape))
        return method

    return run


@pytest.fixture
def distil(make_batch, fake):
    """The four terms of a method and maps by level."""

    def run(method: FBKD, student: list[Tensor], teacher: list[Tensor], label: int = 0) -> dict[str, Tensor]:
        logits = torch.zeros(len(student[0]), 4, 2, 2)
        ours, theirs = (fake(logits, maps[-1], levels=maps) for maps in (student, teacher))
        terms = method.loss(make_batch(len(student[0]), label), ours, theirs)
        assert tuple(terms) == ("task", *NAMES)
        return {name: terms[name] for name in NAMES}

    return run


@pytest.mark.parametrize(("student_grid", "teacher_grid"), [((5, 4), (5, 4)), ((2, 3), (4, 5)), ((8, 8), (1, 4))])
def test_values_equal_loops_over_levels_and_positions(
    student_grid: tuple[int, int], teacher_grid: tuple[int, int], make_pair, distil, rough, random, bilinear
) -> None:
    method = rough(FBKD(FBKDConfig(), make_pair(4, 6, levels=2)))
    student = [random(2, 4, *student_grid) for _ in range(2)]
    teacher = [random(2, 6, *teacher_grid) for _ in range(2)]
    parts = [
        errors(level, bilinear(ours.numpy(), teacher_grid), array(theirs), 0.5)
        for level, ours, theirs in zip(method.levels, student, teacher, strict=True)
    ]
    values = distil(method, student, teacher)
    for name in NAMES:
        expected = WEIGHTS[name] * sum(part[name] for part in parts)
        assert values[name].item() == pytest.approx(expected, rel=1e-4), name


def test_attention_is_no_path_for_gradients(make_pair, distil, random) -> None:
    # With an adapter that maps everything to zero, the student acts on the first term through its attention alone.
    method = FBKD(FBKDConfig(), make_pair())
    nn.init.zeros_(method.levels[0].feature.weight)
    student = random(2, 3, 4, 8).requires_grad_()
    (gradient,) = torch.autograd.grad(distil(method, [student], [random(2, 5, 4, 8)])["feature"], student)
    assert gradient.abs().sum() == 0


def test_non_local_blocks_begin_as_the_identity(random) -> None:
    map_ = random(2, 6, 4, 8)
    assert torch.equal(NonLocal(6)(map_), map_)


def test_weights_do_not_depend_on_batch_width_and_grid(make_pair, distil, random) -> None:
    # An error of 2 everywhere costs as much however many elements there are.
    for images, width, grid in ((1, 4, (2, 3)), (3, 8, (4, 8))):
        method = FBKD(FBKDConfig(), make_pair(width, width))
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.zero_()
        values = distil(method, [random(images, width, *grid)], [torch.full((images, width, *grid), 2.0)])
        assert {name: value.item() for name, value in values.items()} == pytest.approx(
            {name: 2 * weight for name, weight in WEIGHTS.items()}
        )
