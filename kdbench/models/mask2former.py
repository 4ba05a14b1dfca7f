"""Mask2Former (Cheng et al., CVPR 2022) as a decoder for any encoder's levels; layers and losses are transformers'.

Queries are classified, not pixels: query q has a distribution p_q over K classes and "no object", and a mask m_q. A
pixel's score of class k, S_k = sum over q of p_q(k) sigmoid(m_q), is a sum of probabilities: about 1 for the class of
a confident pixel and 0 for all others. Taken for a logit it is nearly flat, since of 19 classes the winner's softmax is
then e / (e + 18) = 0.13 however sure the decoder is. Methods soften and compare softmax(logits / T), which at T = 1
has to be what the decoder believes. The logits are therefore log(S + 1e-6): their softmax is S over its sum, and the
order of the classes is that of S. The small term keeps the logarithm finite where no query claims a class.

Import this module where it is needed: transformers takes seconds to load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerLoss,
    Mask2FormerPixelDecoder,
    Mask2FormerPreTrainedModel,
    Mask2FormerTransformerModule,
    pair_wise_dice_loss,
    pair_wise_sigmoid_cross_entropy_loss,
    sample_point,
)

from kdbench.errors import KdbenchError
from kdbench.types import Features, FeatureSpec, SegOutput

ATTENDED = 3
"""How many levels, the coarsest, the two transformers read; finer ones join by convolutions."""
RESCALE = (4.0, 2.0, 1.0, 0.5)
"""What makes a pyramid of four maps of one stride (GKD; a ViT at stride 16 gets strides 4, 8, 16 and 32)."""
FLOOR = 1e-6
"""Added to the scores before the logarithm."""


@dataclass(frozen=True)
class Predictions:
    """The queries' predictions before the first layer and after each, in this order, for deep supervision.

    classes: (B, Q, K + 1) logits, the last class is "no object". masks: (B, Q, h, w) logits.
    """

    classes: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]


class Network(Mask2FormerPreTrainedModel):  # type: ignore[misc]
    """Pixel decoder, query transformer and class layer: transformers' model less the backbone that it insists on."""

    def __init__(self, config: Mask2FormerConfig, channels: tuple[int, ...]) -> None:
        super().__init__(config)
        self.pixel_decoder = Mask2FormerPixelDecoder(config, feature_channels=channels)
        self.transformer = Mask2FormerTransformerModule(in_features=config.feature_size, config=config)
        self.classify = nn.Linear(config.hidden_dim, config.num_labels + 1)
        self._draw_weights()

    def _draw_weights(self) -> None:
        """Draw the start weights as mmdet's MSDeformAttnPixelDecoder and Mask2FormerHead do; the rest keeps torch's.

        transformers' own start takes this class for foreign code, leaves the sampling offsets in one point and draws
        most matrices with a deviation of 0.02.
        """
        pixels, draw = self.pixel_decoder, nn.init
        draw.normal_(pixels.level_embed)
        for projection, _ in pixels.input_projections:
            draw.xavier_uniform_(projection.weight)
            draw.zeros_(projection.bias)
        joining = [sequence[0] for sequence in (*pixels.lateral_convolutions, *pixels.output_convolutions)]
        for convolution in (*joining, pixels.mask_projection):
            draw.kaiming_uniform_(convolution.weight, a=1)
        draw.zeros_(pixels.mask_projection.bias)
        for parameter in (*pixels.encoder.parameters(), *self.transformer.decoder.layers.parameters()):
            if parameter.ndim > 1:
                draw.xavier_normal_(parameter)
        for layer in pixels.encoder.layers:
            self._init_weights(layer.self_attn)
        for layer in self.transformer.decoder.layers:
            attention = layer.self_attn
            draw.zeros_(attention.out_proj.bias)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                # There they are one matrix of three times the height.
                draw.xavier_normal_(projection.weight, gain=0.5**0.5)
                draw.zeros_(projection.bias)

    def forward(self, levels: tuple[Tensor, ...]) -> Predictions:
        """Return each layer's predictions at the finest grid, from levels (B, C_l, h_l, w_l), the finest first."""
        # As in the authors' code: half precision would move the places that are sampled by a good part of a cell.
        with torch.autocast(levels[0].device.type, enabled=False):
            pixels = self.pixel_decoder([level.float() for level in levels])
        queries = self.transformer(pixels.multi_scale_features, pixels.mask_features)
        classes = tuple(self.classify(state.transpose(0, 1)) for state in queries.intermediate_hidden_states)
        return Predictions(classes, tuple(queries.masks_queries_logits))


