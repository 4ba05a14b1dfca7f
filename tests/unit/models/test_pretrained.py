"""Weights in their authors' layouts, from small files that are made here."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdbench.errors import KdbenchError
from kdbench.models import pretrained, zoo
from kdbench.models.pretrained import Pretrained
from kdbench.models.real import build_real
from kdbench.models.zoo import Role

# A real transformer and a real network of convolutions, of a few hundred kilobytes.
VIT, CNN = "timm/test_vit", "timm/test_byobnet"


@pytest.fixture
def vit() -> nn.Module:
    torch.manual_seed(3)
    return timm.create_model("test_vit", num_classes=10)


def loaded(folder: Path, name: str = VIT) -> dict[str, Tensor]:
    return Pretrained(folder).load(name)


def fits(state: Mapping[str, Tensor], body: nn.Module) -> None:
    own = {f"body.{name}": tensor for name, tensor in body.state_dict().items() if not name.startswith("head")}
    assert set(state) == {*own, "mask_token"}
    assert all(torch.equal(state[name], tensor) for name, tensor in own.items())


LAYOUTS = {
    "timm": lambda state: state,
    "nested": lambda state: {"model": state, "optimizer": {}, "epoch": 3},
    "GKD's first stage": lambda state: {
        "model": {f"student.backbone.{k}": v for k, v in state.items()}
        | {"token_head.q.weight": torch.zeros(2), "teacher.backbone.cls_token": torch.zeros(3)}
    },
    "a segmentor": lambda state: {
        "state_dict": {f"backbone.{k}": v for k, v in state.items()} | {"decode_head.conv.weight": torch.zeros(1)}
    },
    "parallel": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_a_transformer(tmp_path: Path, vit: nn.Module, layout: str) -> None:
    torch.save(LAYOUTS[layout](vit.state_dict()), tmp_path / "timm--test_vit.pth")
    fits(loaded(tmp_path), vit)


def test_safetensors_and_a_network_of_convolutions(tmp_path: Path) -> None:
    body = timm.create_model("test_byobnet", num_classes=10)
    save_file(body.state_dict(), tmp_path / "timm--test_byobnet.safetensors")
    fits(loaded(tmp_path, CNN), body)


def test_a_mask_token_is_taken_over_and_starts_at_zero_where_there_is_none(tmp_path: Path, vit: nn.Module) -> None:
    torch.save(vit.state_dict(), tmp_path / "timm--test_vit.pth")
    assert not loaded(tmp_path)["mask_token"].any()
    torch.save({**vit.state_dict(), "mask_token": torch.full((1, 64), 0.5)}, tmp_path / "timm--test_vit.pth")
    assert (loaded(tmp_path)["mask_token"] == 0.5).all()


def test_weights_keep_the_patch_size_and_the_grid_of_their_file(tmp_path: Path, vit: nn.Module) -> None:
    state = vit.state_dict()
    state["patch_embed.proj.weight"] = torch.rand(64, 3, 14, 14)
    state["pos_embed"] = torch.rand(1, 1 + 9 * 9, 64)
    torch.save({f"backbone.{k}": v for k, v in state.items()}, tmp_path / "timm--test_vit.pth")
    read = loaded(tmp_path)
    assert torch.equal(read["body.patch_embed.proj.weight"], state["patch_embed.proj.weight"])
    assert torch.equal(read["body.pos_embed"], state["pos_embed"])


def test_deits_distilled_weights_lose_their_second_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(zoo.ROLES, "tiny", Role("tiny", "local", network="deit_tiny_patch16_224", weights="x"))
    distilled = timm.create_model("deit_tiny_distilled_patch16_224")
    torch.save({"model": distilled.state_dict()}, tmp_path / "tiny.pth")
    state = loaded(tmp_path, "tiny")
    rows = distilled.state_dict()["pos_embed"]
    assert torch.equal(state["body.pos_embed"][0, 0], rows[0, 0])
    assert torch.equal(state["body.pos_embed"][0, 1:], rows[0, 2:])
    build_real(zoo.ROLES["tiny"]).load_state_dict(state)


def test_eva02_as_its_authors_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(zoo.ROLES, "tiny", Role("tiny", "foundation", network="eva02_tiny_patch14_224", weights="x"))
    encoder = build_real(zoo.ROLES["tiny"])
    ours = encoder.body.state_dict()
    renamed = {"fc1_g": "w1", "fc1_x": "w2", "fc2": "w3"}
    official: dict[str, Tensor] = {"mask_token": torch.ones(1, 1, 192), "lm_head.weight": torch.zeros(2, 2)}
    for name, tensor in ours.items():
        for new, old in renamed.items():
            name = name.replace(f"mlp.{new}.", f"mlp.{old}.")
        name = name.replace("mlp.norm.", "mlp.ffn_ln.").replace("attn.norm.", "attn.inner_attn_ln.")
        official[name] = tensor
    torch.save({"model": official}, tmp_path / "tiny.pt")
    state = loaded(tmp_path, "tiny")
    assert (state["mask_token"] == 1).all()
    assert all(torch.equal(state[f"body.{name}"], tensor) for name, tensor in ours.items())


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


@pytest.mark.parametrize("content", [b"", b"not weights at all"])
def test_a_file_that_holds_no_weights_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "timm--test_vit.pth").write_bytes(content)
    with pytest.raises(KdbenchError, match=r"timm--test_vit\.pth cannot be read as weights"):
        loaded(tmp_path)


class Trap:
    """Would run code if it were unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit",))


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    torch.save({"model": Trap()}, tmp_path / "timm--test_vit.pth")
    with pytest.raises(KdbenchError, match="cannot be read as weights"):
        loaded(tmp_path)


