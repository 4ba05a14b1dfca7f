"""Weights in their authors' layouts, from small files that are made here."""

from __future__ import annotations

import argparse
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import eva, register_model, vision_transformer
from torch import Tensor, nn

from kdbench.errors import KdbenchError
from kdbench.models import weights
from kdbench.models.backbones import build_pretrained
from kdbench.models.registry import MODELS, ModelSpec, find_model
from kdbench.models.weights import Model, PretrainedModels

# A real transformer and a real network of convolutions, of a few hundred kilobytes.
VIT, CNN = "timm/test_vit", "timm/test_byobnet"
TINY: dict[str, Any] = {"embed_dim": 64, "depth": 6, "num_heads": 2}


@register_model
def tiny_dinov2_reg(pretrained: bool = False, **more: Any) -> nn.Module:
    """DINOv2 with registers, narrow, for images of 70 pixels."""
    return vision_transformer.vit_small_patch14_reg4_dinov2(**(TINY | {"img_size": 70} | more))


@register_model
def tiny_dinov3(pretrained: bool = False, **more: Any) -> nn.Module:
    """DINOv3, narrow."""
    return eva.vit_small_patch16_dinov3(**(TINY | more))


class HistoryBuffer:
    """As mmengine's: numpy's arrays, and methods that are kept by name."""

    def __init__(self) -> None:
        self._log_history, self._count_history = np.array([0.5, 0.25]), np.array([1, 1])

    def mean(self) -> float:
        """As mmengine's, which its files name through getattr."""
        return float(self._log_history.mean())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "statistics_methods": {"mean": HistoryBuffer.mean}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise AssertionError("a file's object was built")


MMENGINE = "mmengine.logging.history_buffer"


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Writes a checkpoint as if mmengine were installed, which it is not when the file is read."""

    def write(content: Any, name: str = "timm--test_vit.pth") -> Path:
        with pytest.MonkeyPatch.context() as patch:
            module = ModuleType(MMENGINE)
            patch.setattr(module, "HistoryBuffer", HistoryBuffer, raising=False)
            patch.setattr(HistoryBuffer, "__module__", MMENGINE)
            patch.setattr(HistoryBuffer.mean, "__module__", MMENGINE)
            for part in ("mmengine", "mmengine.logging"):
                patch.setitem(sys.modules, part, ModuleType(part))
            patch.setitem(sys.modules, MMENGINE, module)
            torch.save(content, tmp_path / name)
        return tmp_path

    assert MMENGINE not in sys.modules
    return write


@pytest.fixture
def vit() -> nn.Module:
    torch.manual_seed(3)
    return timm.create_model("test_vit", num_classes=10)


def model_in(folder: Path | None, name: str = VIT) -> Model:
    return PretrainedModels(folder).find(find_model(name))


def loaded(folder: Path, name: str = VIT) -> dict[str, Tensor]:
    return model_in(folder, name).load()


def fits(state: Mapping[str, Tensor], body: nn.Module) -> None:
    own = {f"body.{name}": tensor for name, tensor in body.state_dict().items() if not name.startswith("head")}
    assert set(state) == {*own, "mask_token"}
    assert all(torch.equal(state[name], tensor) for name, tensor in own.items())


def test_a_file_from_before_batches_were_counted_fits(tmp_path: Path) -> None:
    """torchvision's published ResNets have no num_batches_tracked."""
    body = timm.create_model("resnet18", num_classes=10)
    state = {name: tensor for name, tensor in body.state_dict().items() if "num_batches_tracked" not in name}
    torch.save(state, tmp_path / "timm--resnet18.pth")
    read = loaded(tmp_path, "timm/resnet18")
    assert all(torch.equal(read[f"body.{n}"], t) for n, t in state.items() if not n.startswith("fc."))
    assert int(read["body.bn1.num_batches_tracked"]) == 0


