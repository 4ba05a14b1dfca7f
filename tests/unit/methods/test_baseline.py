"""The student alone."""

from __future__ import annotations

import pytest
from closed_forms import array
from kdbench.methods.baseline import Baseline, BaselineConfig
from scipy.special import log_softmax

from kdbench.types import Part


def test_with_a_frozen_encoder_the_decoder_alone_trains(make_pair) -> None:
    (stage,) = Baseline(BaselineConfig(encoder="frozen"), make_pair()).stages()
    assert stage.trains == {Part.STUDENT_DECODER}
    assert Part.STUDENT_ENCODER in stage.parts


def test_loss_is_the_students_task_loss_only(make_pair, make_batch, fake, random) -> None:
    (stage,) = Baseline(BaselineConfig(), make_pair()).stages()
    student = fake(random(2, 4, 8, 8), random(2, 3, 4, 4))
    terms = stage.loss(make_batch(label=2), student, None)
    assert terms.keys() == {"task"}
    assert terms["task"].item() == pytest.approx(-log_softmax(array(student.logits), 1)[:, 2].mean(), rel=1e-6)
