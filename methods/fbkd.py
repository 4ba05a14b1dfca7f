"""Feature-based distillation of detectors: attended features, their channels and positions, and non-local relations."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.losses import matched_levels, resize_as, tokens
from kdbench.method import FeatureMethod, MethodConfig
from kdbench.types import Batch, Features, PairSpec

SETTING = (
    "on the norm there; times the root of the elements that it sums, mean over the four levels of the source: 2 images "
    "of 800 x 1344, FPN maps of 256 channels at strides 4 to 32"
)


class FBKDConfig(MethodConfig):
    """Options of FBKD: weights on root mean squares for each level."""

    feature_on_rms: float = Field(0.192, ge=0, description=f"weight of the features. Source: mmrazor, 7e-5 {SETTING}")
    channel_on_rms: float = Field(0.0905, ge=0, description=f"weight of the channels. Source: mmrazor, 4e-3 {SETTING}")
    spatial_on_rms: float = Field(0.687, ge=0, description=f"weight of the positions. Source: mmrazor, 4e-3 {SETTING}")
    relation_on_rms: float = Field(0.192, ge=0, description=f"weight of the relations. Source: mmrazor, 7e-5 {SETTING}")
    temperature: float = Field(0.5, gt=0, description="temperature T of the attention. Source: mmrazor, 0.5")


class NonLocal(nn.Module):
    """A non-local block without softmax: every position adds what it gathers from all others of its map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = max(1, width // 2)
        self.query, self.key, self.value = (nn.Conv2d(width, inner, 1) for _ in range(3))
        norm = nn.BatchNorm2d(width)
        # The block begins as the identity, as its authors have it.
        nn.init.zeros_(norm.weight)
        self.output = nn.Sequential(nn.Conv2d(inner, width, 1, bias=False), norm)

    def forward(self, map_: Tensor) -> Tensor:
        """A map (B, C, h, w) of the same shape, in single precision: products of three maps leave half precision."""
        with torch.autocast(map_.device.type, enabled=False):
            map_ = map_.float()
            window = [min(2, side) for side in map_.shape[-2:]]
            keys, values = (tokens(F.max_pool2d(layer(map_), window)) for layer in (self.key, self.value))
            # Keys and values first: without a softmax, no matrix of positions by positions is needed.
            gathered = tokens(self.query(map_)) @ (keys.transpose(1, 2) @ values / keys.shape[1])
            added: Tensor = self.output(gathered.transpose(1, 2).reshape(len(map_), -1, *map_.shape[-2:]))
            return map_ + added


def spatial_attention(map_: Tensor, temperature: float) -> Tensor:
    """Spatial attention (B, 1, h, w) by the channels' mean magnitude; its mean over the positions is one."""
    magnitude = map_.abs().mean(1, keepdim=True)
    return (magnitude.flatten(1) / temperature).softmax(1).view_as(magnitude) * magnitude[0].numel()


def rms(error: Tensor) -> Tensor:
    """Root mean square; as a norm, whose gradient at zero is zero and not the infinite one of a root."""
    norm: Tensor = torch.linalg.vector_norm(error)
    return norm / math.sqrt(error.numel())


class LevelAdapters(nn.Module):
    """The adapters of one level."""

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.feature = nn.Conv2d(student, teacher, 1)
        self.channel = nn.Linear(student, teacher)
        self.spatial = nn.Conv2d(1, 1, 3, padding=1)
        self.student_relation = nn.Sequential(NonLocal(student), nn.Conv2d(student, teacher, 1))
        self.teacher_relation = NonLocal(teacher)

    def forward(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """The four errors: features, channels, positions, relations."""
        student, teacher = resize_as(student.float(), teacher), teacher.float()
        attended = (spatial_attention(student, temperature) + spatial_attention(teacher, temperature)).detach() / 2
        errors = (
            (self.feature(student) - teacher) * attended.sqrt(),
            self.channel(student.mean((2, 3))) - teacher.mean((2, 3)),
            self.spatial(student.mean(1, keepdim=True)) - teacher.mean(1, keepdim=True),
            self.student_relation(student) - self.teacher_relation(teacher),
        )
        return torch.stack([rms(error) for error in errors])


class FBKD(FeatureMethod[FBKDConfig]):
    r"""At each level the student follows the teacher's features where either of them attends, and their relations.

    Formula:
    Four root mean squares over a whole batch, each with its weight, summed over the levels; $F_s$ and $F_t$ are a
    level's maps, the student's resized to the teacher's grid.

    $$ M = \frac{1}{2} \sum_{F \in \lbrace F_s, F_t \rbrace} h w \cdot \mathrm{softmax}_i
    \left( \frac{1}{C T} \sum_c \vert F_{c,i} \vert \right) \qquad
    L_{feature} = \mathrm{rms} \left( (c_1(F_s) - F_t) \sqrt{M} \right) $$

    $$ L_{channel} = \mathrm{rms}(l(\bar F_s) - \bar F_t) \qquad
    L_{spatial} = \mathrm{rms}(c_3(\mathrm{mean}_c F_s) - \mathrm{mean}_c F_t) \qquad
    L_{relation} = \mathrm{rms}(c_1'(NL_s(F_s)) - NL_t(F_t)) $$

    $c_1, c_1'$ are 1x1 convolutions, $c_3$ a 3x3 convolution, $l$ a linear map, $\bar F$ the mean over positions; no
    gradient flows through $M$. A non-local block is $NL(x) = x + \mathrm{BN}(W(q (k^\top v) / n))$ with 1x1
    convolutions $q, k, v$ to half the width and $W$ back, $k$ and $v$ max-pooled 2x2 to $n$ positions, and BN's scale
    zero at first. Both blocks train.

    Deviations: the authors take norms over a whole batch, which grow with its size, width and grid; the weights are
    converted to root means at the setting of the detectors. Their networks were equally wide; here the adapters change
    the width. The authors pool k and v by 8 and 4 and reduce to a quarter of the width at strides 4 and 8, and as here
    from stride 16 on; mmrazor pools by 2 once more. W has no bias, which BN would take out. The attention to channels,
    which their code computes and drops, is left out. Levels of transformers are blocks before the last norm.

    Compared: mmrazor's connectors/fbkd_connector.py (on mmcv's non-local block, pooled once) and losses/fbkd_loss.py on
    random maps: equal to 2e-7.
    """

    paper = "Zhang, Ma, Improve Object Detection with Feature-based Knowledge Distillation, ICLR 2021"

    def __init__(self, config: FBKDConfig, pair: PairSpec) -> None:
        super().__init__(config, pair)
        self.levels = nn.ModuleList(LevelAdapters(*both) for both in pair.level_channels)

    def terms(self, batch: Batch, student: Features, teacher: Features) -> dict[str, Tensor]:
        config, maps = self.config, zip(self.levels, matched_levels(student, teacher), strict=True)
        feature, channel, spatial, relation = sum(level(*both, config.temperature) for level, both in maps)
        return {
            "feature": config.feature_on_rms * feature,
            "channel": config.channel_on_rms * channel,
            "spatial": config.spatial_on_rms * spatial,
            "relation": config.relation_on_rms * relation,
        }
