"""Channel-wise distillation: KL over the positions of each channel, averaged over samples and channels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kdbench.methods.cwd import CWD, CWDConfig
from pydantic import ValidationError
from torch import Tensor, nn

from kdbench.types import STUDENT, TEACHER, Part, Phase

CLASSES = 4


def divergence(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """T^2 / (B C) times the sum of KL(teacher || student) over positions, channel by channel in float64."""
    batch, channels = teacher.shape[:2]
    total = 0.0
    for b in range(batch):
        for c in range(channels):
            ours = [float(value) / temperature for value in student[b, c].ravel()]
            theirs = [float(value) / temperature for value in teacher[b, c].ravel()]
            log_q = [value - math.log(sum(math.exp(v - max(ours)) for v in ours)) - max(ours) for value in ours]
            log_p = [value - math.log(sum(math.exp(v - max(theirs)) for v in theirs)) - max(theirs) for value in theirs]
            total += sum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))
    return temperature**2 * total / (batch * channels)


@pytest.fixture
def distil(make_pair, make_batch, fake):
    """The logit term alone."""

    def run(student: Tensor, teacher: Tensor, **config: float) -> Tensor:
        method = CWD(CWDConfig(**config), make_pair())
        return method.loss(make_batch(len(student)), fake(logits=student), fake(logits=teacher))["cwd_logits"]

    return run


@pytest.fixture
def distil_features(make_batch, fake):
    """The feature term alone, of a method."""

    def run(method: CWD, student: Tensor, teacher: Tensor) -> Tensor:
        logits = torch.zeros(len(student), CLASSES, 2, 2)
        terms = method.loss(make_batch(len(student)), fake(logits, student), fake(None, teacher))
        assert set(terms) == {"task", "cwd_features"}
        return terms["cwd_features"]

    return run


def test_defaults_are_the_published_ones() -> None:
    published = {"preset": "plain", "target": "logits", "temperature": 4.0, "logit_weight": 3.0, "feature_weight": 50.0}
    assert CWDConfig().model_dump() == published


def test_temperature_has_to_be_positive() -> None:
    with pytest.raises(ValidationError):
        CWDConfig(temperature=0)


@pytest.mark.parametrize(
    ("settings", "unread"),
    [
        ({"preset": "published"}, {"target": "both"}),
        ({}, {"feature_weight": 5}),
        ({"target": "features"}, {"logit_weight": 5}),
        ({"logit_weight": 0}, {"temperature": 2}),
        ({"target": "features", "feature_weight": 0}, {"temperature": 2}),
    ],
)
def test_a_knob_that_is_not_read_is_refused(settings: dict[str, object], unread: dict[str, object]) -> None:
    (name,) = unread
    with pytest.raises(ValidationError, match=f"{name}=.* is not read where .*; leave it out, or set .* otherwise"):
        CWDConfig(**settings, **unread)
    # Its default changes nothing, so it may be written down.
    assert CWDConfig(**settings, **{name: getattr(CWDConfig(), name)}) == CWDConfig(**settings)


def test_what_the_papers_recipe_and_both_targets_read_may_be_set() -> None:
    for settings in ({"preset": "published"}, {"target": "both"}):
        assert CWDConfig(**settings, feature_weight=5, logit_weight=5).feature_weight == 5


def test_stages_fit_the_teacher_then_train_the_whole_student(make_pair) -> None:
    fit, joint = CWD(CWDConfig(), make_pair()).stages()
    assert fit.trains == {Part.TEACHER_DECODER}
    assert (joint.name, joint.phase, joint.trains) == ("joint", Phase.TASK, STUDENT)
    assert joint.parts == STUDENT | TEACHER
    assert not (fit.reset | fit.scratch | joint.reset | joint.scratch)


def test_features_alone_need_no_fitted_teacher(make_pair) -> None:
    (joint,) = CWD(CWDConfig(target="features"), make_pair()).stages()
    assert joint.trains == STUDENT | {"projector"}
    assert joint.parts == STUDENT | {Part.TEACHER_ENCODER}


def test_both_targets_need_the_teacher_and_the_projector(make_pair) -> None:
    fit, joint = CWD(CWDConfig(target="both"), make_pair()).stages()
    assert fit.phase == Phase.FIT_TEACHER
    assert joint.trains == STUDENT | {"projector"}
    assert joint.parts == STUDENT | TEACHER


def test_logits_alone_have_no_adapter(make_pair) -> None:
    assert not list(CWD(CWDConfig(), make_pair()).parameters())


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_value_equals_a_loop_over_channels(temperature: float, distil, random) -> None:
    student, teacher = 5 * random(2, CLASSES, 3, 5), 5 * random(2, CLASSES, 3, 5)
    expected = 3 * divergence(student.numpy(), teacher.numpy(), temperature)
    assert distil(student, teacher, temperature=temperature).item() == pytest.approx(expected, rel=1e-5)


def test_a_channel_computed_by_hand(distil) -> None:
    # Two positions: teacher (3/4, 1/4), student (1/2, 1/2).
    teacher = torch.tensor([math.log(3.0), 0.0]).view(1, 1, 1, 2)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    value = distil(torch.zeros(1, 1, 1, 2), teacher, temperature=1, logit_weight=1)
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_divisor_is_the_number_of_samples_and_channels(distil, random) -> None:
    # One channel that differs among n equal ones: the mean is an n-th of it.
    student, teacher = random(1, 1, 3, 3), random(1, 1, 3, 3)
    alone = distil(student, teacher).item()
    diluted = distil(torch.cat((student, teacher, teacher), 1), teacher.expand(1, 3, 3, 3)).item()
    assert diluted == pytest.approx(alone / 3, rel=1e-5)
    in_batch = distil(torch.cat((student, teacher)), teacher.expand(2, 1, 3, 3)).item()
    assert in_batch == pytest.approx(alone / 2, rel=1e-5)


def test_feature_divisor_is_the_teachers_channels(make_pair, distil_features, random) -> None:
    # CIRKD divides by the student's channels: C_t / C_s = 2.375 times as much.
    student, teacher = random(2, 8, 3, 4), random(2, 19, 3, 4)
    method = CWD(CWDConfig(target="features", temperature=1), make_pair(8, 19, convolutional=True))
    weight = method.projector.linear.weight.detach().double().numpy()
    projected = np.einsum("ts,bshw->bthw", weight, student.double().numpy())
    expected = 50 * divergence(projected, teacher.numpy(), 1.0)
    assert distil_features(method, student, teacher).item() == pytest.approx(expected, rel=1e-4)


def test_features_are_projected_then_resized_to_the_teachers_grid(make_pair, distil_features, random, bilinear) -> None:
    student, teacher = random(1, 3, 2, 2), random(1, 5, 4, 4)
    method = CWD(CWDConfig(target="features"), make_pair(3, 5))
    x = np.moveaxis(student.double().numpy(), 1, -1)
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    weight = method.projector.linear.weight.detach().double().numpy()
    projected = bilinear(np.moveaxis(normed @ weight.T, -1, 1), (4, 4))
    expected = 50 * divergence(projected, teacher.numpy(), 4.0)
    assert distil_features(method, student, teacher).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("convolutional", [True, False])
def test_the_projector_has_nothing_that_the_softmax_takes_out_again(
    convolutional: bool, make_pair, distil_features, random
) -> None:
    method = CWD(CWDConfig(target="features"), make_pair(3, 5, convolutional=convolutional))
    distil_features(method, random(2, 3, 4, 6), random(2, 5, 4, 6)).backward()
    sizes = {name: float(parameter.grad.abs().max()) for name, parameter in method.projector.named_parameters()}
    assert set(sizes) == {"linear.weight"} if convolutional else {"norm.weight", "linear.weight"}
    # A bias would have a gradient of rounding errors, a millionth of these.
    assert min(sizes.values()) > 1e-3 * max(sizes.values())


def test_features_of_equal_width_are_not_projected(make_pair, distil_features, random) -> None:
    student, teacher = random(2, 3, 3, 4), random(2, 3, 3, 4)
    method = CWD(CWDConfig(target="features"), make_pair(3, 3))
    assert isinstance(method.projector, nn.Identity)
    expected = 50 * divergence(student.numpy(), teacher.numpy(), 4.0)
    assert distil_features(method, student, teacher).item() == pytest.approx(expected, rel=1e-4)


def test_both_targets_are_summed_with_their_own_weights(make_pair, make_batch, fake, random) -> None:
    student = fake(random(1, CLASSES, 3, 3), random(1, 3, 2, 2))
    teacher = fake(random(1, CLASSES, 3, 3), random(1, 3, 2, 2))
    config = CWDConfig(target="both", logit_weight=2, feature_weight=7, temperature=1)
    terms = CWD(config, make_pair(3, 3)).loss(make_batch(1), student, teacher)
    logits = divergence(student.logits.numpy(), teacher.logits.numpy(), 1.0)
    features = divergence(student.final.numpy(), teacher.final.numpy(), 1.0)
    assert set(terms) == {"task", "cwd_logits", "cwd_features"}
    assert terms["cwd_logits"].item() == pytest.approx(2 * logits, rel=1e-5)
    assert terms["cwd_features"].item() == pytest.approx(7 * features, rel=1e-5)


def test_equal_logits_cost_nothing(distil, random) -> None:
    logits = random(2, CLASSES, 3, 3)
    assert distil(logits, logits.clone()).item() == pytest.approx(0, abs=1e-5)


def test_a_constant_on_all_positions_of_a_channel_changes_nothing(distil, random) -> None:
    student, teacher = random(2, CLASSES, 3, 3), random(2, CLASSES, 3, 3)
    shifted = distil(student + 5 * random(2, CLASSES, 1, 1), teacher + 5 * random(2, CLASSES, 1, 1))
    assert shifted.item() == pytest.approx(distil(student, teacher).item(), rel=1e-4)
    # The positions are what is normalised: a constant on all channels of one position does change it.
    assert abs(distil(student + random(1, 1, 3, 3), teacher) - distil(student, teacher)) > 1e-2


def test_one_order_of_positions_for_both_changes_nothing(distil, random) -> None:
    student, teacher = random(2, CLASSES, 3, 4), random(2, CLASSES, 3, 4)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))

    def permuted(map_: Tensor) -> Tensor:
        return map_.flatten(2)[..., order].view_as(map_)

    before = distil(student, teacher).item()
    assert distil(permuted(student), permuted(teacher)).item() == pytest.approx(before, rel=1e-5)
    assert abs(distil(permuted(student), teacher).item() - before) > 1e-3


def test_a_peaked_channel_is_finite(distil) -> None:
    # The logarithm of a softmax is -inf there, as in the reference code.
    student, teacher = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    student[0, 0, 0, 0] = teacher[0, 0, 1, 1] = 1e4
    student.requires_grad_()
    value = distil(student, teacher, temperature=1, logit_weight=1)
    value.backward()
    assert value.item() == pytest.approx(1e4, rel=1e-6)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("finer", ["student", "teacher"])
def test_the_coarser_logits_are_brought_to_the_finer_grid(finer: str, distil, random, bilinear) -> None:
    coarse, fine = 5 * random(2, CLASSES, 2, 3), 5 * random(2, CLASSES, 4, 6)
    resized = bilinear(coarse.numpy(), (4, 6))
    student, teacher = (fine, coarse) if finer == "student" else (coarse, fine)
    pair = (fine.numpy(), resized) if finer == "student" else (resized, fine.numpy())
    assert distil(student, teacher).item() == pytest.approx(3 * divergence(*pair, 4.0), rel=1e-5)


def test_all_pixels_ignored_leave_every_term_finite(make_pair, make_batch, fake, random) -> None:
    student = fake(random(2, CLASSES, 3, 3).requires_grad_(), random(2, 3, 2, 2))
    teacher = fake(random(2, CLASSES, 3, 3), random(2, 5, 2, 2))
    terms = CWD(CWDConfig(target="both"), make_pair()).loss(make_batch(label=255), student, teacher)
    sum(terms.values()).backward()
    assert terms["task"] == 0
    assert all(torch.isfinite(term) for term in terms.values())
    assert torch.isfinite(student.logits.grad).all()


def test_the_papers_recipe_is_both_targets_with_logit_distillation(make_pair, make_batch, fake, random) -> None:
    method = CWD(CWDConfig(preset="published"), make_pair(5, 5))
    assert [stage.phase for stage in method.stages()] == [Phase.FIT_TEACHER, Phase.TASK]
    ours, theirs = random(2, CLASSES, 2, 2), random(2, CLASSES, 2, 2)
    terms = method.loss(make_batch(), fake(ours, random(2, 5, 2, 2)), fake(theirs, random(2, 5, 2, 2)))
    p, q = theirs.double().softmax(1), ours.double().softmax(1)
    assert terms["logit_kd"].item() == pytest.approx((p * (p.log() - q.log())).sum(1).mean().item(), rel=1e-5)
    assert set(terms) == {"task", "cwd_logits", "cwd_features", "logit_kd"}
