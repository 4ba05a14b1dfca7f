"""References that share no code with what they check."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest


@pytest.fixture
def bilinear() -> Callable[[np.ndarray, tuple[int, int]], np.ndarray]:
    """Bilinear resizing of (..., h, w) in float64 from its definition: pixel centres at half integers, clamped."""

    def weights(old: int, new: int) -> np.ndarray:
        matrix = np.zeros((new, old))
        for i in range(new):
            place = min(max((i + 0.5) * old / new - 0.5, 0.0), old - 1.0)
            low = int(place)
            matrix[i, low] += 1 - (place - low)
            matrix[i, min(low + 1, old - 1)] += place - low
        return matrix

    def resize(map_: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        rows, columns = weights(map_.shape[-2], size[0]), weights(map_.shape[-1], size[1])
        return rows @ map_.astype(np.float64) @ columns.T

    return resize
