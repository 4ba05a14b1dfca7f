"""GKD: the attention head, its three losses, the masking rule and the stages."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from kdbench.methods.gkd import GKD, QSD, GKDConfig
from pydantic import ValidationError
from torch import Tensor, nn

from kdbench.conformance import make_batch as make_conformance_batch
from kdbench.conformance import make_bench
from kdbench.losses import masked_images, token_masks
from kdbench.models.registry import parse_pair
from kdbench.plugins import load_method
from kdbench.types import STUDENT, Part, Phase

GRID = (2, 3)
WIDTHS = (3, 5)


def norm_and_map(branch: nn.Sequential, token: np.ndarray) -> np.ndarray:
    """A branch's LayerNorm and affine map for one token, in float64."""
    gain, shift, weight, bias = (p.detach().double().numpy() for p in branch.parameters())
    centred = token - token.mean()
    return weight @ (centred / math.sqrt((centred**2).mean() + 1e-5) * gain + shift) + bias


def attend(head: QSD, student: np.ndarray, teacher: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """softmax(q k^T) v, token by token in float64: queries and values from the student, keys are the teacher."""
    out = np.zeros(teacher.shape)
    for b in range(len(teacher)):
        values = [norm_and_map(head.value, token) for token in student[b]]
        for i, token in enumerate(student[b]):
            query = norm_and_map(head.query, token)
            scores = [scale * float(query @ key) for key in teacher[b]]
            weights = [math.exp(score - max(scores)) for score in scores]
            for weight, value in zip(weights, values, strict=True):
                out[b, i] += weight / sum(weights) * value
    return out


def rows(map_: Tensor) -> np.ndarray:
    """(B, C, h, w) as row-major tokens (B, N, C) in float64, by loops."""
    batch, channels, height, width = map_.shape
    array = np.zeros((batch, height * width, channels))
    for y in range(height):
        for x in range(width):
            array[:, y * width + x] = map_[:, :, y, x].detach().double().numpy()
    return array


@pytest.fixture
def head(random) -> QSD:
    """A head away from its start, where the two LayerNorms are equal."""
    made = QSD(*WIDTHS)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.5 * random(*parameter.shape))
    return made


@pytest.fixture
def sides(fake, random):
    """A student and a teacher on one grid."""
    student = fake(None, random(4, 3, *GRID), random(4, 3), random(4, 3, *GRID))
    return student, fake(None, random(4, 5, *GRID), random(4, 5))


def seen(student) -> Tensor:
    """The maps behind the patch term: the first half of the images is masked, the rest is not."""
    half = len(student.final) // 2
    return torch.cat((student.masked[:half], student.final[half:]))


def loss_of(method: GKD, batch, sides) -> dict[str, float]:
    return {name: term.item() for name, term in method.loss(batch, *sides).items()}


@pytest.mark.parametrize("single_stage", [False, True])
def test_without_any_term_nothing_is_built(single_stage: bool) -> None:
    nothing = {"token": 0, "feature": 0, "patch": 0, "single_stage": single_stage}
    with pytest.raises(ValidationError, match="token, feature and patch are all 0; set one of them above 0"):
        GKDConfig(**nothing)
    for name in ("token", "feature", "patch"):
        assert getattr(GKDConfig(**{**nothing, name: 0.5}), name) == 0.5


def test_head_equals_a_loop_with_its_own_norm_for_each_branch(head: QSD, random) -> None:
    student, teacher = random(2, 6, 3), random(2, 6, 5)
    expected = attend(head, student.double().numpy(), teacher.double().numpy())
    assert np.allclose(head(student, teacher).detach().numpy(), expected, atol=1e-5)


def test_one_token_gives_its_value_and_no_gradient_to_the_query(head: QSD, random) -> None:
    student, teacher = random(2, 1, 3), random(2, 1, 5)
    out = head(student, teacher)
    out.square().sum().backward()
    expected = np.stack([[norm_and_map(head.value, token[0].double().numpy())] for token in student])
    assert np.allclose(out.detach().numpy(), expected, atol=1e-6)
    assert all(p.grad is None or bool((p.grad == 0).all()) for p in head.query.parameters())
    assert all(bool((p.grad != 0).any()) for p in head.value.parameters())


