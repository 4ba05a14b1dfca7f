"""Logit distillation of logits that are standardised over the classes of each pixel."""

from __future__ import annotations

import pytest
from closed_forms import array, divergence
from kdbench.methods.logit_std import LogitStd

METHOD = LogitStd


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_value_is_the_divergence_of_standardised_logits(temperature: float, distil, random) -> None:
    logits = 3 * random(2, 4, 3, 5), random(2, 4, 3, 5)
    ours, theirs = (array(z) - array(z).mean(1, keepdims=True) for z in logits)
    ours, theirs = (z / (z.std(1, ddof=1, keepdims=True) + 1e-7) for z in (ours, theirs))
    expected = 9 * divergence(ours, theirs, temperature, axis=1).mean()
    assert distil(*logits, temperature=temperature).item() == pytest.approx(expected, rel=1e-5)
