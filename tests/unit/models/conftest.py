"""One encoder a model, built once; tests leave its weights as they are."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from kdbench.models.backbones import Encoder, build_toy
from kdbench.models.registry import MODELS
from kdbench.models.segmentor import seeded

SIZE = (32, 64)


@cache
def encoder_of(name: str) -> Encoder:
    built = seeded(lambda: build_toy(MODELS[name]), "test", name)
    # A mask token of zeros, its start, would hide where it goes.
    with torch.no_grad():
        built.mask_token.normal_(generator=torch.Generator().manual_seed(0))
    return built.eval()


@pytest.fixture
def encoder(request: pytest.FixtureRequest) -> Encoder:
    """The encoder of the model that the test is parametrised with."""
    return encoder_of(request.param)


@pytest.fixture
def images():
    """Random images; the same for the same arguments."""

    def draw(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
        return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))

    return draw
