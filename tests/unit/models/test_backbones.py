"""Encoders: shapes as announced, the final map after its norm, masks that hide, other patch sizes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor

from kdbench.errors import KdbenchError
from kdbench.models import backbones
from kdbench.models.backbones import (
    Encoder,
    PyramidEncoder,
    SamEncoder,
    TokenEncoder,
    build_pretrained,
    build_toy,
)
from kdbench.models.geometry import Geometry
from kdbench.models.registry import MODELS, TOY_MODELS, ModelSpec, find_model
from kdbench.models.segmentor import seeded
from kdbench.types import Features

HEIGHT, WIDTH = 32, 64
# Of the token networks one of each kind and depth; the others differ in width alone.
TOKENS = ["dinov2-s", "dinov2-b", "eva02-s", "deit-s"]
PYRAMIDS = [name for name, spec in MODELS.items() if spec.kind in ("resnet", "pvt")]
ONE_OF_EACH_KIND = ["dinov2-s", "eva02-s", "deit-s", "resnet18", "resnet50", "mit-b0"]


def models(names: list[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("encoder", names, indirect=True)


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def tensors(features: Features) -> list[Tensor]:
    return [*features.levels, features.final, features.pooled, *features.blocks.values()]


def same(first: Features, second: Features, image: int | slice = slice(None)) -> bool:
    """Return whether all outputs are equal, of one image or of all."""
    pairs = zip(tensors(first), tensors(second), strict=True)
    return all(torch.allclose(a[image], b[image], atol=1e-5) for a, b in pairs)


def normalised(image: Tensor) -> Tensor:
    """As ImageNet's recipe writes it: per channel (x - mean) / std."""
    channels = [(image[:, c] - IMAGENET_DEFAULT_MEAN[c]) / IMAGENET_DEFAULT_STD[c] for c in range(3)]
    return torch.stack(channels, 1)


def grid_of(encoder: Encoder) -> tuple[int, int]:
    return HEIGHT // encoder.spec.final_stride, WIDTH // encoder.spec.final_stride


