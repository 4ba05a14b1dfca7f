"""An encoder with a decoder, and builds that depend on their purpose alone."""

from __future__ import annotations

import pytest
import torch

from kdbench.models.segmentor import SegmentationModel, build_decoder, seeded

CLASSES = 5


@pytest.fixture
def segmentor(encoder) -> SegmentationModel:
    return SegmentationModel(encoder, seeded(lambda: build_decoder("light", encoder.spec, CLASSES), "test")).eval()


pytestmark = pytest.mark.parametrize("encoder", ["deit-s", "resnet18", "mit-b0"], indirect=True)


@torch.no_grad()
def test_encode_hands_on_masks_and_blocks(segmentor: SegmentationModel, images) -> None:
    image, stride = images(1, 32, 64), segmentor.spec.final_stride
    mask = torch.ones(1, 32 // stride, 64 // stride, dtype=torch.bool)
    masked = segmentor.encode(image, mask=mask, blocks=(1,))
    assert list(masked.blocks) == [1]
    assert torch.equal(masked.final, segmentor.encoder(image, mask).final)
    assert not torch.allclose(masked.final, segmentor.encode(image).final, atol=1e-3)


def test_seeded_decoders_are_equal_and_leave_the_global_generator_alone(encoder) -> None:
    def build(*purpose: object) -> list[torch.Tensor]:
        return list(seeded(lambda: build_decoder("light", encoder.spec, CLASSES), *purpose).parameters())

    state = torch.get_rng_state()
    first = build("a", 1)
    torch.rand(3)
    again, other = build("a", 1), build("a", 2)
    torch.set_rng_state(state)
    build("a", 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))
