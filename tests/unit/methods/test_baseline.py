"""The student alone."""

from __future__ import annotations

import pytest
import torch
from kdbench.methods.baseline import Baseline, BaselineConfig

from kdbench.types import Part


def test_it_is_the_undistilled_reference() -> None:
    assert Baseline.role == "undistilled"


def test_frozen_knob_trains_the_decoder_alone(make_pair) -> None:
    (stage,) = Baseline(BaselineConfig(encoder="frozen"), make_pair()).stages()
    assert stage.trains == {Part.STUDENT_DECODER}
    assert Part.STUDENT_ENCODER in stage.parts


def test_loss_is_the_students_task_loss_only(make_pair, make_batch, fake, random) -> None:
    (stage,) = Baseline(BaselineConfig(), make_pair()).stages()
    student = fake(logits=random(2, 4, 8, 8))
    batch = make_batch(label=2)
    terms = stage.loss(batch, student, None)
    expected = -torch.log_softmax(student.logits.double(), 1)[:, 2].mean()
    assert set(terms) == {"task"}
    assert terms["task"].item() == pytest.approx(expected.item(), rel=1e-6)