def test_permuting_the_teacher_alone_changes_the_output(head: QSD, random) -> None:
    # With values of the teacher it would not: the attention would find the same values elsewhere.
    student, teacher = random(2, 6, 3), random(2, 6, 5)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    assert (head(student, teacher[:, order]) - head(student, teacher)).abs().max() > 1e-2


def test_losses_equal_an_explicit_computation(make_pair, make_batch, sides) -> None:
    method = GKD(GKDConfig(token=2, feature=3, patch=5), make_pair(*WIDTHS))
    student, teacher = sides
    goal, class_goal = rows(teacher.final), teacher.pooled.double().numpy()[:, None]
    class_token = attend(method.token_head, student.pooled.double().numpy()[:, None], class_goal)
    features = attend(method.feature_head, rows(student.final), goal)
    patches = attend(method.patch_head, rows(seen(student)), goal)
    errors = ((class_token - class_goal) ** 2).sum(), ((features - goal) ** 2).sum(), ((patches - goal) ** 2).sum()
    batch, count, channels = goal.shape
    losses = loss_of(method, make_batch(4), sides)
    assert set(losses) == {"token", "feature", "patch"}
    assert losses["token"] == pytest.approx(2 * errors[0] / (batch * channels), rel=1e-5)
    assert losses["feature"] == pytest.approx(3 * (errors[0] + errors[1]) / (batch * (1 + count) * channels), rel=1e-5)
    assert losses["patch"] == pytest.approx(5 * errors[2] / (batch * count * channels), rel=1e-5)


# The second half of the batch has no hidden tokens.
@pytest.mark.parametrize(("image", "hidden"), [(0, True), (0, False), (3, False)])
def test_patch_loss_counts_every_token_of_every_image(
    image: int, hidden: bool, make_pair, make_batch, sides, monkeypatch
) -> None:
    # Given outputs of the head, so that the teacher's tokens enter as goals alone.
    method = GKD(GKDConfig(), make_pair(*WIDTHS))
    student, teacher = sides
    monkeypatch.setattr(method.patch_head, "forward", lambda ours, theirs: torch.zeros(4, 6, 5))
    torch.manual_seed(0)
    before = loss_of(method, make_batch(4), sides)["patch"]
    mask = torch.cat((student.masks[-1][4:], torch.zeros(2, *GRID, dtype=torch.bool)))
    y, x = (mask[image] == hidden).nonzero()[0].tolist()
    old = teacher.final[image, :, y, x].double()
    teacher.final[image, :, y, x] += 1
    torch.manual_seed(0)
    after = loss_of(method, make_batch(4), sides)["patch"]
    expected = ((old + 1).square() - old.square()).sum() / (4 * 6 * 5)
    assert after - before == pytest.approx(expected.item(), rel=1e-3)


def test_the_teacher_is_never_masked_and_both_passes_of_the_student_are_one_batch(make_pair, make_batch, sides) -> None:
    student, teacher = sides
    loss_of(GKD(GKDConfig(), make_pair(*WIDTHS)), make_batch(4), sides)
    assert teacher.masks == []
    (mask,) = student.masks
    # Four whole images and the first half of them again; the other half has nothing hidden, so it is not run twice.
    assert mask.flatten(1).sum(1).tolist() == [0, 0, 0, 0, 3, 3]


def test_a_student_with_batch_norms_has_two_passes_with_statistics_of_their_own(make_pair, make_batch, sides) -> None:
    student, _ = sides
    method = GKD(GKDConfig(), make_pair(*WIDTHS, convolutional=True))
    whole = loss_of(method, make_batch(4), sides)
    (mask,) = student.masks
    assert mask.flatten(1).sum(1).tolist() == [3, 3, 0, 0]
    student.masked = seen(student)
    torch.manual_seed(0)
    assert loss_of(method, make_batch(4), sides)["feature"] == whole["feature"]


