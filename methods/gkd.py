"""Generalizable knowledge distillation: the representation first, without labels, then the task."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from kdbench.losses import masked_images, resize, token_masks, tokens, whole_and_masked
from kdbench.method import MethodConfig, RepresentationMethod
from kdbench.types import Batch, Features, PairSpec, Segmentor


class GKDConfig(MethodConfig):
    """Options of GKD. A weight of 0 leaves out its loss."""

    token: float = Field(1.0, ge=0, description="weight alpha of the class token. Source: GKD and every script, 1")
    feature: float = Field(1.0, ge=0, description="weight beta of all tokens. Source: GKD and every script, 1")
    patch: float = Field(1.0, ge=0, description="weight gamma of masked images. Source: GKD and every script, 1")
    mask_probability: float = Field(
        0.5, ge=0, le=1, description="share of images that are masked. Source: GKD scripts, the first half of a batch"
    )
    mask_ratio: float = Field(
        0.5, ge=0, le=1, description="share of a masked image's tokens that are hidden. Source: GKD scripts, half"
    )
    match: Literal["qsd", "scaled", "mse"] = Field(
        "qsd",
        description="the heads: unscaled attention, attention divided by the root of the width, or a linear map. "
        "Source: GKD, section 3; mse is its ablation",
    )
    values: Literal["student", "teacher"] = Field(
        "student", description="whose tokens attention gathers. Source: GKD's formula and code; its prose differs"
    )
    proxy: bool = Field(
        True, description="whether the proxy stage runs. Source: GKD scripts; its text leaves it out for F2F pairs"
    )
    encoder: Literal["frozen", "fine-tuned"] = Field(
        "frozen", description="the encoder in the task stage. Source: GKD, frozen; fine-tuned is its ablation"
    )
    single_stage: bool = Field(
        False, description="distil and learn the task at once on the source, without proxy. Source: GKD's ablation"
    )

    @model_validator(mode="after")
    def _some_term(self) -> Self:
        if not self.token + self.feature + self.patch:
            raise PydanticCustomError("empty", "token, feature and patch are all 0; set one of them above 0")
        return self


class QSD(nn.Module):
    """Query-based soft distillation head (GKD, section 3): queries and values from the student, raw teacher keys.

    The attention is not scaled, as in the paper's formula and in the released code; its output is pushed to equal the
    teacher's tokens position by position, which reach it through the attention weights alone.
    """

    def __init__(self, student: int, teacher: int, scale: float = 1.0, values: str = "student") -> None:
        super().__init__()
        self.scale = scale
        self.query = nn.Sequential(nn.LayerNorm(student), nn.Linear(student, teacher))
        if values == "student":
            self.value = nn.Sequential(nn.LayerNorm(student), nn.Linear(student, teacher))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Student tokens (B, N, C_s) and teacher tokens (B, N, C_t) to (B, N, C_t)."""
        query = self.query(student).float()
        value = self.value(student).float() if hasattr(self, "value") else teacher.float()
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


def make_head(config: Any, student: int, teacher: int) -> nn.Module:
    """The head that brings student tokens to the teacher's; `scaled` divides the logits as usual attention does."""
    if config.match == "mse":
        return Direct(student, teacher)
    return QSD(student, teacher, teacher**-0.5 if config.match == "scaled" else 1.0, config.values)


