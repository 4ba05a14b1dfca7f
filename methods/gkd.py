"""Generalizable knowledge distillation: the representation first, without labels, then the task."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.losses import resize, tokens
from kdbench.method import Knobs, Method, Stage, knob, task_loss
from kdbench.types import STUDENT, Batch, Features, PairSpec, Part, Phase, Segmentor

HEADS = frozenset({"token_head", "feature_head", "patch_head"})


class GKDKnobs(Knobs):
    """Weights of the three losses, the masking rule, and the paper's two ablations."""

    token: float = knob(1.0, "GKD, alpha = 1, and every released script", ge=0)
    feature: float = knob(1.0, "GKD, beta = 1, and every released script", ge=0)
    patch: float = knob(1.0, "GKD, gamma = 1, and every released script", ge=0)
    mask_probability: float = knob(0.5, "GKD scripts: the first half of each batch is masked", ge=0, le=1)
    mask_ratio: float = knob(0.5, "GKD scripts: half of a masked image's tokens", ge=0, le=1)
    match: Literal["qsd", "scaled", "mse"] = knob("qsd", "GKD, eq. of section 3: unscaled attention; mse: its ablation")
    single_stage: bool = knob(False, "GKD's ablation: distilled and taught at once on the source, without the proxy")


class QSD(nn.Module):
    """Query-based soft distillation head (GKD, section 3): queries and values from the student, raw teacher keys.

    The attention is not scaled, as in the paper's formula and in the released code; its output is pushed to equal the
    teacher's tokens position by position, which reach it through the attention weights alone.
    """

    def __init__(self, student: int, teacher: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.query = nn.Sequential(nn.LayerNorm(student), nn.Linear(student, teacher))
        self.value = nn.Sequential(nn.LayerNorm(student), nn.Linear(student, teacher))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Student tokens (B, N, C_s) and teacher tokens (B, N, C_t) to (B, N, C_t)."""
        query, value = self.query(student).float(), self.value(student).float()
        # Unscaled logits have a deviation of about sqrt(C_t): under autocast they would saturate in half precision.
        with torch.autocast(query.device.type, enabled=False):
            return F.scaled_dot_product_attention(query, teacher.float(), value, scale=self.scale)


class Direct(nn.Module):
    """The head of the ablation with a plain squared error: student tokens, mapped position by position."""

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.value = nn.Sequential(nn.LayerNorm(student), nn.Linear(student, teacher))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Student tokens (B, N, C_s) to (B, N, C_t); the teacher's are not looked at."""
        value: Tensor = self.value(student).float()
        return value


def make_head(match: str, student: int, teacher: int) -> nn.Module:
    """The head that brings student tokens to the teacher's; `scaled` divides the logits as usual attention does."""
    if match == "mse":
        return Direct(student, teacher)
    return QSD(student, teacher, teacher**-0.5 if match == "scaled" else 1.0)


def first_half_masks(
    batch: int, grid: tuple[int, int], probability: float, ratio: float, device: torch.device
) -> Tensor:
    """Masks (B, h, w): the first floor(B p) images hide exactly floor(N r) tokens, drawn uniformly; the rest none."""
    count = grid[0] * grid[1]
    # Rounded first, so that 0.29 of 100 tokens is 29 and not the 28 of binary fractions.
    masked, hidden = int(round(batch * probability, 6)), int(round(count * ratio, 6))
    ranks = torch.rand(batch, count, device=device).argsort(1).argsort(1)
    mask = ranks < hidden
    mask[masked:] = False
    return mask.reshape(batch, *grid)


class GKD(Method):
    """The student takes over the teacher's features without labels, then learns the task with its encoder frozen."""

    paper = "Lv et al., Generalizable Knowledge Distillation, CVPR 2026 (arXiv 2603.02554)"
    Config = GKDKnobs

    def __init__(self, config: Any, pair: PairSpec) -> None:
        super().__init__(config, pair)
        widths = pair.student.final_channels, pair.teacher.final_channels
        self.token_head, self.feature_head, self.patch_head = (make_head(config.match, *widths) for _ in range(3))
        if pair.student.convolutional:
            self.remark = "GKD-CNN: kdbench's extension; the paper's students are ViTs"

    def stages(self) -> tuple[Stage, ...]:
        if self.config.single_stage:
            uses = STUDENT | {Part.TEACHER_ENCODER}
            return (Stage("joint", Phase.TASK, trains=STUDENT | HEADS, uses=uses, loss=self.joint_loss),)
        learns = HEADS | {Part.STUDENT_ENCODER}
        return (
            Stage("proxy", Phase.PROXY, trains=learns, loss=self.loss),
            Stage("source", Phase.SOURCE, trains=learns, loss=self.loss, reset=HEADS),
            Stage("task", Phase.TASK, trains=frozenset({Part.STUDENT_DECODER}), uses=STUDENT, loss=task_loss),
        )

    def joint_loss(self, batch: Batch, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
        """The three terms beside the task's, for the ablation in a single stage."""
        output = student(batch.image)
        assert batch.label is not None
        return {**student.task_loss(output, batch.label), **self._terms(batch, output.features, student, teacher)}

    def loss(self, batch: Batch, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
        return self._terms(batch, student.encode(batch.image), student, teacher)

    def _terms(self, batch: Batch, whole: Features, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
        target = teacher.encode(batch.image)
        grid = (target.final.shape[-2], target.final.shape[-1])
        mask = first_half_masks(
            len(batch.image), grid, self.config.mask_probability, self.config.mask_ratio, batch.image.device
        )
        masked = student.encode(batch.image, mask=mask)
        goal = tokens(target.final).float()
        class_goal = target.pooled.float().unsqueeze(1)
        class_token = self.token_head(whole.pooled.unsqueeze(1), class_goal)
        features = self.feature_head(tokens(resize(whole.final, grid)), goal)
        patches = self.patch_head(tokens(resize(masked.final, grid)), goal)
        # The class row stands in the feature term too, so it counts 1 + 1 / (1 + N) times, as released.
        rows, row_goals = torch.cat((class_token, features), 1), torch.cat((class_goal, goal), 1)
        return {
            "token": self.config.token * F.mse_loss(class_token, class_goal),
            "feature": self.config.feature * F.mse_loss(rows, row_goals),
            "patch": self.config.patch * F.mse_loss(patches, goal),
        }
