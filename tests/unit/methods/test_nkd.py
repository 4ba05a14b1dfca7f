"""NKD: the teacher's probability of the label's class, and the normalised other classes, over labelled pixels."""

from __future__ import annotations

import numpy as np
import pytest
from closed_forms import array
from kdbench.methods.nkd import NKD
from scipy.special import softmax

METHOD = NKD


def parts(student: np.ndarray, teacher: np.ndarray, label: np.ndarray, temperature: float) -> np.ndarray:
    """Means over labelled pixels of both cross-entropies, from plain probabilities."""
    each = []
    for b, y, x in np.argwhere(label != 255):
        k, logits = label[b, y, x], [side[b, :, y, x] for side in (teacher, student)]
        p, q = (softmax(z)[k] for z in logits)
        others, ours = (softmax(np.delete(z, k) / temperature) for z in logits)
        each.append((-p * np.log(q), -(temperature**2) * (others * np.log(ours)).sum()))
    return np.mean(each, axis=0)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_values_are_means_over_labelled_pixels(temperature: float, distil, labelled_logits) -> None:
    student, teacher, label = labelled_logits
    terms = distil(student, teacher, label=label, gamma=2.5, temperature=temperature)
    target, rest = parts(array(student), array(teacher), label[:, ::2, ::2].numpy(), temperature)
    assert terms["nkd_target"].item() == pytest.approx(target, rel=1e-5)
    assert terms["nkd_rest"].item() == pytest.approx(2.5 * rest, rel=1e-5)