class GKD(RepresentationMethod[GKDConfig]):
    r"""The student takes over the teacher's features without labels, then learns the task with its encoder frozen.

    Formula:
    $V$ $(B, N, C)$ are the tokens of an encoder after its last norm, $c$ $(B, 1, C)$ its class token, $V_s^m$ the
    student's tokens where the first half of the batch has half of its tokens hidden. A head QSD has queries $q$ and
    values $v$ from the student (a LayerNorm and a linear map each) and the teacher's raw tokens as keys; the softmax
    runs over the teacher's positions and is not scaled.

    $$ \mathrm{QSD}(S, T) = \mathrm{softmax}(q(S) T^\top) v(S) \qquad
    \hat c = \mathrm{QSD}_1(c_s, c_t) \qquad \hat V = \mathrm{QSD}_2(V_s, V_t) \qquad
    \hat V^m = \mathrm{QSD}_3(V_s^m, V_t) $$

    $$ L = \alpha \cdot \mathrm{mse}(\hat c, c_t)
    + \beta \cdot \mathrm{mse}([\hat c, \hat V], [c_t, V_t]) + \gamma \cdot \mathrm{mse}(\hat V^m, V_t) $$

    mse is a mean over all elements, $[\cdot, \cdot]$ joins tokens. First on the proxy, then on the source with fresh
    heads, both without labels; then the decoder alone learns the task on the frozen encoder.

    Deviations: none from the released code in its losses; docs/gkd-errata.md lists what it leaves open. Students
    without a class token are kdbench's extension: the mean of the last map takes its place, and the mask hides the
    stem's output. Without batch norms both passes run as one batch, in which an image with no token hidden stands once.
    The released code would mask nothing in a batch of one image; here such an image is masked with probability
    mask_probability.

    Compared: the released code's stage 1 with equal weights and inputs, ViT-B to ViT-S: losses equal, gradients within
    6e-7.
    """

    paper = "Lv et al., Generalizable Knowledge Distillation, CVPR 2026 (arXiv 2603.02554)"
    # The class token meets one key, so that the attention is 1 whatever the query; released like this.
    unused_parameters = ("token_head.query.*",)
    task_options = frozenset({"encoder"})
    token_head: nn.Module
    feature_head: nn.Module
    patch_head: nn.Module

    def __init__(self, config: GKDConfig, pair: PairSpec) -> None:
        super().__init__(config, pair)
        widths = pair.final_channels
        weights = {"token_head": config.token + config.feature, "feature_head": config.feature}
        weights["patch_head"] = config.patch
        # A head whose terms are left out would be trained by nothing.
        for name, weight in weights.items():
            if weight > 0:
                self.add_module(name, make_head(config, *widths))
        again = 1.0 if pair.student.batch_norms else config.mask_probability
        self.student_forwards = 1.0 + (again if config.patch > 0 else 0.0)
        self.freezes_encoder = config.encoder == "frozen"
        self.proxy, self.single_stage = config.proxy, config.single_stage
        if not pair.student.class_token:
            self.footnote = "GKD-CNN: kdbench's extension; the paper's students are ViTs"

    def joint_loss(self, batch: Batch, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
        whole, masked, target = self._passes(batch, student, teacher)
        return {**student.task_loss(student.decode(whole), batch.label), **self._terms(whole, masked, target)}

    def loss(self, batch: Batch, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
        return self._terms(*self._passes(batch, student, teacher))

    def _passes(self, batch: Batch, student: Segmentor, teacher: Segmentor) -> tuple[Features, Tensor | None, Features]:
        """The student's features, its last map with hidden tokens (None where no term reads it), the teacher's."""
        image, target = batch.image, teacher.encode(batch.image)
        if "patch_head" not in self.own_modules:
            return student.encode(image), None, target
        grid = (target.final.shape[-2], target.final.shape[-1])
        masked = masked_images(len(image), self.config.mask_probability)
        mask = token_masks(len(image), grid, masked, self.config.mask_ratio, image.device)
        return (*whole_and_masked(student, image, mask, masked, not self.pair.student.batch_norms), target)

    def _terms(self, whole: Features, masked: Tensor | None, target: Features) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        grid = target.final.shape[-2:]
        goal, class_goal = tokens(target.final).float(), target.pooled.float().unsqueeze(1)
        if "token_head" in self.own_modules:
            class_token = self.token_head(whole.pooled.unsqueeze(1), class_goal)
        if self.config.token > 0:
            terms["token"] = self.config.token * F.mse_loss(class_token, class_goal)
        if "feature_head" in self.own_modules:
            features = self.feature_head(tokens(resize(whole.final, grid)), goal)
            # The class row stands in the feature term too, so it counts 1 + 1 / (1 + N) times, as released.
            rows, row_goals = torch.cat((class_token, features), 1), torch.cat((class_goal, goal), 1)
            terms["feature"] = self.config.feature * F.mse_loss(rows, row_goals)
        if masked is not None:
            patches = self.patch_head(tokens(resize(masked, grid)), goal)
            terms["patch"] = self.config.patch * F.mse_loss(patches, goal)
        return terms
