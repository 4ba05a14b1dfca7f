"""SimKD: projected student levels follow the teacher's, whose decoder is deployed behind them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench.methods.simkd import SimKD, SimKDConfig
from torch import Tensor, nn
from torch.nn import functional

from kdbench.models.decoders import LightDecoder
from kdbench.models.segmentor import Segmentor
from kdbench.types import Features, FeatureSpec, PairSpec


def convolve(map_: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Position by position, zeros around."""
    out = np.zeros((len(map_), len(weight), *map_.shape[2:]))
    margin = weight.shape[-1] // 2
    padded = np.pad(map_, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    for y in range(map_.shape[2]):
        for x in range(map_.shape[3]):
            patch = padded[:, :, y : y + weight.shape[2], x : x + weight.shape[3]]
            out[:, :, y, x] = np.einsum("bcij,dcij->bd", patch, weight)
    return out


def project(projector: nn.Sequential, map_: np.ndarray) -> np.ndarray:
    """The projector in training, in float64: three convolutions, each with a norm, ReLUs between."""
    weights = [p.detach().double().numpy() for p in projector.parameters()]
    for step in range(3):
        kernel, gain, shift = weights[3 * step : 3 * step + 3]
        map_ = convolve(map_, kernel)
        spread = np.sqrt(map_.var((0, 2, 3), keepdims=True) + 1e-5)
        map_ = (map_ - map_.mean((0, 2, 3), keepdims=True)) / spread
        map_ = map_ * gain[:, None, None] + shift[:, None, None]
        map_ = map_ if step == 2 else map_.clip(min=0)
    return map_


@pytest.fixture
def distil(make_batch, fake):
    """The loss, of a method, a student's and a teacher's levels."""

    def run(method: SimKD, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        terms = method.loss(make_batch(len(student[0])), fake(levels=student), fake(levels=teacher))
        assert set(terms) == {"simkd"}
        return terms["simkd"]

    return run


def roughen(method: SimKD, random) -> SimKD:
    """Away from the norms' start, which hides what they do."""
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.3 * random(*parameter.shape))
    return method


def spec(channels: tuple[int, ...], strides: tuple[int, ...]) -> FeatureSpec:
    return FeatureSpec(channels, strides, channels[-1], strides[-1], class_token=False)


def test_value_equals_an_explicit_computation(make_pair, distil, random) -> None:
    method = roughen(SimKD(SimKDConfig(weight=3), make_pair(3, 6, levels=2)), random)
    student, teacher = ([random(2, width, 3, 4) for _ in range(2)] for width in (3, 6))
    projected = [project(p, map_.double().numpy()) for p, map_ in zip(method.projectors.each, student, strict=True)]
    errors = [((a - b.double().numpy()) ** 2).mean() for a, b in zip(projected, teacher, strict=True)]
    assert distil(method, student, teacher).item() == pytest.approx(3 * sum(errors) / 2, rel=1e-4)


def test_a_finer_student_is_pooled_before_its_projector(make_pair, distil, random) -> None:
    method, fine, teacher = SimKD(SimKDConfig(), make_pair(3, 6)), random(2, 3, 4, 12), random(2, 6, 2, 4)
    pooled = fine.double().numpy().reshape(2, 3, 2, 2, 4, 3).mean((3, 5))
    expected = ((project(method.projectors.each[0], pooled) - teacher.double().numpy()) ** 2).mean()
    assert distil(method, [fine], [teacher]).item() == pytest.approx(expected, rel=1e-4)


def test_a_coarser_student_is_resized_after_its_projector(make_pair, distil, random, bilinear) -> None:
    method, coarse, teacher = SimKD(SimKDConfig(), make_pair(3, 6)), random(2, 3, 2, 3), random(2, 6, 4, 6)
    resized = bilinear(project(method.projectors.each[0], coarse.double().numpy()), (4, 6))
    expected = ((resized - teacher.double().numpy()) ** 2).mean()
    assert distil(method, [coarse], [teacher]).item() == pytest.approx(expected, rel=1e-4)


class Encoder(nn.Module):
    """Levels by convolutions of one stride each; a last patch that the image does not fill is padded."""

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__()
        self.spec = spec
        self.levels = nn.ModuleList(nn.Conv2d(3, c, s, s) for c, s in zip(spec.channels, spec.strides, strict=True))

    def forward(self, image: Tensor, mask: None = None, blocks: tuple[int, ...] = ()) -> Features:
        levels = tuple(
            level(functional.pad(image, (0, -image.shape[3] % stride, 0, -image.shape[2] % stride)))
            for level, stride in zip(self.levels, self.spec.strides, strict=True)
        )
        return Features(levels, levels[-1], levels[-1].mean((2, 3)), {})


# The second size fills neither patches of 8 nor of 16.
@pytest.mark.parametrize(("size", "grid"), [((32, 64), (4, 8)), ((34, 61), (5, 8))])
def test_deployed_is_the_students_encoder_with_projectors_and_the_teachers_decoder(
    size: tuple[int, int], grid: tuple[int, int]
) -> None:
    def segmentor(shape: FeatureSpec) -> Segmentor:
        return Segmentor(Encoder(shape), LightDecoder(shape, 4))

    theirs, ours = spec((6, 6), (8, 8)), spec((3, 5), (4, 16))
    teacher, student = segmentor(theirs), segmentor(ours)
    method = SimKD(SimKDConfig(), PairSpec(theirs, ours, 4))
    model = method.deploy(student, teacher).eval()
    parts = student.encoder, method.projectors, teacher.decoder
    assert {id(p) for p in model.parameters()} == {id(p) for part in parts for p in part.parameters()}
    image = torch.rand(2, 3, *size)
    # The grid that the decoder was fitted to, whatever the student's.
    assert {level.shape[-2:] for level in teacher.encode(image).levels} == {grid}
    levels = method.projectors(student.encode(image).levels, [grid, grid])
    expected = teacher.decode(Features(levels, levels[-1], levels[-1], {})).logits
    assert torch.equal(model(image).logits, expected)