def test_without_a_file_and_without_the_hub_it_is_said_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(pretrained.timm.models, "load_state_dict_from_hf", unreachable)
    with pytest.raises(KdbenchError) as caught:
        loaded(tmp_path, "dinov2-s")
    message = str(caught.value)
    assert "timm/vit_small_patch14_dinov2.lvd142m) cannot be had from the hub: no route to host" in message
    assert f"Put one of these into {tmp_path}: dinov2-s.safetensors" in message
    assert message.endswith("dinov2_vits14_pretrain.pth.")


def test_the_key_follows_the_content_of_the_file(tmp_path: Path, vit: nn.Module) -> None:
    role, weights = zoo.find_role(VIT), Pretrained(tmp_path)
    from_hub = weights.key(role)
    torch.save(vit.state_dict(), tmp_path / "timm--test_vit.pth")
    first = weights.key(role)
    torch.save({**vit.state_dict(), "mask_token": torch.ones(64)}, tmp_path / "timm--test_vit.pth")
    assert len({from_hub, first, weights.key(role)}) == 3
    with pytest.raises(KdbenchError, match="is not a folder"):
        Pretrained(tmp_path / "nowhere").key(role)


def test_arguments_beside_the_weights_are_no_obstacle(tmp_path: Path, vit: nn.Module) -> None:
    content = {"model": vit.state_dict(), "args": argparse.Namespace(lr=1e-3)}
    torch.save(content, tmp_path / "timm--test_vit.pth")
    fits(loaded(tmp_path), vit)


def test_a_folder_of_mit_with_missing_weights_is_refused(tmp_path: Path) -> None:
    encoder = build_real(zoo.find_role("mit-b0"))
    encoder.body.network.save_pretrained(tmp_path / "mit-b0")
    state = loaded(tmp_path, "mit-b0")
    encoder.load_state_dict(state)
    file = tmp_path / "mit-b0" / "model.safetensors"
    tensors = load_file(file)
    dropped = sorted(tensors)[0]
    save_file({name: tensor for name, tensor in tensors.items() if name != dropped}, file, {"format": "pt"})
    with pytest.raises(KdbenchError, match=r"mit-b0 does not fit 'mit-b0'\. missing: "):
        loaded(tmp_path, "mit-b0")
