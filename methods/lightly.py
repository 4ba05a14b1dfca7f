"""LightlyTrain's distillation: the representation first, from mixed images without labels, then the task."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.losses import kl, product, resize_as, tokens
from kdbench.method import MethodConfig, RepresentationMethod
from kdbench.types import Batch, Features, PairSpec, Segmentor


class LightlyConfig(MethodConfig):
    """Options of LightlyTrain's distillation; the last three belong to v3."""

    version: Literal["v2", "v3"] = Field(
        "v3", description="which of the two losses. Source: LightlyTrain, whose method 'distillation' is v3"
    )
    temperature: float = Field(0.07, gt=0, description="temperature tau of both terms. Source: LightlyTrain v3, 0.07")
    local: float = Field(
        1.0, gt=0, description="weight of the local term. Source: LightlyTrain v3, loss_local_weight = 1"
    )
    queue: int = Field(
        8192,
        ge=1,
        description="remembered class tokens. Source: LightlyTrain v3, 8192 above 20 000 images (1024 for 3 000)",
    )


class EmbeddingQueue(nn.Module):
    """The teacher's last global embeddings, newest first, and how many rows are filled by now."""

    rows: Tensor
    filled: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, width))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def push(self, embeddings: Tensor) -> None:
        """Puts embeddings (B, C) in front and drops the oldest."""
        # In place, because the engine puts buffers back where it only tries a step.
        self.rows.copy_(torch.cat((embeddings.detach(), self.rows))[: len(self.rows)])
        self.filled.add_(len(embeddings)).clamp_(max=len(self.rows))

    def compare(self, embeddings: Tensor, temperature: float) -> Tensor:
        """Unit vectors (B, C) to cosines with all rows / temperature (B, N), for a softmax without unfilled rows."""
        unfilled = torch.arange(len(self.rows), device=self.rows.device) >= self.filled
        # Of a copy, because the next push changes the rows while this graph may still hold them.
        cosines = product(embeddings, self.rows.clone().T)
        # Not minus infinity, which the divergence would subtract from itself.
        return (cosines / temperature).masked_fill(unfilled, torch.finfo(cosines.dtype).min)


def mix(image: Tensor) -> Tensor:
    """Every image blended with another one of the batch, at one share for all, drawn uniformly."""
    share = torch.rand((), device=image.device)
    return share * image + (1 - share) * image[torch.randperm(len(image), device=image.device)]


def start_small(linear: nn.Linear | nn.Conv2d) -> nn.Module:
    """The start of LightlyTrain's heads: truncated normal weights of deviation 0.02, no bias."""
    nn.init.trunc_normal_(linear.weight, std=0.02)
    assert linear.bias is not None
    nn.init.zeros_(linear.bias)
    return linear


BEFORE_LAST = -2
"""The block whose map v2 reads beside the last one."""


def last_two(teacher: Features) -> Tensor:
    """The last two blocks as one map: the last as the network norms it, the other with a plain LayerNorm."""
    block = teacher.blocks[BEFORE_LAST]
    normed = F.layer_norm(block.movedim(1, -1).float(), block.shape[1:2]).movedim(-1, 1)
    return torch.cat((resize_as(normed, teacher.final), teacher.final.float()), 1)


class Lightly(RepresentationMethod[LightlyConfig]):
    r"""The student takes over the teacher's maps, or their similarities, from mixed images without labels.

    Formula:
    Both networks see $\lambda x + (1 - \lambda) x'$, with $x'$ the batch in random order and $\lambda$ from $U(0, 1)$,
    one for the whole batch. $h$ is a linear map to the teacher's width, $\sigma$ the softmax of a row, and all vectors
    of v3 have unit length: $V$ $(N, C)$ the tokens of an image, $c$ its class token, $Q$ a queue of the teacher's last
    8192 class tokens, this batch's in front, as far as it is filled.

    $$ L_{v3} = \mathrm{mean} \cdot \mathrm{KL}(\sigma(V_t V_t^\top / \tau) \Vert \sigma(h(V_s) h(V_s)^\top / \tau))
    + \mathrm{mean} \cdot \mathrm{KL}(\sigma(Q c_t / \tau) \Vert \sigma(Q h'(c_s) / \tau)) $$

    $$ L_{v2} = \mathrm{mse}(h(V_s), [V_t^{last-1}, V_t^{last}]) $$

    v2 reads the teacher's last two blocks side by side. The student's maps are resized to the teacher's grid behind
    $h$. The sum is minimised on the proxy, then with new heads and queue on the source's images; the task follows on
    the whole student.

    Deviations: v2 reads both blocks behind the network's final norm; here the first of the two has a LayerNorm without
    weights, because a method does not know the network's own norm. Of a network in resolution steps they are the last
    two steps. LightlyTrain's queue begins with rows of zeros, which count as tokens of similarity 0 until they are
    filled; here they are left out of the softmax, as short runs never fill them. With several processes the queue holds
    the first one's images; LightlyTrain gathers those of all. The queue is not shortened for small data sets, and v3's
    biases start at zero, as v2's do. Optimiser (v2: LARS), views and clipping at norm 1 are the protocol's. The stage
    on the source is GKD's scheme, so that the two can be compared.

    Compared: lightly-train's _methods/distillationv2 and distillationv3 on random maps with equal weights and, in v2,
    equal targets: equal to 4e-7 in each term, the one over the queue once that is full; queue and mixed images equal.
    """

    paper = "Lightly AG, LightlyTrain, distillation v2 and v3 (software without a paper)"

    def __init__(self, config: LightlyConfig, pair: PairSpec) -> None:
        super().__init__(config, pair)
        inputs, width = pair.final_channels
        if config.version == "v2":
            self.head = start_small(nn.Conv2d(inputs, pair.teacher.blocks[BEFORE_LAST] + width, 1))
        else:
            self.local_head = start_small(nn.Conv2d(inputs, width, 1))
            self.global_head = start_small(nn.Linear(inputs, width))
            self.queue = EmbeddingQueue(config.queue, width)

    def loss(self, batch: Batch, student: Segmentor, teacher: Segmentor) -> dict[str, Tensor]:
        image = mix(batch.image)
        ours = student.encode(image)
        if self.config.version == "v3":
            return self._similarities(ours, teacher.encode(image))
        theirs = teacher.encode(image, blocks=(BEFORE_LAST,))
        mapped = resize_as(self.head(ours.final), theirs.final).float()
        return {"features": F.mse_loss(mapped, last_two(theirs))}

    def _similarities(self, student: Features, teacher: Features) -> dict[str, Tensor]:
        local = resize_as(self.local_head(student.final), teacher.final)
        our_tokens, their_tokens = (F.normalize(tokens(map_.float()), dim=2) for map_ in (local, teacher.final))
        pooled = self.global_head(student.pooled), teacher.pooled
        ours, theirs = (F.normalize(vector.float(), dim=1) for vector in pooled)
        heat = self.config.temperature
        self.queue.push(theirs)
        across_images = kl(self.queue.compare(ours, heat), self.queue.compare(theirs, heat), 1.0, dim=1).mean()
        ours, theirs = (product(rows, rows.mT) / heat for rows in (our_tokens, their_tokens))
        return {"global": across_images, "local": self.config.local * kl(ours, theirs, 1.0, dim=2).mean()}