class Mask2FormerDecoder(nn.Module):
    """The decoder of GKD's experiments, with Mask2Former's settings for semantic segmentation."""

    SETTINGS: ClassVar[dict[str, Any]] = {
        "num_queries": 100,
        "feature_size": 256, "mask_feature_size": 256, "hidden_dim": 256, "num_attention_heads": 8,
        "encoder_layers": 6, "encoder_feedforward_dim": 1024,
        # transformers counts the initial queries as a layer: nine layers.
        "decoder_layers": 10, "dim_feedforward": 2048,
        "dropout": 0.0, "pre_norm": False,
        "class_weight": 2.0, "mask_weight": 5.0, "dice_weight": 5.0, "no_object_weight": 0.1,
        "train_num_points": 12544, "oversample_ratio": 3.0, "importance_sample_ratio": 0.75,
    }  # fmt: skip

    def __init__(self, spec: FeatureSpec, classes: int) -> None:
        super().__init__()
        count = len(spec.channels)
        if count < ATTENDED:
            raise KdbenchError(f"Mask2Former reads at least {ATTENDED} levels, this encoder has {count}")
        self.token_maps = count == len(RESCALE) and len(set(spec.strides)) == 1
        # Strides serve transformers only to count the levels above those attended to, all of which are to join.
        steps = [2**level for level in range(count)]
        config = Mask2FormerConfig(num_labels=classes, feature_strides=steps, common_stride=1, **self.SETTINGS)
        self.network = Network(config, spec.channels)
        self.weights = {
            "class": ("loss_cross_entropy", config.class_weight),
            "mask": ("loss_mask", config.mask_weight),
            "dice": ("loss_dice", config.dice_weight),
        }
        self.criterion = Criterion(config, {})

    def forward(self, features: Features) -> SegOutput:
        """Return logits (B, K, h, w) = log(S + 1e-6) of the last layer on the finest grid, stride 4 for real nets."""
        levels = _pyramid(features.levels) if self.token_maps else features.levels
        predictions: Predictions = self.network(levels)
        last = predictions.classes[-1], predictions.masks[-1]
        return SegOutput(features, (semantic_scores(*last) + FLOOR).log(), predictions, partial(semantic_scores, *last))

    def loss(self, output: SegOutput, label: Tensor) -> dict[str, Tensor]:
        """Return class, mask and dice terms of matched queries, weighted and summed over layers, each matched anew.

        label (B, H, W) becomes one mask a class that is present (MaskFormer, section 3.1). Points are drawn from
        the global generator. Normalised within the process, by its own number of masks.
        """
        predictions: Predictions = output.extra
        # In single precision: costs of half precision tie, and points are float32.
        with torch.autocast(label.device.type, enabled=False):
            layers = self.criterion(
                [masks.float() for masks in predictions.masks],
                [logits.float() for logits in predictions.classes],
                label,
            )
        return {
            name: weight * torch.stack([layer[key] for layer in layers]).sum()
            for name, (key, weight) in self.weights.items()
        }


