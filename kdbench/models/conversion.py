"""An encoder's weights from their authors' names and geometry."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from kdbench.errors import KdbenchError
from kdbench.models.backbones import Encoder
from kdbench.models.checkpoint import State

DROPPED = (
    "head.", "head_dist.", "fc.", "classifier.", "dist_token", "lm_head.", "decode_head.", "rope.", "neck_mim.",
    "attn_pool.",
)  # fmt: skip
"""What a checkpoint may hold beside the encoder: classifiers, a distillation token, computed tables, pooling."""
LAYER_SCALES = {
    ".ls1.gamma": ".attn.proj", ".ls2.gamma": ".mlp.fc2", ".gamma_1": ".attn.proj", ".gamma_2": ".mlp.fc2"
}  # fmt: skip
"""A block's layer scales by timm's names, and the linear layer before each."""
BODY = "body."
SHOWN = 8


def convert(encoder: Encoder, state: State, what: str) -> State:
    """An encoder's state dict from its authors' names (timm's conversion); at the patch size and grid of the file.

    Raises KdbenchError with the names that are missing or unknown.
    """
    state = _without_distillation_token(dict(state), encoder)
    mask_token = state.get("mask_token")
    body = encoder.body
    _take_geometry(encoder, state)
    rename = getattr(inspect.getmodule(type(body)), "checkpoint_filter_fn", None)
    named = dict(rename(dict(state), body)) if rename is not None else state
    expected = set(body.state_dict())
    for name in [
        n for n in named if n.startswith("fc_norm.") and n.replace("fc_norm", "norm", 1) in expected - set(named)
    ]:
        named[name.replace("fc_norm", "norm", 1)] = named.pop(name)
    _fold_layer_scales(named, expected)
    # Files of before torch 0.4.1, torchvision's first ResNets among them, do not count batches, and nothing reads it.
    counters = {name: tensor for name, tensor in body.state_dict().items() if name.endswith(".num_batches_tracked")}
    named = {**counters, **named}
    missing = sorted(expected - set(named))
    unknown = sorted(n for n in set(named) - expected if not n.startswith(DROPPED) and n != "mask_token")
    shapes = [
        f"{name} {tuple(named[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in body.state_dict().items()
        if name in named and named[name].shape != tensor.shape
    ]
    faults = [
        f"{kind}: {some(names)}"
        for kind, names in (("missing", missing), ("unknown", unknown), ("shapes", shapes))
        if names
    ]
    if faults:
        raise KdbenchError(
            f"{what} does not fit {type(body).__name__}. {'; '.join(faults)}. Is it another model's file?"
        )
    return with_mask_token(encoder, {name: named[name] for name in expected}, mask_token)


def _fold_layer_scales(state: State, expected: set[str]) -> None:
    """Layer scales that the network lacks go into the linear layer before each: gamma (W x + b), as GKD's DINO has."""
    for scale, layer in LAYER_SCALES.items():
        for name in [name for name in state if name.endswith(scale) and name not in expected]:
            linear = f"{name.removesuffix(scale)}{layer}"
            if f"{linear}.weight" not in state:
                continue
            gamma = state.pop(name)
            for part in (f"{linear}.{kind}" for kind in ("weight", "bias") if f"{linear}.{kind}" in state):
                state[part] = gamma.view(-1, *[1] * (state[part].ndim - 1)) * state[part]


def with_mask_token(encoder: Encoder, body: State, mask_token: Tensor | None) -> State:
    """An encoder's state of its body's and a mask token, which is zero where there is none of its width."""
    token = encoder.mask_token.detach().clone()
    # GKD's rule: the file's, where it has one, as DINOv2's and EVA-02's do; else zero, as for DeiT and DINO.
    if mask_token is not None and mask_token.numel() == token.numel():
        token = mask_token.detach().reshape(token.shape)
    return {f"{BODY}{name}": tensor for name, tensor in body.items()} | {"mask_token": token.float()}


def _without_distillation_token(state: State, encoder: Encoder) -> State:
    """DeiT's distilled checkpoints: the second token goes, and with it the second row of the positions."""
    if "dist_token" in state and not hasattr(encoder.body, "dist_token"):
        positions = state["pos_embed"]
        state["pos_embed"] = torch.cat((positions[:, :1], positions[:, 2:]), 1)
    return state


def _take_geometry(encoder: Encoder, state: State) -> None:
    """Brings the network to the file's patch size and grid, so that loading resamples nothing."""
    found = {f"{BODY}{name}": state[name] for name in ("patch_embed.proj.weight", "pos_embed") if name in state}
    registers = state.get("register_tokens")
    if f"{BODY}pos_embed" in found and registers is not None:
        # DINOv2 with registers: its positions have a row for the class token, which timm folds into the token.
        found[f"{BODY}pos_embed"] = found[f"{BODY}pos_embed"][:, 1:]
    encoder.take_geometry(found)


def some(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
