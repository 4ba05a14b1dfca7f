"""Proteus: a foundation model's features taken over without labels, by three squared errors."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.losses import Projector, resize, share, token_masks, whole_and_masked
from kdbench.method import MethodConfig, RepresentationMethod
from kdbench.types import Batch, Features, PairSpec, Segmentor


class ProteusConfig(MethodConfig):
    token: float = Field(1.0, ge=0, description="weight of the class token. Source: script for DINOv2 teachers, 1")
    feature: float = Field(1.0, ge=0, description="weight of all tokens. Source: script for DINOv2 teachers, 1")
    patch: float = Field(1.0, ge=0, description="weight of the hidden tokens. Source: script for DINOv2 teachers, 1")
    mask_probability: float = Field(
        0.5, ge=0, le=1, description="share of images that are masked. Source: Proteus scripts, half"
    )
    mask_ratio: float = Field(
        0.5, ge=0, le=1, description="share of a masked image's tokens that are hidden. Source: Proteus scripts, half"
    )
    encoder: Literal["fine-tuned", "frozen"] = Field(
        "fine-tuned", description="the encoder in the task stage. Source: GKD's comparison, ordinary task training"
    )
    proxy: bool = Field(
        True, description="whether the proxy stage runs. Source: Proteus, on ImageNet; GKD's comparison may lack it"
    )
    single_stage: bool = Field(
        False, description="distil and learn the task at once on the source. Source: perhaps GKD's comparison"
    )


class Proteus(RepresentationMethod[ProteusConfig]):
    r"""The student takes over the teacher's class token, tokens and hidden tokens without labels, then learns the task.

    Formula:
    $V$ $(B, N, C)$ are an encoder's tokens after its last norm, $c$ its class token, $V_s^m$ the student's tokens where
    the first half of the batch has half of its tokens hidden; $M$ are the hidden tokens. Each head $h$ is a LayerNorm
    and a linear map to the teacher's width.

    $$ L = \lambda_1 \cdot \mathrm{mse}(h_1(c_s), c_t)
    + \lambda_2 \cdot \mathrm{mse}([h_1(c_s), h_2(V_s)], [c_t, V_t])
    + \frac{\lambda_3}{\vert M \vert C_t} \sum_{i \in M} \lVert h_3(V_s^m)_i - V_{t,i} \rVert^2 $$

    mse is a mean over all elements, $[\cdot, \cdot]$ joins tokens. The sum is minimised on the proxy, then with new
    heads on the source's images; the task follows, with the encoder fine-tuned or frozen.

    Deviations: the paper starts from random weights and distils on ImageNet for 300 epochs; here the student starts as
    the pair gives it, the protocol sets the length, and a second stage on the source's images follows, both as in GKD,
    so that the two methods differ by their losses and by the encoder's training in the task. The student's maps are
    resized to the teacher's grid behind the heads. Students without a class token give their mean. A batch too small
    for a share of masked images (one image a process) has one.

    Compared: Proteus-pytorch's pretrain/models_proteus_dinov2.py on random tokens with equal weights and masks: equal
    to 1e-7 in each term.
    """

    task_options = frozenset({"encoder"})
    paper = "Zhang et al., Accessing Vision Foundation Models via ImageNet-1K, ICLR 2025"

    def __init__(self, config: ProteusConfig, pair: PairSpec) -> None:
        super().__init__(config, pair)
        widths = pair.final_channels
        self.token_head, self.feature_head, self.patch_head = (Projector(*widths, False) for _ in range(3))
        self.student_forwards = 2.0 if pair.student.batch_norms else 1.0 + config.mask_probability
        self.freezes_encoder = config.encoder == "frozen"
        self.proxy, self.single_stage = config.proxy, config.single_stage
        if not pair.student.class_token:
            self.footnote = "Proteus-CNN: kdbench's extension; the paper's students are ViTs"

    def loss(self, batch: Batch, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
        return self._terms(batch, student, teacher)[1]

    def joint_loss(self, batch: Batch, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
        whole, terms = self._terms(batch, student, teacher)
        return {**student.task_loss(student.decode(whole), batch.label), **terms}

    def _terms(self, batch: Batch, student: Segmentor, teacher: Segmentor) -> tuple[Features, dict[str, Tensor]]:
        """The student's features of whole images, and the three terms."""
        target, config = teacher.encode(batch.image), self.config
        goal, class_goal = target.final.float(), target.pooled.float()
        grid = goal.shape[-2:]
        # A mean over hidden tokens takes one masked image at least, where the share of a small batch is none.
        hidden = max(share(len(goal), config.mask_probability), int(config.mask_probability > 0))
        mask = token_masks(len(goal), (goal.shape[-2], goal.shape[-1]), hidden, config.mask_ratio, goal.device)
        whole, masked = whole_and_masked(student, batch.image, mask, hidden, not self.pair.student.batch_norms)
        class_token = self.token_head(whole.pooled[:, :, None, None]).flatten(1).float()
        features = resize(self.feature_head(whole.final), grid).float()
        patches = resize(self.patch_head(masked), grid).float()
        rows = torch.cat((class_token[:, :, None], features.flatten(2)), 2)
        row_goals = torch.cat((class_goal[:, :, None], goal.flatten(2)), 2)
        misses = (patches - goal).square().mean(1)
        return whole, {
            "token": config.token * F.mse_loss(class_token, class_goal),
            "feature": config.feature * F.mse_loss(rows, row_goals),
            "patch": config.patch * (misses * mask).sum() / mask.sum().clamp(min=1),
        }