LAYOUTS = {
    "timm": lambda state: state,
    "GKD's first stage": lambda state: {
        "model": {f"student.backbone.{k}": v for k, v in state.items()}
        | {"token_head.q.weight": torch.zeros(2), "teacher.backbone.cls_token": torch.zeros(3)}
    },
    "parallel": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    "DINO's whole training": lambda state: {
        "student": {f"module.backbone.{k}": torch.zeros_like(v) for k, v in state.items()}
        | {"module.head.mlp.0.weight": torch.zeros(2)},
        "teacher": {f"backbone.{k}": v for k, v in state.items()} | {"head.last_layer.weight_g": torch.zeros(2)},
        "optimizer": {"state": {}, "param_groups": [{"lr": 5e-4}]},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", lr=5e-4),
        "dino_loss": {"center": torch.zeros(1, 3)},
    },
    "mmengine": lambda state: {
        "meta": {"epoch": 1, "cfg": "model = dict()", "palette": np.zeros((2, 3)), "best": np.float64(1)},
        "state_dict": OrderedDict(
            [*((f"backbone.{k}", v) for k, v in state.items()), ("decode_head.conv.weight", torch.zeros(1))]
        ),
        "message_hub": {"log_scalars": OrderedDict(loss=HistoryBuffer()), "runtime_info": OrderedDict(iter=3)},
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_a_transformer(written: Any, vit: nn.Module, layout: str) -> None:
    folder = written(LAYOUTS[layout](vit.state_dict()))
    state = loaded(folder)
    fits(state, vit)
    assert not state["mask_token"].any()
    if layout == "mmengine":
        # Else this layout would test nothing.
        named = torch.serialization.get_unsafe_globals_in_checkpoint(folder / "timm--test_vit.pth")
        assert {f"{MMENGINE}.HistoryBuffer", "builtins.getattr", "numpy.ndarray"} <= set(named)


def scaled_vit() -> nn.Module:
    """With layer scales of no special values, as DINO students have them behind GKD's first stage."""
    torch.manual_seed(5)
    body = timm.create_model("test_vit", num_classes=0, init_values=1.0)
    for name, parameter in body.named_parameters():
        if name.endswith(".gamma"):
            nn.init.normal_(parameter, 1, 0.5)
        if name.endswith(".bias"):
            # Zero at their start, which would hide what is done to them.
            nn.init.normal_(parameter, 0, 0.1)
    return body.eval()


@torch.no_grad()
def test_layer_scales_that_the_network_lacks_go_into_the_layers_before_them(written: Any) -> None:
    body = scaled_vit()
    # What GKD's converter leaves of a DINO student: plain names with a mask token and layer scales.
    read = loaded(written(OrderedDict({**body.state_dict(), "mask_token": torch.full((1, 64), 0.5)})))
    assert (read["mask_token"] == 0.5).all()
    encoder = build_pretrained(find_model(VIT)).eval()
    encoder.load_state_dict(read)
    image = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    found = encoder.body.forward_features(image)
    assert torch.allclose(found, body.forward_features(image), atol=1e-6)
    for parameter in (p for name, p in body.named_parameters() if name.endswith(".gamma")):
        parameter.fill_(1)
    assert not torch.allclose(found, body.forward_features(image), atol=1e-2)


def test_a_layer_scale_without_its_layer_is_refused(written: Any) -> None:
    state = {f"{name}": tensor for name, tensor in scaled_vit().state_dict().items() if "blocks.0.mlp.fc2" not in name}
    with pytest.raises(KdbenchError, match=r"unknown: blocks\.0\.ls2\.gamma"):
        loaded(written(state))


# ---- authors' names of other networks


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Tensor]]:
    """Writes weights for a network of timm as the model `tiny` and returns what is loaded for it."""

    def load(network: str, official: dict[str, Tensor]) -> dict[str, Tensor]:
        monkeypatch.setitem(MODELS, "tiny", ModelSpec("tiny", "foundation", network=network, weights="x"))
        torch.save({"model": official}, tmp_path / "tiny.pth")
        state = loaded(tmp_path, "tiny")
        build_pretrained(MODELS["tiny"]).load_state_dict(state)
        return state

    return load