def test_a_student_without_class_token_and_batch_norms_is_an_extension_in_one_batch() -> None:
    method = make_bench(load_method("gkd"), parse_pair("eva02-s:mit-b0")).method
    assert "GKD-CNN: kdbench's extension" in method.footnote
    assert method.stages()[0].student_forwards == 1.5


@pytest.mark.parametrize("pair", ["dinov2-s:deit-s", "eva02-s:mit-b0"])
def test_one_batch_gives_the_losses_and_gradients_of_two_passes(pair: str) -> None:
    bench = make_bench(load_method("gkd"), parse_pair(pair))
    stage = bench.stages()[0]
    batch, grads, values = make_conformance_batch(stage), [], []
    for together in (True, False):
        bench.method.pair = replace(
            bench.method.pair, student=replace(bench.method.pair.student, batch_norms=not together)
        )
        bench.networks.student.zero_grad()
        terms = bench.losses(stage, batch)
        sum(terms.values()).backward()
        values.append({name: term.item() for name, term in terms.items()})
        grads.append([p.grad for p in bench.networks.student.encoder.parameters() if p.grad is not None])
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    for one, two in zip(*grads, strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-6)


def test_a_student_of_another_grid_is_resized_to_the_teachers(make_pair, make_batch, fake, random, bilinear) -> None:
    method = GKD(GKDConfig(), make_pair(*WIDTHS))
    small = fake(None, random(2, 3, 2, 3), random(2, 3), random(2, 3, 2, 3))
    teacher = fake(None, random(2, 5, 4, 6), random(2, 5))
    whole, masked = (torch.from_numpy(bilinear(map_.numpy(), (4, 6))).float() for map_ in (small.final, small.masked))
    resized = fake(None, whole, small.pooled, masked)
    losses = loss_of(method, make_batch(2), (small, teacher))
    assert small.masks[0].shape == (3, 4, 6)
    expected = loss_of(method, make_batch(2), (resized, teacher))
    assert losses == {name: pytest.approx(value, rel=1e-4) for name, value in expected.items()}


def masks_of(batch: int, grid: tuple[int, int], probability: float = 0.5, ratio: float = 0.5) -> Tensor:
    return token_masks(batch, grid, masked_images(batch, probability), ratio, torch.device("cpu"))


