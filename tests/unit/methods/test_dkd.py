"""DKD: the divergence of the label's class against the rest, and that among the rest, over labelled pixels."""

from __future__ import annotations

import numpy as np
import pytest
from closed_forms import array
from kdbench.methods.dkd import DKD
from scipy.special import rel_entr, softmax

METHOD = DKD


def parts(student: np.ndarray, teacher: np.ndarray, label: np.ndarray, temperature: float) -> np.ndarray:
    """Means over labelled pixels of both parts, from plain probabilities."""
    each = []
    for b, y, x in np.argwhere(label != 255):
        p, q = (softmax(logits[b, :, y, x] / temperature) for logits in (teacher, student))
        k = label[b, y, x]
        target = rel_entr(p[k], q[k]) + rel_entr(1 - p[k], 1 - q[k])
        rest = rel_entr(np.delete(p, k) / (1 - p[k]), np.delete(q, k) / (1 - q[k])).sum()
        each.append((target, rest))
    return temperature**2 * np.mean(each, axis=0)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_values_are_means_over_labelled_pixels(temperature: float, distil, labelled_logits) -> None:
    student, teacher, label = labelled_logits
    terms = distil(student, teacher, label=label, alpha=2, beta=3, temperature=temperature)
    target, rest = parts(array(student), array(teacher), label[:, ::2, ::2].numpy(), temperature)
    assert terms["dkd_target"].item() == pytest.approx(2 * target, rel=1e-5)
    assert terms["dkd_rest"].item() == pytest.approx(3 * rest, rel=1e-5)


@pytest.mark.parametrize(
    ("warmup", "progress", "share"),
    [(0.05, 0.0, 0.05), (0.05, 0.025, 0.525), (0.05, 0.05, 1.0), (0.05, 0.9, 1.0), (0.0, 0.0, 1.0)],
)
def test_the_weight_grows_from_a_twentieth_to_the_whole(
    warmup: float, progress: float, share: float, distil, labelled_logits
) -> None:
    *logits, label = labelled_logits
    early, late = (distil(*logits, label=label, warmup=warmup, progress=when) for when in (progress, 1.0))
    for name, value in late.items():
        assert early[name].item() == pytest.approx(share * value.item(), rel=1e-5)
