"""SimKD for dense maps: the student's encoder is fitted to the teacher's frozen decoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.losses import LevelProjectors
from kdbench.method import FIT_TEACHER, Method, MethodConfig, Stage
from kdbench.types import Batch, PairSpec, Part, Phase, Segmentor, SegOutput


class SimKDConfig(MethodConfig):
    weight: float = Field(
        1.0, ge=0, description="weight of the features. Source: SimKD scripts, 1 (labels and logits: 0)"
    )
    reduction: int = Field(
        2, ge=1, description="the teacher's width over the projector's inner width. Source: SimKD, 2"
    )


def bottleneck(inputs: int, outputs: int, reduction: int) -> nn.Sequential:
    """SimKD's projector, less the ReLU at its end: levels of transformers are signed."""
    inner = max(1, outputs // reduction)
    return nn.Sequential(
        nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
        nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
        nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
    )  # fmt: skip


class StudentOnTeacherDecoder(nn.Module):
    """What is deployed: the student's encoder, the projectors and the teacher's decoder."""

    def __init__(self, encoder: nn.Module, projectors: nn.Module, decoder: nn.Module, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder, self.projectors, self.decoder = encoder, projectors, decoder
        self.strides = strides

    def forward(self, image: Tensor) -> SegOutput:
        """Class logits of images (B, 3, H, W) in [0, 1]."""
        features = self.encoder(image)
        # Rounded up: a last patch or step that the image does not fill is padded.
        sizes = [(-(-image.shape[-2] // stride), -(-image.shape[-1] // stride)) for stride in self.strides]
        output: SegOutput = self.decoder(replace(features, levels=self.projectors(features.levels, sizes)))
        return output


class SimKD(Method[SimKDConfig]):
    r"""The student's encoder learns to feed the teacher's frozen decoder, which is deployed with it.

    Formula:
    The teacher's decoder is fitted on its frozen encoder. Then, in the task's phase without reading its labels, the
    student's encoder and a projector $P_l$ for each of the $n$ levels $F^l$ that the decoder reads minimise

    $$ L = \frac{w}{n} \sum_{l=1}^{n} \mathrm{mse}(P_l(F_s^l), F_t^l) $$

    with mse a mean over samples, channels and positions. A projector is a 1x1 convolution to half the teacher's width,
    a 3x3 convolution, and a 1x1 convolution to the full width, each without bias and with batch norm, ReLUs between
    them. The deployed segmentor is the student's encoder, the projectors and the teacher's decoder; the student's own
    decoder has no part in it.

    Deviations: SimKD reuses a linear classifier of one pooled map; for a decoder of several levels each has its
    projector. The ReLU at the end is left out, since levels of transformers are signed. A finer student map is pooled
    before its projector, as there, by whole steps, and what remains is resized; a coarser one is resized to the
    teacher's grid after it, where SimKD pools the teacher, because that is the grid that the decoder was fitted to.
    SimKD's script gives the student the ordinary schedule, so it has the passes and rates of methods that read labels.
    A student with more levels leaves out its shallowest; in one with fewer the deepest serves several of the teacher's.

    Compared: SimKD's models/util.py less its last ReLU, on one level of random maps, on one grid and with a student two
    and four times as fine: equal to the last bit, with its gradient.
    """

    paper = "Chen, Mei, Zhang, Wang, Feng, Chen, Reused Teacher Classifier, CVPR 2022 (arXiv 2203.14001)"
    footnote = "SimKD-dense: kdbench's extension; it deploys the teacher's decoder and projectors"

    def __init__(self, config: SimKDConfig, pair: PairSpec) -> None:
        super().__init__(config, pair)
        self.projectors = LevelProjectors(
            pair.student, pair.teacher, lambda inputs, outputs: bottleneck(inputs, outputs, config.reduction)
        )

    def stages(self) -> tuple[Stage, ...]:
        learns = frozenset({Part.STUDENT_ENCODER, "projectors"})
        return (FIT_TEACHER, Stage("task", Phase.TASK, trains=learns, loss=self.loss))

    def loss(self, batch: Batch, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
        theirs = teacher.encode(batch.image).levels
        ours = self.projectors(student.encode(batch.image).levels, [level.shape[-2:] for level in theirs])
        errors = [F.mse_loss(a.float(), b.float()) for a, b in zip(ours, theirs, strict=True)]
        return {"simkd": self.config.weight * sum(errors[1:], errors[0]) / len(errors)}

    def deploy(self, student: Any, teacher: Any) -> nn.Module:
        return StudentOnTeacherDecoder(student.encoder, self.projectors, teacher.decoder, teacher.spec.strides)