def renamed(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """A state dict with parts of its names replaced."""
    found = {}
    for name, tensor in state.items():
        for new, old in names.items():
            name = name.replace(new, old)
        found[name] = tensor
    return found


@torch.no_grad()
def test_dinov2_with_registers_as_its_authors_name_it(tiny: Any) -> None:
    torch.manual_seed(4)
    body = timm.create_model("tiny_dinov2_reg", num_classes=0).state_dict()
    # Layer scales that the network has stay.
    body["blocks.0.ls1.gamma"] = torch.full((64,), 3.0)
    official = renamed(body, {"reg_token": "register_tokens"}) | {"mask_token": torch.full((1, 64), 0.5)}
    # A row of positions for the class token, none for the registers.
    row = torch.rand(1, 1, 64)
    official["pos_embed"] = torch.cat((row, official["pos_embed"]), 1)
    official["cls_token"] = official["cls_token"] - row
    state = tiny("tiny_dinov2_reg", official)
    assert (state["mask_token"] == 0.5).all()
    assert all(torch.allclose(state[f"body.{n}"], t, atol=1e-6) for n, t in body.items())


def test_dinov3_as_its_authors_name_it(tiny: Any) -> None:
    body = timm.create_model("tiny_dinov3", num_classes=0).state_dict()
    official = renamed(body, {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"})
    official |= {"mask_token": torch.full((1, 64), 0.5), "rope_embed.periods": torch.ones(8)}
    for block in range(TINY["depth"]):
        # Published with biases that are zero, and a mask that keeps the keys' so.
        official[f"blocks.{block}.attn.qkv.bias"] = official[f"blocks.{block}.attn.qkv.bias_mask"] = torch.zeros(192)
    state = tiny("tiny_dinov3", official)
    assert (state["mask_token"] == 0.5).all()
    assert all(torch.equal(state[f"body.{name}"], tensor) for name, tensor in body.items())


def test_eva02_as_its_authors_name_it(tiny: Any) -> None:
    body = timm.create_model("eva02_tiny_patch14_224", num_classes=0).state_dict()
    names = {
        "mlp.fc1_g.": "mlp.w1.", "mlp.fc1_x.": "mlp.w2.", "mlp.fc2.": "mlp.w3.", "mlp.norm.": "mlp.ffn_ln.",
        "attn.norm.": "attn.inner_attn_ln.",
    }  # fmt: skip
    more = {"mask_token": torch.ones(1, 1, 192), "lm_head.weight": torch.zeros(2, 2)}
    state = tiny("eva02_tiny_patch14_224", renamed(body, names) | more)
    assert (state["mask_token"] == 1).all()
    assert all(torch.equal(state[f"body.{n}"], t) for n, t in body.items() if not n.startswith("fc_norm"))


def test_deits_distilled_weights_lose_their_second_token(tiny: Any) -> None:
    distilled = timm.create_model("deit_tiny_distilled_patch16_224").state_dict()
    state, rows = tiny("deit_tiny_patch16_224", distilled), distilled["pos_embed"]
    assert torch.equal(state["body.pos_embed"][0, 0], rows[0, 0])
    assert torch.equal(state["body.pos_embed"][0, 1:], rows[0, 2:])


def test_safetensors_and_a_network_of_convolutions(tmp_path: Path) -> None:
    body = timm.create_model("test_byobnet", num_classes=10)
    save_file(body.state_dict(), tmp_path / "timm--test_byobnet.safetensors")
    fits(loaded(tmp_path, CNN), body)


def test_a_student_whose_published_mask_token_is_missing_is_noted(tmp_path: Path) -> None:
    without, with_one = {"mask_token": torch.zeros(384)}, {"mask_token": torch.ones(384)}
    note = model_in(tmp_path, "dinov2-s").note(without)
    assert "the mask token of 'dinov2-s' starts at zero: the hub has none" in note
    assert "dinov2_vits14_pretrain.pth, where --weights-dir points" in note
    (tmp_path / "dinov2-s.pth").touch()
    assert f"{tmp_path / 'dinov2-s.pth'} has none" in model_in(tmp_path, "dinov2-s").note(without)
    assert model_in(tmp_path, "dinov2-s").note(with_one) == ""
    # Of DeiT no mask token was ever published.
    assert model_in(tmp_path, "deit-s").note(without) == ""


def test_weights_keep_the_patch_size_and_the_grid_of_their_file(tmp_path: Path, vit: nn.Module) -> None:
    state = vit.state_dict()
    state["patch_embed.proj.weight"] = torch.rand(64, 3, 14, 14)
    state["pos_embed"] = torch.rand(1, 1 + 9 * 9, 64)
    torch.save({f"backbone.{k}": v for k, v in state.items()}, tmp_path / "timm--test_vit.pth")
    read = loaded(tmp_path)
    assert torch.equal(read["body.patch_embed.proj.weight"], state["patch_embed.proj.weight"])
    assert torch.equal(read["body.pos_embed"], state["pos_embed"])


def test_names_that_do_not_fit_are_listed(tmp_path: Path, vit: nn.Module) -> None:
    state = vit.state_dict()
    del state["norm.bias"]
    state["blocks.0.extra"] = torch.zeros(1)
    state["blocks.1.norm1.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "timm--test_vit.pth")
    with pytest.raises(KdbenchError) as caught:
        loaded(tmp_path)
    message = str(caught.value)
    assert f"{tmp_path / 'timm--test_vit.pth'} for 'timm/test_vit' does not fit VisionTransformer" in message
    assert "missing: norm.bias" in message
    assert "unknown: blocks.0.extra" in message
    assert "blocks.1.norm1.weight (3,) instead of (64,)" in message


class Trap:
    """Would run code if it were unpickled."""

    def __init__(self, run: Any, argument: str) -> None:
        self.run, self.argument = run, argument

    def __reduce__(self) -> tuple[Any, ...]:
        return self.run, (self.argument,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": Trap(exec, "raise SystemExit")}, "does not fit VisionTransformer"),
        ({"model": Trap(os.system, "exit")}, "cannot be read as weights"),
        (Trap(exec, "raise SystemExit"), "holds an object, not a state dict"),
        (b"", r"timm--test_vit\.pth cannot be read as weights"),
        (b"not weights at all", r"timm--test_vit\.pth cannot be read as weights"),
    ],
)
def test_what_holds_no_weights_is_refused_and_nothing_in_it_is_run(tmp_path: Path, content: Any, message: str) -> None:
    file = tmp_path / "timm--test_vit.pth"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(KdbenchError, match=message):
        loaded(tmp_path)


def test_beside_the_weights_nothing_is_run_either(tmp_path: Path, vit: nn.Module) -> None:
    torch.save({"model": vit.state_dict(), "hook": Trap(exec, "raise SystemExit")}, tmp_path / "timm--test_vit.pth")
    fits(loaded(tmp_path), vit)


def test_without_a_file_and_without_the_hub_it_is_said_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(weights.timm.models, "load_state_dict_from_hf", unreachable)
    with pytest.raises(KdbenchError) as caught:
        loaded(tmp_path, "dinov2-s")
    message = str(caught.value)
    assert "timm/vit_small_patch14_dinov2.lvd142m) cannot be had from the hub: no route to host" in message
    assert f"Put one of these into {tmp_path}: dinov2-s.safetensors" in message
    assert message.endswith("dinov2_vits14_pretrain.pth.")


def test_the_key_follows_the_content_of_the_file(tmp_path: Path, vit: nn.Module) -> None:
    model = model_in(tmp_path)
    from_hub = model.key()
    assert model.weights() == f"hub-{find_model(VIT).weights}"
    torch.save(vit.state_dict(), tmp_path / "timm--test_vit.pth")
    first = model.key()
    torch.save({**vit.state_dict(), "mask_token": torch.ones(64)}, tmp_path / "timm--test_vit.pth")
    assert len({from_hub, first, model.key()}) == 3
    assert model.weights().startswith("file-")
    assert model.weights() in model.key()
    with pytest.raises(KdbenchError, match="is not a folder"):
        model_in(tmp_path / "nowhere").key()


def test_a_folder_of_mit_with_missing_weights_is_refused(tmp_path: Path) -> None:
    encoder = build_pretrained(find_model("mit-b0"))
    encoder.body.network.save_pretrained(tmp_path / "mit-b0")
    state = loaded(tmp_path, "mit-b0")
    encoder.load_state_dict(state)
    file = tmp_path / "mit-b0" / "model.safetensors"
    tensors = load_file(file)
    dropped = sorted(tensors)[0]
    save_file({name: tensor for name, tensor in tensors.items() if name != dropped}, file, {"format": "pt"})
    with pytest.raises(KdbenchError, match=r"mit-b0 does not fit 'mit-b0'\. missing: "):
        loaded(tmp_path, "mit-b0")


def test_weights_that_timm_does_not_publish_are_named_with_the_nearest() -> None:
    with pytest.raises(KdbenchError, match=r"weights 'a1_in1l' of timm's 'resnet18'\. Did you mean 'a1_in1k'"):
        model_in(None, "timm/resnet18.a1_in1l").key()


def no_route(repository: str, name: str) -> bool:
    raise OSError("no route to host")


def test_the_origin_of_weights_is_a_file_the_hub_or_nowhere(
    tmp_path: Path, vit: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "file_exists", lambda repository, name: "dinov2" in repository)
    # ViT-L of DINOv2 as timm 1.0's registry has it, and SegFormer's encoder.
    hub = "the hub: timm/vit_large_patch14_dinov2.lvd142m"
    assert model_in(tmp_path, "dinov2-l").origin() == f"{hub} (which has it)"
    assert model_in(tmp_path, "mit-b2").origin() == "the hub: nvidia/mit-b2 (MISSING there)"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, name: f"/cache/{name}")
    assert model_in(tmp_path, "dinov2-l").origin() == f"{hub} (on this disk already)"
    # What the cache knows to be missing is no file there.
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, name: object())
    monkeypatch.setattr(huggingface_hub, "file_exists", no_route)
    assert model_in(tmp_path, "dinov2-l").origin() == f"{hub} (not checked: no route to host)"
    torch.save(vit.state_dict(), tmp_path / "timm--test_vit.pth")
    assert model_in(tmp_path).origin() == str(tmp_path / "timm--test_vit.pth")
    unpublished = model_in(tmp_path, "timm/botnet50ts_256").origin()
    assert unpublished.startswith(f"MISSING: Put one of these into {tmp_path}: timm--botnet50ts_256.safetensors")