@pytest.mark.parametrize("batch", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("grid", [(1, 1), (1, 3), (3, 3), (4, 8)])
def test_exactly_half_of_the_tokens_of_the_first_half_of_the_images_are_hidden(
    batch: int, grid: tuple[int, int]
) -> None:
    mask = masks_of(batch, grid)
    assert mask.shape == (batch, *grid)
    assert mask.dtype == torch.bool
    hidden = mask.flatten(1).sum(1).tolist()
    half = grid[0] * grid[1] // 2
    assert hidden == [half] * (batch // 2) + [0] * (batch - batch // 2)


@pytest.mark.parametrize(
    ("probability", "ratio", "counts"),
    [(0.0, 0.5, [0, 0, 0, 0]), (1.0, 1.0, [8, 8, 8, 8]), (1.0, 0.0, [0, 0, 0, 0]), (0.3, 0.3, [2, 0, 0, 0])],
)
def test_mask_counts_round_down(probability: float, ratio: float, counts: list[int]) -> None:
    mask = masks_of(4, (2, 4), probability, ratio)
    assert mask.flatten(1).sum(1).tolist() == counts


@pytest.mark.parametrize(
    ("batch", "probability", "share"), [(1, 0.5, 0.5), (1, 0.0, 0.0), (1, 1.0, 1.0), (3, 0.2, 0.6)]
)
def test_where_no_whole_image_is_due_one_is_masked_as_often_as_keeps_the_share(
    batch: int, probability: float, share: float
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = [masked_images(batch, probability) for _ in range(2000)]
    assert set(drawn) <= {0, 1}
    # 2000 draws: a standard deviation of 0.011 at most.
    assert sum(drawn) / 2000 == pytest.approx(share, abs=0.05 if 0 < share < 1 else 0)


def test_hidden_tokens_are_drawn_uniformly_and_for_each_image() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mask = masks_of(4000, (2, 4))[:2000].flatten(1)
    assert len({bytes(row.numpy()) for row in mask}) == math.comb(8, 4)
    # 2000 draws of a half: a standard deviation of 0.011.
    assert (mask.float().mean(0) - 0.5).abs().max() < 0.06


def test_scaled_attention_divides_the_scores_by_the_root_of_the_width(make_pair, random) -> None:
    head = GKD(GKDConfig(match="scaled"), make_pair(*WIDTHS)).token_head
    student, teacher = random(2, 6, 3), random(2, 6, 5)
    expected = attend(head, student.double().numpy(), teacher.double().numpy(), scale=1 / math.sqrt(5))
    assert np.allclose(head(student, teacher).detach().numpy(), expected, atol=1e-5)


def test_the_mse_ablation_maps_every_token_alone(make_pair, make_batch, sides) -> None:
    method = GKD(GKDConfig(match="mse"), make_pair(*WIDTHS))
    student, teacher = sides
    mapped = np.array([[norm_and_map(method.patch_head.value, t) for t in image] for image in rows(seen(student))])
    expected = ((mapped - rows(teacher.final)) ** 2).mean()
    assert loss_of(method, make_batch(4), sides)["patch"] == pytest.approx(expected, rel=1e-5)


def test_the_single_stage_ablation_adds_the_task_loss(make_pair, make_batch, fake, random) -> None:
    method = GKD(GKDConfig(single_stage=True), make_pair(*WIDTHS))
    student = fake(random(4, 4, 4, 4), random(4, 3, *GRID), random(4, 3), random(4, 3, *GRID))
    sides = student, fake(None, random(4, 5, *GRID), random(4, 5))
    (stage,) = method.stages()
    assert stage.phase == Phase.TASK
    assert stage.trains == method.own_modules | STUDENT
    torch.manual_seed(0)
    together = stage.loss(make_batch(4), *sides)
    torch.manual_seed(0)
    assert loss_of(method, make_batch(4), sides) == {
        name: term.item() for name, term in together.items() if name != "task"
    }
    assert "task" in together


def test_values_of_the_teacher_are_gathered_as_they_are(make_pair, random) -> None:
    head = GKD(GKDConfig(values="teacher"), make_pair(*WIDTHS)).feature_head
    student, teacher = random(2, 6, 3), random(2, 6, 5)
    queries = np.array([[norm_and_map(head.query, t) for t in image] for image in student.double().numpy()])
    scores = np.exp(queries @ teacher.double().numpy().swapaxes(1, 2))
    expected = scores / scores.sum(2, keepdims=True) @ teacher.double().numpy()
    assert np.allclose(head(student, teacher).detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("knob", "terms", "heads"),
    [
        ("patch", {"token", "feature"}, {"token_head", "feature_head"}),
        ("feature", {"token", "patch"}, {"token_head", "patch_head"}),
        # The class row of the feature term keeps the token's head.
        ("token", {"feature", "patch"}, {"token_head", "feature_head", "patch_head"}),
    ],
)
def test_a_weight_of_zero_leaves_out_a_term_and_what_only_it_needs(
    knob: str, terms: set[str], heads: set[str], make_pair, make_batch, sides
) -> None:
    method = GKD(GKDConfig(**{knob: 0}), make_pair(*WIDTHS))
    assert {name for name, _ in method.named_children()} == heads
    assert method.stages()[0].trains == heads | {Part.STUDENT_ENCODER}
    assert set(loss_of(method, make_batch(4), sides)) == terms
    assert bool(sides[0].masks) == ("patch" in terms)