class Criterion(Mask2FormerLoss):  # type: ignore[misc]
    """transformers' losses of all layers with one wait for the device; its own matching waits for each image and layer.

    Every class gets a mask, an absent one an empty mask, and absent classes are left out once the costs have come.
    """

    def forward(self, masks: Sequence[Tensor], classes: Sequence[Tensor], label: Tensor) -> list[dict[str, Tensor]]:
        """Return each layer's losses, from mask logits (B, Q, h, w), class logits (B, Q, K + 1) and label (B, H, W)."""
        count = self.num_labels
        every = torch.arange(count, device=label.device)
        # Ignored pixels lie in no mask, as in mmseg.
        targets = (label[:, None] == every[:, None, None]).float()
        costs = torch.stack([
            torch.stack([self._costs(*image) for image in zip(*layer, targets, strict=True)])
            for layer in zip(masks, classes, strict=True)
        ])  # fmt: skip
        absent = targets.flatten(2).amax(2) == 0
        pairs, total = _matched(costs.masked_fill(absent[:, None], torch.inf))
        return [
            self.loss_masks(layer_masks, targets, indices, total)
            | self.loss_labels(layer_classes, [every] * len(label), indices)
            for layer_masks, layer_classes, indices in zip(masks, classes, pairs, strict=True)
        ]

    @torch.no_grad()
    def _costs(self, masks: Tensor, classes: Tensor, targets: Tensor) -> Tensor:
        """Return the costs (Q, K) of matching queries with classes, over random points (Mask2Former, section 3.3)."""
        points = torch.rand(1, self.num_points, 2, device=masks.device)
        seen, right = (sample_point(of[None], points, align_corners=False)[0] for of in (masks, targets))
        matcher = self.matcher
        cost: Tensor = (
            matcher.cost_mask * pair_wise_sigmoid_cross_entropy_loss(seen, right)
            - matcher.cost_class * classes.softmax(-1)[:, :-1]
            + matcher.cost_dice * pair_wise_dice_loss(seen, right)
        )
        # As transformers': what is not finite is taken last.
        largest = torch.finfo(cost.dtype).max
        return cost.nan_to_num(nan=largest, posinf=largest, neginf=largest)


def _matched(costs: Tensor) -> tuple[list[list[tuple[Tensor, Tensor]]], int]:
    """Match queries with classes at the least cost; costs (L, B, Q, K) are infinite where a class is absent.

    Returns, for each layer and image, queries (N,) and their classes (N,) on the costs' device, and the number of
    classes present in all images together, at least 1.
    """
    known = costs.cpu().numpy()
    found = []
    for cost in known.reshape(-1, *known.shape[2:]):
        present = np.isfinite(cost[0]).nonzero()[0]
        queries, places = linear_sum_assignment(cost[:, present])
        found.append(np.stack([queries, present[places]]))
    sizes = [pairs.shape[1] for pairs in found]
    together = torch.from_numpy(np.concatenate(found, 1)).to(costs.device, non_blocking=True)
    each = [(pairs[0], pairs[1]) for pairs in torch.split(together, sizes, 1)]
    images = costs.shape[1]
    layers = [each[start : start + images] for start in range(0, len(each), images)]
    return layers, max(1, int(np.isfinite(known[0, :, 0]).sum()))


def semantic_scores(classes: Tensor, masks: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Return scores (B, K, h, w) of class logits (B, Q, K + 1) and mask logits (B, Q, h, w), in single precision.

    S_k = sum over q of softmax(c_q)_k sigmoid(m_q), "no object" dropped (MaskFormer, section 3.4). size: (H, W) that
    the mask logits are brought to before the sigmoid, as its authors and mmseg do: resized scores smear thin masks.
    """
    with torch.autocast(masks.device.type, enabled=False):
        chances, masks = classes.float().softmax(-1)[..., :-1], masks.float()
        if size is not None and size != tuple(masks.shape[-2:]):
            masks = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)
        return torch.einsum("bqk,bqhw->bkhw", chances, masks.sigmoid())


def _pyramid(levels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Resample four maps (B, C, h, w) of one size to 4, 2, 1 and 0.5 times the size, as GKD does for a plain ViT."""
    return tuple(
        level if scale == 1 else F.interpolate(level, scale_factor=scale, mode="bilinear", align_corners=False)
        for level, scale in zip(levels, RESCALE, strict=True)
    )
