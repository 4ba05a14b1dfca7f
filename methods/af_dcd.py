"""Af-DCD: masked reconstruction of the teacher's map, and a dense contrast inside small patches of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.losses import align, generator, pixel_kl, resize, same_grid
from kdbench.method import Method, MethodConfig
from kdbench.types import Batch, PairSpec, Segmentor

PATCH = 4


class AfDCDConfig(MethodConfig):
    """Weights of the three terms, the mask, and the contrast's temperature and groups."""

    kd: float = Field(
        1.0, ge=0, description="Af-DCD, Cityscapes script: lambda_kd = 1; 0 leaves the teacher's decoder out"
    )
    reconstruction: float = Field(
        33.6,
        ge=0,
        description="Af-DCD, Cityscapes script, on the mean: lambda_fd = 2e-6 times its map's 2048 64 128 elements",
    )
    contrast: float = Field(
        0.08,
        ge=0,
        description="Af-DCD, Cityscapes script, on the mean: lambda_ctr = 5e-3 times its 16 anchors a position",
    )
    mask_ratio: float = Field(0.75, ge=0, le=1, description="Af-DCD: zeta = 0.75")
    temperature: float = Field(0.07, gt=0, description="Af-DCD: tau = 0.07")
    groups: int = Field(16, ge=1, description="Af-DCD: M = 16 channel groups; fewer where 16 does not divide the width")


def patches(map_: Tensor, groups: int) -> Tensor:
    """Local patches of a map (B, C, h, w) as (patches, positions x groups, C / groups), pooled to PATCH where it can.

    Rows and columns that do not fill a patch are cut off; sides below PATCH are one patch long.
    """
    pool = next((p for p in (4, 2) if min(map_.shape[-2:]) >= p * PATCH), 1)
    pooled = F.max_pool2d(map_, pool)
    rows, columns = (min(PATCH, side) for side in pooled.shape[-2:])
    cut = pooled.unfold(2, rows, rows).unfold(3, columns, columns)
    batch, width, *counts = cut.shape
    split = cut.reshape(batch, groups, width // groups, *counts).permute(0, 3, 4, 5, 6, 1, 2)
    return split.flatten(3, 5).flatten(0, 2)


def dense_contrast(student: Tensor, teacher: Tensor, groups: int, temperature: float) -> Tensor:
    """Mean of -log of the positive's share among itself and the sub-vectors of other channel groups in its patch."""
    ours, theirs = patches(student.float(), groups), patches(teacher.float(), groups)
    scores = -torch.cdist(ours, theirs, p=1) / temperature
    anchor = torch.arange(scores.shape[-1], device=scores.device)
    group = anchor % groups
    left_out = (group[:, None] == group) & (anchor[:, None] != anchor)
    share = scores.masked_fill(left_out, -torch.inf).log_softmax(-1)
    return -share.diagonal(dim1=1, dim2=2).mean()


class AfDCD(Method[AfDCDConfig]):
    """The student rebuilds the teacher's map from a masked one, and its pieces are contrasted within small patches.

    Formula: the student's map is aligned to the teacher's width (1x1 convolution with bias, nothing where the widths
    agree), resized to the teacher's grid, set to zero at each position with probability 0.75 and passed through two 3x3
    convolutions with a ReLU between them, which gives R. Reconstruction: mean squared error of R and the teacher's map
    T. Contrast: R and T are max-pooled by 4 and cut into patches of 4x4 positions, their channels into 16 groups that
    stand side by side, so that a patch holds 256 vectors. For the vector a of R: s(a, b) = -|r_a - t_b|_1 / 0.07; its
    loss is the negative logarithm of exp s(a, a) over the sum of exp s(a, b), where b is a itself or a vector of
    another group anywhere in the patch (240 of them); mean over vectors. KD: KL(teacher || student) over the classes
    at every pixel of the larger logit map, mean over pixels. All three and the task loss are summed with their weights.

    Deviations: logit distillation is part of the default, as in the released scripts, where other methods have their
    own term alone unless preset=published asks for auxiliary losses; kd=0 leaves it out. Coefficients stand on
    means, so that
    they do not grow with the crop or the width; defaults convert the Cityscapes setting. The released code takes the
    last stage of a dilated ResNet; here it is the encoder's last map. Odd grids: the pool is the largest of 4, 2 and 1
    that leaves both sides at least 4 long, a side that is shorter even so is a patch's side, and rows and columns that
    fill no patch are cut off for the contrast, as the released code does on CamVid. Odd widths: the largest number of
    groups up to 16 that divides the teacher's. The projector of the released "enhanced" variant and its central mask
    are left out: the scripts that ask for them do not parse, so it cannot be known whether published numbers used them.
    Gradients are clipped as the protocol says and not, as released, at norm 15 for the method's own modules.

    Compared: Af-DCD's losses/ocmgd.py and losses/kd.py on random maps with equal weights and masks: equal to 2e-7, with
    the published coefficients put back on sums; gradients of the contrast to 1e-6.
    """

    paper = "Fan, Li, Liu, Song, Yao, Augmentation-free Dense Contrastive Knowledge Distillation, NeurIPS 2023"

    def __init__(self, config: AfDCDConfig, pair: PairSpec) -> None:
        super().__init__(config, pair)
        inputs, width = pair.final_channels
        self.reads_teacher_logits = config.kd > 0
        self.align = align(inputs, width)
        self.generator = generator(width)
        self.groups = max(count for count in range(1, config.groups + 1) if width % count == 0)

    def loss(self, batch: Batch, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
        ours, theirs = student(batch.image), teacher.encode(batch.image)
        terms, config = student.task_loss(ours, batch.label), self.config
        if self.reads_teacher_logits:
            terms["logit_kd"] = config.kd * pixel_kl(*same_grid(ours.logits, teacher.decode(theirs).logits))
        aligned = resize(self.align(ours.features.final), theirs.final.shape[-2:])
        kept = torch.rand(len(aligned), 1, *aligned.shape[-2:], device=aligned.device) <= 1 - config.mask_ratio
        rebuilt = self.generator(aligned * kept)
        terms["reconstruction"] = config.reconstruction * F.mse_loss(rebuilt.float(), theirs.final.float())
        contrast = dense_contrast(rebuilt, theirs.final, self.groups, config.temperature)
        terms["contrast"] = config.contrast * contrast
        return terms
