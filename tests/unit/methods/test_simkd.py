"""SimKD: projected student levels follow the teacher's, whose decoder is deployed behind them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from closed_forms import array, batch_norm, convolve, pooled, roughen
from kdbench.methods.simkd import SimKD, SimKDConfig
from torch import Tensor, nn
from torch.nn import functional

from kdbench.models.decoders import LightDecoder
from kdbench.models.segmentor import SegmentationModel
from kdbench.types import Features, FeatureSpec, PairSpec

METHOD = SimKD


def project(projector: nn.Sequential, map_: Any) -> np.ndarray:
    """Three convolutions, each with a norm, ReLUs between."""
    for step in (0, 3, 6):
        map_ = batch_norm(convolve(map_, projector[step]), projector[step + 1])
        map_ = map_ if step == 6 else map_.clip(min=0)
    return map_


@pytest.mark.parametrize(("student_grid", "window"), [((2, 4), (1, 1)), ((4, 12), (2, 3)), ((1, 2), (1, 1))])
def test_value_is_the_mean_error_of_the_pooled_projected_and_resized_levels(
    student_grid: tuple[int, int], window: tuple[int, int], make_pair, distil, random, resized
) -> None:
    method = roughen(SimKD(SimKDConfig(weight=3), make_pair(3, 6, levels=2)))
    student, teacher = ([random(2, width, *grid) for _ in range(2)] for width, grid in ((3, student_grid), (6, (2, 4))))
    levels = zip(method.projectors.each, student, strict=True)
    projected = [resized(project(projector, pooled(map_, window)), (2, 4)) for projector, map_ in levels]
    errors = [((a - array(b)) ** 2).mean() for a, b in zip(projected, teacher, strict=True)]
    assert distil(method, student, teacher).item() == pytest.approx(3 * np.mean(errors), rel=1e-4)


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
    def segmentor(channels: tuple[int, ...], strides: tuple[int, ...]) -> SegmentationModel:
        shape = FeatureSpec(channels, strides, channels[-1], strides[-1], class_token=False)
        return SegmentationModel(Encoder(shape), LightDecoder(shape, 4))

    teacher, student = segmentor((6, 6), (8, 8)), segmentor((3, 5), (4, 16))
    method = SimKD(SimKDConfig(), PairSpec(teacher.spec, student.spec, 4))
    model = method.deploy(student, teacher).eval()
    parts = student.encoder, method.projectors, teacher.decoder
    assert {id(p) for p in model.parameters()} == {id(p) for part in parts for p in part.parameters()}
    image = torch.rand(2, 3, *size)
    # The grid that the decoder was fitted to, whatever the student's.
    levels = method.projectors(student.encode(image).levels, [grid, grid])
    expected = teacher.decode(Features(levels, levels[-1], levels[-1], {})).logits
    assert torch.equal(model(image).logits, expected)
