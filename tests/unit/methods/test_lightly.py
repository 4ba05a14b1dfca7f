"""LightlyTrain's distillation: mixed images, similarities with tokens and with a queue (v3), maps (v2)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from closed_forms import GRID, array, convolve, divergence, roughen, rows, unit
from kdbench.methods.lightly import EmbeddingQueue, Lightly, LightlyConfig, mix
from torch import Tensor
from torch.nn import functional

METHOD = Lightly


@pytest.fixture
def make(make_pair):
    """A method whose heads are away from their small start."""
    plain = make_pair()
    # A teacher whose last blocks are 4 and 5 wide, as in a pyramid; its levels tell nothing of them.
    pair = replace(plain, teacher=replace(plain.teacher, blocks=(2, 4, 5)))
    return lambda **options: roughen(Lightly(LightlyConfig(**options), pair), 0.5)


@pytest.fixture
def sides(fake, random, student_grid):
    return fake(None, random(4, 3, *student_grid), random(4, 3)), fake(None, random(4, 5, *GRID), random(4, 5))


def test_images_are_blended_with_others_at_one_share() -> None:
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


def test_local_term_compares_the_tokens_of_an_image(make, distil, sides, resized) -> None:
    method, (student, teacher) = make(queue=8, local=2.0), sides
    cosines = []
    for map_ in (resized(convolve(student.final, method.local_head)), teacher.final):
        vectors = unit(rows(map_))
        cosines.append(vectors @ vectors.swapaxes(1, 2) / 0.07)
    expected = 2 * divergence(*cosines).mean()
    assert distil(method, *sides)["local"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("size", [4, 6, 9, 8192])
def test_global_term_compares_with_the_filled_rows_of_the_queue(size: int, make, distil, sides) -> None:
    method, (student, teacher) = make(queue=size), sides
    weight, bias = array(method.global_head.weight), array(method.global_head.bias)
    ours, held = unit(array(student.pooled) @ weight.T + bias), np.zeros((0, 5))
    # A second batch of other embeddings stands in front of the first, of which the oldest make room.
    for batch in (teacher.pooled, teacher.pooled.flip(1)):
        teacher.pooled, theirs = batch, unit(batch)
        held = np.concatenate((theirs, held))[:size]
        expected = divergence(ours @ held.T / 0.07, theirs @ held.T / 0.07).mean()
        assert distil(method, *sides)["global"].item() == pytest.approx(expected, rel=1e-5)


def test_unfilled_rows_give_no_gradient_and_steep_softmaxes_stay_finite(make, distil, sides) -> None:
    gradients = []
    for size in (4, 100):
        method = make(queue=size, temperature=1e-4)
        method.global_head.load_state_dict({"weight": torch.ones(5, 3).tril(), "bias": torch.ones(5)})
        term = distil(method, *sides)["global"]
        gradients.append(torch.autograd.grad(term, [*method.global_head.parameters()]))
        assert torch.isfinite(term)
        assert all(torch.isfinite(gradient).all() for gradient in gradients[-1])
    assert all(torch.allclose(exact, found, rtol=1e-4) for exact, found in zip(*gradients, strict=True))


def test_the_queue_drops_the_oldest_and_counts_what_it_holds() -> None:
    queue = EmbeddingQueue(3, 1)
    for pushed, held, filled in (([1, 2], [1, 2, 0], 2), ([3, 4], [3, 4, 1], 3), ([5, 6, 7, 8], [5, 6, 7], 3)):
        queue.push(torch.tensor(pushed, dtype=torch.float)[:, None])
        assert (queue.rows.flatten().tolist(), queue.filled.item()) == (held, filled)


def test_the_queue_fills_its_buffers_in_place_and_leaves_earlier_graphs_alone(make, distil, sides) -> None:
    # A step that was only tried is taken back through the buffers.
    method = make(queue=9)
    distil(method, *sides)
    kept = [(buffer, buffer.clone()) for buffer in method.buffers()]
    first, _ = (distil(method, *sides)["global"] for _ in range(2))
    first.backward()
    assert method.global_head.weight.grad.abs().sum() > 0
    for buffer, before in kept:
        buffer.copy_(before)
    assert method.queue.filled == 4
    assert not method.queue.rows[4:].any()


def test_v2_compares_with_the_last_two_blocks(make, distil, fake, random, resized, student_grid) -> None:
    method = make(version="v2")
    student = fake(None, random(2, 3, *student_grid))
    # The levels are not the block before the last.
    blocks = [random(2, width, 2, 3) for width in (2, 4, 5)]
    teacher = fake(None, random(2, 5, *GRID), levels=[random(2, 5, *GRID)] * 4, blocks=blocks)
    normed = functional.layer_norm(blocks[1].double().movedim(1, -1), (4,)).movedim(-1, 1)
    goal = np.concatenate((resized(normed), array(teacher.final)), 1)
    error = resized(convolve(student.final, method.head)) - goal
    assert distil(method, student, teacher).item() == pytest.approx((error**2).mean(), rel=1e-5)