@models(list(TOY_MODELS))
@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (48, 80)])
def test_features_are_as_the_spec_says_at_any_size(
    encoder: Encoder, size: tuple[int, int], request: pytest.FixtureRequest, images
) -> None:
    kind, spec = MODELS[request.node.callspec.params["encoder"]].kind, encoder.spec
    strides = {"vit": (8, 8, 8, 8), "eva": (8, 8, 8, 8), "resnet": (4, 8, 8, 8), "pvt": (4, 8, 16)}
    assert (spec.strides, spec.final_stride) == (strides[kind], strides[kind][-1])
    assert (spec.convolutional, spec.batch_norms) == (kind == "resnet", kind == "resnet")
    assert spec.class_token == (kind in ("vit", "eva"))
    features = encoder(images(2, *size))
    for level, channels, stride in zip(features.levels, spec.channels, spec.strides, strict=True):
        assert level.shape == (2, channels, size[0] // stride, size[1] // stride)
    last = size[0] // spec.final_stride, size[1] // spec.final_stride
    assert features.final.shape == (2, spec.final_channels, *last)
    assert features.pooled.shape == (2, spec.final_channels)
    assert torch.allclose(features.pooled, features.final.mean((2, 3)), atol=1e-6) == (not spec.class_token)
    assert not {"mean", "std"} & set(encoder.state_dict())


@models(ONE_OF_EACH_KIND)
def test_blocks_are_counted_from_either_end_and_are_as_wide_as_announced(encoder: Encoder, images) -> None:
    count = len(encoder.spec.blocks)
    asked = [*range(-1, -count - 1, -1), *range(count)]
    blocks = encoder(images(2, HEIGHT, WIDTH), blocks=asked).blocks
    assert list(blocks) == asked
    assert tuple(blocks[number].shape[1] for number in range(count)) == encoder.spec.blocks
    assert all(torch.equal(blocks[number - count], blocks[number]) for number in range(count))
    # The last level is the last block.
    assert torch.equal(blocks[-1], encoder(images(2, HEIGHT, WIDTH)).levels[-1])
    assert not any(torch.equal(blocks[number], blocks[-1]) for number in range(count - 1))


@models(["dinov2-b", "resnet50"])
@pytest.mark.parametrize("beyond", [0, -1])
def test_a_block_beyond_either_end_is_refused(encoder: Encoder, beyond: int, images) -> None:
    count = len(encoder.spec.blocks)
    wrong = beyond - count if beyond < 0 else count
    message = rf"block {wrong} is not among the {count} blocks of \w+\. Ask for 0 to {count - 1}, .* -1 to -{count}\."
    with pytest.raises(KdbenchError, match=message):
        encoder(images(1, HEIGHT, WIDTH), blocks=(0, wrong))


@models(TOKENS)
def test_final_and_pooled_are_the_tokens_after_the_last_norm(encoder: TokenEncoder, images) -> None:
    image = images(2, HEIGHT, WIDTH)
    features, expected = encoder(image), encoder.body.forward_features(normalised(image))
    assert torch.allclose(features.pooled, expected[:, 0], atol=1e-5)
    for y in range(HEIGHT // 8):
        for x in range(WIDTH // 8):
            assert torch.allclose(features.final[:, :, y, x], expected[:, 1 + y * (WIDTH // 8) + x], atol=1e-5)
    # A LayerNorm at its start: each token has mean 0 and variance 1; the levels before it do not.
    assert torch.allclose(features.final.var(1, correction=0), torch.ones(2, 4, 8), atol=1e-2)
    assert not torch.allclose(features.levels[-1], features.final, atol=1e-2)


@models(TOKENS)
def test_levels_are_the_blocks_at_the_papers_fractions_of_the_depth(encoder: TokenEncoder, images) -> None:
    depth = len(encoder.body.blocks)
    seen: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, out: seen.append(out)) for block in encoder.body.blocks]
    features = encoder(images(1, HEIGHT, WIDTH), blocks=range(depth))
    for hook in hooks:
        hook.remove()
    maps = [out[:, 1:].transpose(1, 2).unflatten(2, (4, 8)) for out in seen]
    assert all(torch.equal(features.blocks[index], maps[index]) for index in range(depth))
    # Blocks 3, 5, 7, 11 of 12 and 7, 11, 15, 23 of 24, so 1, 2, 3, 5 of 6 and 1, 3, 4, 7 of 8.
    taps = {6: (1, 2, 3, 5), 8: (1, 3, 4, 7)}[depth]
    assert all(torch.equal(level, maps[tap]) for level, tap in zip(features.levels, taps, strict=True))


@pytest.mark.parametrize(("depth", "taps"), [(12, (3, 5, 7, 11)), (24, (7, 11, 15, 23))])
def test_taps_of_the_papers_depths(depth: int, taps: tuple[int, ...]) -> None:
    small = {**MODELS["deit-s"].toy, "depth": depth, "embed_dim": 32, "num_heads": 1}
    assert build_toy(ModelSpec("any", "local", "vit", small)).taps == taps


@models(PYRAMIDS)
def test_a_pyramids_final_map_is_its_last_level(encoder: PyramidEncoder, images) -> None:
    image = images(2, HEIGHT, WIDTH)
    features = encoder(image)
    assert torch.equal(features.final, features.levels[-1])
    assert torch.allclose(features.final, encoder.body.forward_features(normalised(image)), atol=1e-5)


def cut(map_: Tensor, size: tuple[int, int], patch: int) -> np.ndarray:
    """A map (B, C, h, w) read at the middles of h x w cells that divide an image, each axis linear between patches."""

    def along(values: np.ndarray, side: int) -> np.ndarray:
        cells = len(values)
        return np.interp((np.arange(cells) + 0.5) * side / cells, (np.arange(cells) + 0.5) * patch, values)

    rows = np.apply_along_axis(along, 2, map_.double().numpy(), size[0])
    return np.apply_along_axis(along, 3, rows, size[1])


@models(TOKENS)
@pytest.mark.parametrize("size", [(29, 64), (32, 59), (27, 57)])
def test_an_image_that_patches_do_not_divide_is_padded_and_its_maps_are_cut(
    encoder: TokenEncoder, size: tuple[int, int], images
) -> None:
    image = images(2, *size)
    padded = torch.tensor(IMAGENET_DEFAULT_MEAN).view(1, 3, 1, 1).repeat(2, 1, HEIGHT, WIDTH)
    padded[..., : size[0], : size[1]] = image
    whole, found = encoder(padded, blocks=(0,)), encoder(image, blocks=(0,))
    maps = (*whole.levels, whole.final, whole.blocks[0]), (*found.levels, found.final, found.blocks[0])
    for before, after in zip(*maps, strict=True):
        assert np.allclose(after.numpy(), cut(before, size, 8), atol=1e-4)
        assert not torch.allclose(after, before, atol=1e-2)
    assert torch.allclose(found.pooled, whole.pooled, atol=1e-5)


@models(TOKENS)
@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (64, 32)])
def test_pixels_of_hidden_patches_do_not_reach_any_output(encoder: TokenEncoder, size: tuple[int, int], images) -> None:
    mask = torch.zeros(2, size[0] // 8, size[1] // 8, dtype=torch.bool)
    mask[0, 1, 2:6] = mask[1, :, 3] = True
    image, other = images(2, *size), images(2, *size, seed=1)
    pixels = mask.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    repainted = torch.where(pixels, other, image)
    assert same(encoder(image, mask, (0, 3)), encoder(repainted, mask, (0, 3)))
    assert not same(encoder(image, None, (0, 3)), encoder(repainted, None, (0, 3)))


@models(TOKENS)
def test_hidden_patches_keep_their_position(encoder: TokenEncoder, images) -> None:
    # The mask token stands in before the position embedding is added; all alike, attention could not tell them apart.
    final = encoder(images(1, HEIGHT, WIDTH), torch.ones(1, 4, 8, dtype=torch.bool)).final
    tokens = final.flatten(2)[0].T
    assert torch.pdist(tokens).min() > 1e-2


@models(ONE_OF_EACH_KIND)
def test_a_mask_changes_its_own_image_alone_and_an_empty_one_nothing(encoder: Encoder, images) -> None:
    image, mask = images(3, HEIGHT, WIDTH), torch.zeros(3, *grid_of(encoder), dtype=torch.bool)
    plain = encoder(image)
    assert all(torch.equal(a, b) for a, b in zip(tensors(plain), tensors(encoder(image, mask)), strict=True))
    mask[1] = True
    masked = encoder(image, mask)
    assert [same(plain, masked, at) for at in range(3)] == [True, False, True]
    # No mask stays behind for the next call.
    assert same(plain, encoder(image))


@models(PYRAMIDS)
@pytest.mark.parametrize("at", [(0, 0), (3, 7)])
def test_a_pyramids_mask_hides_the_stems_cells_under_it(encoder: PyramidEncoder, at: tuple[int, int], images) -> None:
    # A stem of stride 4 under a mask of stride 8: 2 x 2 cells a position, replaced by the mask token.
    mask = torch.zeros(1, 4, 8, dtype=torch.bool)
    mask[0, at[0], at[1]] = True
    stem = encoder.body.maxpool if hasattr(encoder.body, "maxpool") else encoder.body.patch_embed
    seen: list[Tensor] = []
    hook = stem.register_forward_hook(lambda _, __, out: seen.append(out))
    encoder(images(1, HEIGHT, WIDTH))
    encoder(images(1, HEIGHT, WIDTH), mask)
    hook.remove()
    plain, masked = (out if out.shape[1:3] == (8, 16) else out.movedim(1, -1) for out in seen)
    hidden = torch.zeros(1, 8, 16, dtype=torch.bool)
    hidden[0, 2 * at[0] : 2 * at[0] + 2, 2 * at[1] : 2 * at[1] + 2] = True
    assert torch.equal(masked[hidden], encoder.mask_token.expand(4, -1))
    assert torch.equal(masked[~hidden], plain[~hidden])


@models(ONE_OF_EACH_KIND)
def test_the_mask_token_learns(encoder: Encoder, images) -> None:
    mask = torch.zeros(1, *grid_of(encoder), dtype=torch.bool)
    mask[0, 0] = True
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(
            encoder(images(1, HEIGHT, WIDTH), mask).levels[-1].square().sum(), encoder.mask_token
        )
    assert gradient.abs().sum() > 0


# ---- real networks

SMALL = ["timm/test_vit", "timm/test_convnext", "timm/test_byobnet", "timm/mobilenetv3_small_050", "mit-b0", "resnet18"]
LARGE = ["dinov2-s", "dinov2-s-reg", "dinov3-s", "eva02-s", "clip-b", "sam-b", "deit-s", "dino-s", "resnet50",
         "convnext-t", "mobilenetv3-l", "mit-b2"]  # fmt: skip


def built(name: str) -> Encoder:
    return seeded(lambda: build_pretrained(find_model(name)), "test", name).eval()


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
@torch.no_grad()
def test_shapes_are_as_announced_and_a_mask_hides_what_it_covers(name: str) -> None:
    encoder = built(name)
    encoder.adapt(Geometry(16, (64, 96), "bicubic"))
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    spec = encoder.spec
    features = encoder(image, blocks=range(-len(spec.blocks), 0))
    assert tuple(block.shape[1] for block in features.blocks.values()) == spec.blocks
    for level, channels, stride in zip(features.levels, spec.channels, spec.strides, strict=True):
        assert level.shape == (1, channels, 64 // stride, 96 // stride)
    assert features.final.shape == (1, spec.final_channels, 64 // spec.final_stride, 96 // spec.final_stride)
    assert features.pooled.shape == (1, spec.final_channels)
    # With all of the image hidden another image gives the same features.
    hidden = torch.ones(1, 4, 6, dtype=torch.bool)
    assert torch.equal(encoder(image, hidden).final, encoder(1 - image, hidden).final)
    assert not torch.equal(encoder(image, hidden).final, features.final)


@pytest.mark.parametrize(
    ("name", "depends"),
    [("mit-b0", False), ("timm/test_convnext", False), ("timm/test_vit", False), ("resnet18", True),
     ("timm/test_byobnet", True), ("timm/mobilenetv3_small_050", True)],
)  # fmt: skip
@torch.no_grad()
def test_batch_norms_are_told_by_what_they_do(name: str, depends: bool) -> None:
    encoder = built(name).train()
    for module in encoder.modules():
        # MiT drops paths at random while it trains.
        module.train("Drop" not in type(module).__name__)
    encoder.adapt(Geometry(16, (64, 96), "bicubic"))
    first, second = torch.rand(2, 2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    beside, alone = encoder(torch.cat((first, second))).final[:2], encoder(first).final
    assert encoder.spec.batch_norms == depends
    assert torch.allclose(beside, alone, atol=1e-4) == (not depends)


@torch.no_grad()
def test_another_patch_size_and_back_through_the_weights() -> None:
    encoder = built("timm/test_vit")
    native = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    encoder.adapt(Geometry(14, (112, 112), "bicubic"))
    assert encoder.spec.strides == (14,) * 4
    assert encoder(torch.rand(1, 3, 112, 112)).final.shape == (1, 64, 8, 8)
    # What a stage at another patch size left behind is loaded as it is, and so are the first weights again.
    adapted = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    other = built("timm/test_vit")
    other.load_state_dict(adapted)
    assert all(torch.equal(adapted[name], tensor) for name, tensor in other.state_dict().items())
    other.load_state_dict(native)
    assert all(torch.equal(native[name], tensor) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet5", r"unknown network of timm 'resnet5'\. Did you mean 'resnet50'.* These are the nearest"),
        ("timm/resnet18.nosuchtag", r"unknown weights 'nosuchtag' of timm's 'resnet18'\..*Known: .*a1_in1k"),
        ("timm/swin_tiny_patch4_window7_224", r"no maps of images of 64 x 96 pixels \(.*takes images of any size"),
    ],
)
def test_what_cannot_be_built_is_an_error_of_one_paragraph(name: str, message: str) -> None:
    with pytest.raises(KdbenchError, match=message) as error:
        build_pretrained(find_model(name))
    assert len(str(error.value)) < 1500


@torch.no_grad()
def test_sams_encoder_pads_an_image_that_its_patches_do_not_divide() -> None:
    body = VisionTransformerSAM(
        img_size=64, embed_dim=32, depth=6, num_heads=2, num_classes=0, neck_chans=24, window_size=2,
        global_attn_indexes=(5,),
    )  # fmt: skip
    encoder = seeded(lambda: SamEncoder(body), "test").eval()
    picture = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    image = picture[..., :57, :83]
    whole = encoder.mean.expand(1, 3, 64, 96).clone()
    whole[..., :57, :83] = image
    found, expected = encoder(image, blocks=(-2,)), encoder(whole, blocks=(4,))
    assert found.final.shape == expected.final.shape == (1, 24, 4, 6)
    assert encoder.spec.blocks == (32,) * 6
    assert torch.equal(found.blocks[-2], backbones.cut(expected.blocks[4], (57, 83), 16))
    assert torch.equal(found.final, backbones.cut(expected.final, (57, 83), 16))
