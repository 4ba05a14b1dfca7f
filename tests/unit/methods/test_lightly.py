"""LightlyTrain's distillation: mixed images, similarities with tokens and with a queue (v3), maps (v2)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from kdbench.methods.lightly import EmbeddingQueue, Lightly, LightlyConfig, mix
from torch import Tensor

from kdbench.types import PairSpec

GRID = (2, 3)


def affine(layer, rows: np.ndarray) -> np.ndarray:
    weight, bias = (parameter.detach().double().numpy() for parameter in layer.parameters())
    return rows @ weight.reshape(len(weight), -1).T + bias


def rows_of(map_: Tensor) -> np.ndarray:
    """(B, C, ...) as (B, N, C) in float64."""
    return map_.detach().double().numpy().reshape(*map_.shape[:2], -1).transpose(0, 2, 1)


def divergence(student: np.ndarray, teacher: np.ndarray, others: np.ndarray, their_others: np.ndarray) -> float:
    """KL(teacher || student) of a softmax over cosines / 0.07, mean over rows, one row after the other."""

    def shares(vector: np.ndarray, among: np.ndarray) -> list[float]:
        lengths = [float(np.linalg.norm(vector) * np.linalg.norm(other)) for other in among]
        cosines = [float(vector @ o) / n if n else 0.0 for o, n in zip(among, lengths, strict=True)]
        scores = [math.exp(cosine / 0.07) for cosine in cosines]
        return [score / sum(scores) for score in scores]

    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        pairs = zip(shares(theirs, their_others), shares(ours, others), strict=True)
        total += sum(p * math.log(p / q) for p, q in pairs)
    return total / len(student)


@pytest.fixture
def pair(make_pair) -> PairSpec:
    """A teacher whose last blocks are 4 and 5 wide, as in a pyramid; its levels tell nothing of them."""
    plain = make_pair(3, 5, levels=1)
    return replace(plain, teacher=replace(plain.teacher, blocks=(2, 4, 5)))


@pytest.fixture
def make(pair, random):
    """A method whose heads are away from their small start."""

    def build(**config: object) -> Lightly:
        method = Lightly(LightlyConfig(**config), pair)
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.add_(0.5 * random(*parameter.shape))
        return method

    return build


@pytest.fixture
def sides(fake, random):
    return fake(None, random(4, 3, *GRID), random(4, 3)), fake(None, random(4, 5, *GRID), random(4, 5))


def test_images_are_blended_with_others_at_one_share(random) -> None:
    # One-hot images: the blend shows each image's share of itself and whom it was blended with.
    torch.manual_seed(0)
    image = torch.eye(8)[:, :, None, None].expand(8, 8, 2, 2)
    shares = []
    for _ in range(20):
        blend = mix(image)
        assert torch.allclose(blend.sum(1), torch.ones(8, 2, 2))
        assert torch.allclose(blend.sum(0), torch.ones(8, 2, 2))
        own = blend[range(8), range(8), 0, 0]
        others = own[own < 1 - 1e-6]
        assert torch.allclose(others, others[:1].expand_as(others))
        shares.append(others[0].item())
    assert 0 < min(shares) < 0.4 < 0.6 < max(shares) < 1


def test_both_networks_see_the_same_mixed_images(make, make_batch, sides, monkeypatch) -> None:
    seen: list[Tensor] = []
    for side in sides:
        encode = side.encode
        monkeypatch.setattr(side, "encode", lambda image, encode=encode: (seen.append(image), encode(image))[1])
    batch = make_batch(4)
    batch.image[:] = torch.arange(4.0)[:, None, None, None]
    torch.manual_seed(1)
    make(queue=8).loss(batch, *sides)
    assert torch.equal(*seen)
    assert not torch.equal(seen[0], batch.image)
    assert batch.image[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_local_term_compares_the_tokens_of_an_image(make, make_batch, sides) -> None:
    method, (student, teacher) = make(queue=8, local=2.0), sides
    ours, theirs = affine(method.local_head, rows_of(student.final)), rows_of(teacher.final)
    expected = np.mean([divergence(s, t, s, t) for s, t in zip(ours, theirs, strict=True)])
    assert method.loss(make_batch(4), *sides)["local"].item() == pytest.approx(2 * expected, rel=1e-5)


def test_global_term_compares_with_a_queue_that_holds_this_batch(make, make_batch, sides) -> None:
    method, (student, teacher) = make(queue=6), sides
    old = teacher.pooled.flip(1)
    method.queue.push(torch.nn.functional.normalize(old, dim=1))
    ours = affine(method.global_head, student.pooled.double().numpy())
    theirs = teacher.pooled.double().numpy()
    rows = np.concatenate((theirs, old.double().numpy()[:2]))
    expected = divergence(ours, theirs, rows, rows)
    assert method.loss(make_batch(4), *sides)["global"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("size", [5, 9, 8192])
def test_rows_not_yet_filled_count_in_neither_softmax(size: int, make, make_batch, sides) -> None:
    method, (student, teacher) = make(queue=size), sides
    ours, theirs = affine(method.global_head, student.pooled.double().numpy()), teacher.pooled.double().numpy()
    expected = divergence(ours, theirs, theirs, theirs)
    assert method.loss(make_batch(4), *sides)["global"].item() == pytest.approx(expected, rel=1e-5)
    # A second batch of other embeddings stands in front of the first, of which the oldest make room.
    teacher.pooled = teacher.pooled.flip(1)
    rows = np.concatenate((teacher.pooled.double().numpy(), theirs))[:size]
    expected = divergence(ours, rows[:4], rows, rows)
    assert method.loss(make_batch(4), *sides)["global"].item() == pytest.approx(expected, rel=1e-5)


def test_unfilled_rows_give_no_gradient_and_steep_softmaxes_stay_finite(make, make_batch, sides) -> None:
    gradients = []
    for size in (4, 100):
        method = make(queue=size, temperature=1e-4)
        method.global_head.load_state_dict({"weight": torch.ones(5, 3).tril(), "bias": torch.ones(5)})
        term = method.loss(make_batch(4), *sides)["global"]
        gradients.append(torch.autograd.grad(term, [*method.global_head.parameters()]))
        assert torch.isfinite(term)
        assert all(torch.isfinite(gradient).all() for gradient in gradients[-1])
    assert all(torch.allclose(exact, found, rtol=1e-4) for exact, found in zip(*gradients, strict=True))


def test_the_queue_drops_the_oldest_and_counts_what_it_holds() -> None:
    queue = EmbeddingQueue(3, 1)
    assert queue.filled == 0
    for pushed, rows, filled in (([1, 2], [1, 2, 0], 2), ([3, 4], [3, 4, 1], 3), ([5, 6, 7, 8], [5, 6, 7], 3)):
        queue.push(torch.tensor(pushed, dtype=torch.float)[:, None])
        assert (queue.rows.flatten().tolist(), queue.filled.item()) == (rows, filled)


def test_a_queue_goes_on_from_a_checkpoint(make, make_batch, sides) -> None:
    method, resumed = make(queue=9), make(queue=9)
    method.loss(make_batch(4), *sides)
    assert set(method.queue.state_dict()) == {"rows", "filled"}
    resumed.load_state_dict({name: tensor.clone() for name, tensor in method.state_dict().items()})
    terms = [m.loss(make_batch(4), *sides)["global"].item() for m in (method, resumed)]
    assert terms[0] == terms[1]
    assert method.queue.filled == resumed.queue.filled == 8


def test_a_step_that_was_only_tried_is_taken_back_through_the_buffers(make, make_batch, sides) -> None:
    method = make(queue=9)
    method.loss(make_batch(4), *sides)
    kept = [(buffer, buffer.clone()) for buffer in method.buffers()]
    method.loss(make_batch(4), *sides)
    for buffer, before in kept:
        buffer.copy_(before)
    assert method.queue.filled == 4
    assert bool((method.queue.rows[4:] == 0).all())


def test_a_later_push_leaves_the_graph_of_an_earlier_batch_alone(make, make_batch, sides) -> None:
    method = make(queue=6)
    first, _ = (method.loss(make_batch(4), *sides)["global"] for _ in range(2))
    first.backward()
    assert method.global_head.weight.grad.abs().sum() > 0


def test_v2_compares_with_the_last_two_blocks(make, make_batch, fake, random, bilinear) -> None:
    method = make(version="v2")
    student = fake(None, random(2, 3, 2, 3))
    # A level that is not the block before the last.
    blocks = [random(2, width, *GRID) for width in (2, 4, 5)]
    teacher = fake(None, random(2, 5, 4, 6), levels=[random(2, 5, *GRID)] * 4, blocks=blocks)
    rows = rows_of(blocks[1])
    centred = rows - rows.mean(2, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(2, keepdims=True) + 1e-5)
    resized = bilinear(normed.transpose(0, 2, 1).reshape(2, 4, *GRID), (4, 6))
    goal_rows = np.concatenate((resized.reshape(2, 4, -1).transpose(0, 2, 1), rows_of(teacher.final)), 2)
    ours = affine(method.head, rows_of(student.final)).transpose(0, 2, 1).reshape(2, -1, 2, 3)
    mapped = bilinear(ours, (4, 6)).reshape(2, -1, 24).transpose(0, 2, 1)
    terms = method.loss(make_batch(2), student, teacher)
    assert set(terms) == {"features"}
    assert terms["features"].item() == pytest.approx(((mapped - goal_rows) ** 2).mean(), rel=1e-5)


def test_v3_resizes_the_student_to_the_teachers_grid(make, make_batch, fake, random, bilinear) -> None:
    method = make(queue=8)
    student, teacher = fake(None, random(1, 3, 2, 3), random(1, 3)), fake(None, random(1, 5, 4, 6), random(1, 5))
    ours = affine(method.local_head, rows_of(student.final)).transpose(0, 2, 1).reshape(1, 5, 2, 3)
    rows = bilinear(ours, (4, 6)).reshape(5, 24).T
    theirs = rows_of(teacher.final)[0]
    expected = divergence(rows, theirs, rows, theirs)
    assert method.loss(make_batch(1), student, teacher)["local"].item() == pytest.approx(expected, rel=1e-5)
