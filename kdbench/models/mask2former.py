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

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerLoss,
    Mask2FormerPixelDecoder,
    Mask2FormerPreTrainedModel,
    Mask2FormerTransformerModule,
)

from kdbench.errors import KdbenchError
from kdbench.types import IGNORE, Features, FeatureSpec, SegOutput

ATTENDED = 3
"""How many levels, the coarsest, the two transformers read; finer ones join by convolutions."""
RESCALE = (4.0, 2.0, 1.0, 0.5)
"""What makes a pyramid of four maps of one stride (GKD; a ViT at stride 16 gets strides 4, 8, 16 and 32)."""
FLOOR = 1e-6
"""Added to the scores before the logarithm."""


@dataclass(frozen=True)
class Predictions:
    """What the queries say before the first layer and after each, in this order, for deep supervision.

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
        # Until here the level embedding is uninitialised memory, and sampling places are not yet spread around a cell.
        self.post_init()

    def forward(self, levels: tuple[Tensor, ...]) -> Predictions:
        """Levels (B, C_l, h_l, w_l), the finest first, to what each layer's queries predict at the finest grid."""
        # As in the authors' code: half precision would move the places that are sampled by a good part of a cell.
        with torch.autocast(levels[0].device.type, enabled=False):
            pixels = self.pixel_decoder([level.float() for level in levels])
        queries = self.transformer(pixels.multi_scale_features, pixels.mask_features)
        classes = tuple(self.classify(state.transpose(0, 1)) for state in queries.intermediate_hidden_states)
        return Predictions(classes, tuple(queries.masks_queries_logits))


class Mask2FormerDecoder(nn.Module):
    """The decoder of GKD's experiments, with Mask2Former's settings for semantic segmentation (formula sheet, 26.4)."""

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
        self.criterion = Mask2FormerLoss(config, {})

    def forward(self, features: Features) -> SegOutput:
        """Logits (B, K, h, w) = log(S + 1e-6) of the last layer, on the finest level's grid; stride 4 for real nets."""
        levels = _pyramid(features.levels) if self.token_maps else features.levels
        predictions: Predictions = self.network(levels)
        scores = semantic_scores(predictions.classes[-1], predictions.masks[-1])
        return SegOutput(features, (scores + FLOOR).log(), predictions, scores)

    def loss(self, output: SegOutput, label: Tensor) -> dict[str, Tensor]:
        """Class, mask and dice terms of matched queries, weighted and summed over the layers, each matched anew.

        label (B, H, W) becomes one mask a class that is present (MaskFormer, section 3.1). Points are drawn from
        the global generator. Normalised within the process, by its own number of masks.
        """
        classes, masks = zip(*map(_masks_by_class, label), strict=True)
        predictions: Predictions = output.extra
        # In single precision: costs of half precision tie, and points are float32.
        with torch.autocast(label.device.type, enabled=False):
            layers = [
                self.criterion(mask.float(), logits.float(), list(masks), list(classes))
                for logits, mask in zip(predictions.classes, predictions.masks, strict=True)
            ]
        return {
            name: weight * torch.stack([layer[key] for layer in layers]).sum()
            for name, (key, weight) in self.weights.items()
        }


def semantic_scores(classes: Tensor, masks: Tensor) -> Tensor:
    """Scores (B, K, h, w) of class logits (B, Q, K + 1) and mask logits (B, Q, h, w), in single precision.

    S_k = sum over q of softmax(c_q)_k sigmoid(m_q), "no object" dropped (MaskFormer, section 3.4).
    """
    with torch.autocast(masks.device.type, enabled=False):
        chances = classes.float().softmax(-1)[..., :-1]
        return torch.einsum("bqk,bqhw->bkhw", chances, masks.float().sigmoid())


def _pyramid(levels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Four maps (B, C, h, w) of one size as maps of 4, 2, 1 and 0.5 times the size (formula sheet, 26.3)."""
    return tuple(
        level if scale == 1 else F.interpolate(level, scale_factor=scale, mode="bilinear", align_corners=False)
        for level, scale in zip(levels, RESCALE, strict=True)
    )


def _masks_by_class(label: Tensor) -> tuple[Tensor, Tensor]:
    """The classes (N,) of a label map (H, W) and a mask (N, H, W) of each; ignored pixels lie in none, as in mmseg."""
    present = torch.unique(label)
    classes = present[present != IGNORE]
    return classes, (label == classes[:, None, None]).float()
