"""Every role's encoder: shapes as announced, the final map after its norm, and masks that hide."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from kdbench.errors import KdbenchError
from kdbench.models import backbones
from kdbench.models.backbones import Encoder, PyramidEncoder, TokenEncoder, build_toy
from kdbench.models.registry import MODELS, TOY_MODELS
from kdbench.models.segmentor import seeded
from kdbench.types import Features

HEIGHT, WIDTH = 32, 64
# Of the token networks one of each kind and depth; the others differ in width alone.
TOKENS = ["dinov2-s", "dinov2-b", "eva02-s", "deit-s"]
PYRAMIDS = [name for name, role in MODELS.items() if role.kind in ("resnet", "pvt")]
ONE_OF_EACH_KIND = ["dinov2-s", "eva02-s", "deit-s", "resnet18", "resnet50", "mit-b0"]


def roles(names: list[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("encoder", names, indirect=True)


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def tensors(features: Features) -> list[Tensor]:
    return [*features.levels, features.final, features.pooled, *features.blocks.values()]


def same(first: Features, second: Features, image: int | None = None) -> bool:
    """Whether all outputs are equal, of one image or of all."""
    at = slice(None) if image is None else slice(image, image + 1)
    return all(torch.allclose(a[at], b[at], atol=1e-5) for a, b in zip(tensors(first), tensors(second), strict=True))


def normalised(image: Tensor) -> Tensor:
    """As ImageNet's recipe writes it: per channel (x - mean) / std."""
    channels = [(image[:, c] - IMAGENET_DEFAULT_MEAN[c]) / IMAGENET_DEFAULT_STD[c] for c in range(3)]
    return torch.stack(channels, 1)


def grid_of(encoder: Encoder) -> tuple[int, int]:
    return HEIGHT // encoder.spec.final_stride, WIDTH // encoder.spec.final_stride


@roles(list(TOY_MODELS))
def test_features_have_the_announced_shapes(encoder: Encoder, images) -> None:
    spec, features = encoder.spec, encoder(images(2, HEIGHT, WIDTH), blocks=(0, 1))
    assert len(features.levels) == len(spec.channels) == len(spec.strides)
    for level, channels, stride in zip(features.levels, spec.channels, spec.strides, strict=True):
        assert level.shape == (2, channels, HEIGHT // stride, WIDTH // stride)
    assert features.final.shape == (2, spec.final_channels, *grid_of(encoder))
    assert features.pooled.shape == (2, spec.final_channels)
    assert list(features.blocks) == [0, 1]
    assert all(block.ndim == 4 and len(block) == 2 for block in features.blocks.values())


@roles(ONE_OF_EACH_KIND)
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


@roles(["dinov2-b", "resnet50", "mit-b0"])
@pytest.mark.parametrize("beyond", [0, -1])
def test_a_block_beyond_either_end_is_refused(encoder: Encoder, beyond: int, images) -> None:
    count = len(encoder.spec.blocks)
    wrong = beyond - count if beyond < 0 else count
    message = rf"block {wrong} is not among the {count} blocks of \w+\. Ask for 0 to {count - 1}, .* -1 to -{count}\."
    with pytest.raises(KdbenchError, match=message):
        encoder(images(1, HEIGHT, WIDTH), blocks=(0, wrong))


@roles(list(TOY_MODELS))
def test_small_images_keep_a_grid_to_distil(encoder: Encoder, request: pytest.FixtureRequest) -> None:
    kind = MODELS[request.node.callspec.params["encoder"]].kind
    strides = {"vit": (8, 8, 8, 8), "eva": (8, 8, 8, 8), "resnet": (4, 8, 8, 8), "pvt": (4, 8, 16)}
    assert encoder.spec.strides == strides[kind]
    assert encoder.spec.final_stride == strides[kind][-1]


@roles(list(TOY_MODELS))
def test_the_class_token_flag_is_set_for_token_networks_alone(encoder: Encoder, images) -> None:
    features = encoder(images(2, HEIGHT, WIDTH))
    mean = features.final.mean((2, 3))
    assert encoder.spec.class_token == isinstance(encoder, TokenEncoder)
    assert torch.allclose(features.pooled, mean, atol=1e-6) == (not encoder.spec.class_token)


@roles(list(TOY_MODELS))
def test_residual_networks_alone_are_convolutional_and_have_batch_norms(
    encoder: Encoder, request: pytest.FixtureRequest
) -> None:
    residual = request.node.callspec.params["encoder"].startswith("resnet")
    assert (encoder.spec.convolutional, encoder.spec.batch_norms) == (residual, residual)


@roles(TOKENS)
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


@roles(TOKENS)
def test_levels_are_the_blocks_at_the_papers_fractions_of_the_depth(encoder: TokenEncoder, images) -> None:
    depth = len(encoder.body.blocks)
    seen: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, out: seen.append(out)) for block in encoder.body.blocks]
    features = encoder(images(1, HEIGHT, WIDTH), blocks=range(depth))
    for hook in hooks:
        hook.remove()
    maps = [out[:, 1:].transpose(1, 2).unflatten(2, (4, 8)) for out in seen]
    assert all(torch.equal(features.blocks[index], maps[index]) for index in range(depth))
    last_two = encoder(images(1, HEIGHT, WIDTH), blocks=(-2, -1)).blocks
    assert torch.equal(last_two[-2], maps[-2])
    assert torch.equal(last_two[-1], maps[-1])
    # Blocks 3, 5, 7, 11 of 12 and 7, 11, 15, 23 of 24, so 1, 2, 3, 5 of 6 and 1, 3, 4, 7 of 8.
    taps = {6: (1, 2, 3, 5), 8: (1, 3, 4, 7)}[depth]
    assert all(torch.equal(level, maps[tap]) for level, tap in zip(features.levels, taps, strict=True))


@pytest.mark.parametrize(("depth", "taps"), [(12, (3, 5, 7, 11)), (24, (7, 11, 15, 23))])
def test_taps_of_the_papers_depths(depth: int, taps: tuple[int, ...]) -> None:
    role = MODELS["deit-s"]
    small = {**role.toy, "depth": depth, "embed_dim": 32, "num_heads": 1}
    assert build_toy(type(role)("any", "local", "vit", small)).taps == taps


@roles(PYRAMIDS)
def test_a_pyramids_final_map_is_its_last_level(encoder: PyramidEncoder, images) -> None:
    image = images(2, HEIGHT, WIDTH)
    features = encoder(image)
    assert torch.equal(features.final, features.levels[-1])
    assert torch.allclose(features.final, encoder.body.forward_features(normalised(image)), atol=1e-5)


@roles(ONE_OF_EACH_KIND)
@pytest.mark.parametrize("size", [(64, 32), (48, 80)])
def test_other_image_sizes_than_the_one_it_was_built_for(encoder: Encoder, size: tuple[int, int], images) -> None:
    features = encoder(images(1, *size))
    for level, stride in zip(features.levels, encoder.spec.strides, strict=True):
        assert level.shape[-2:] == (size[0] // stride, size[1] // stride)
    assert all(torch.isfinite(tensor).all() for tensor in tensors(features))


def cut(map_: Tensor, size: tuple[int, int], patch: int) -> np.ndarray:
    """A map (B, C, h, w) read at the middles of h x w cells that divide an image, each axis linear between patches."""

    def along(values: np.ndarray, side: int) -> np.ndarray:
        cells = len(values)
        return np.interp((np.arange(cells) + 0.5) * side / cells, (np.arange(cells) + 0.5) * patch, values)

    rows = np.apply_along_axis(along, 2, map_.double().numpy(), size[0])
    return np.apply_along_axis(along, 3, rows, size[1])


@roles(TOKENS)
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


@pytest.mark.parametrize(("size", "patch"), [((410, 512), 16), ((100, 17), 16), ((512, 512), 16), ((31, 9), 8)])
def test_the_cells_of_a_cut_map_divide_the_image_evenly(size: tuple[int, int], patch: int) -> None:
    """A map that tells where its patches are, in pixels, tells afterwards where the cells are."""
    grid = tuple(-(-side // patch) for side in size)
    places = [(torch.arange(cells, dtype=torch.float64) + 0.5) * patch for cells in grid]
    found = backbones.cut(torch.stack(torch.meshgrid(*places, indexing="ij"))[None], size, patch)[0]
    rows, columns = ((np.arange(cells) + 0.5) * side / cells for cells, side in zip(grid, size, strict=True))
    # Before the middle of the first patch a map knows of nothing, and gives that.
    assert np.allclose(found[0].numpy(), np.maximum(rows, patch / 2)[:, None].repeat(grid[1], 1))
    assert np.allclose(found[1].numpy(), np.maximum(columns, patch / 2)[None].repeat(grid[0], 0))


@roles(TOKENS)
def test_pixels_of_hidden_patches_do_not_reach_any_output(encoder: TokenEncoder, images) -> None:
    mask = torch.zeros(2, 4, 8, dtype=torch.bool)
    mask[0, 1, 2:6] = mask[1, :, 7] = True
    image, other = images(2, HEIGHT, WIDTH), images(2, HEIGHT, WIDTH, seed=1)
    pixels = mask.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    repainted = torch.where(pixels, other, image)
    assert same(encoder(image, mask, (0, 3)), encoder(repainted, mask, (0, 3)))
    assert not same(encoder(image, None, (0, 3)), encoder(repainted, None, (0, 3)))


@roles(TOKENS)
def test_hidden_patches_keep_their_position(encoder: TokenEncoder, images) -> None:
    # The mask token stands in before the position embedding is added; all alike, attention could not tell them apart.
    final = encoder(images(1, HEIGHT, WIDTH), torch.ones(1, 4, 8, dtype=torch.bool)).final
    tokens = final.flatten(2)[0].T
    assert torch.pdist(tokens).min() > 1e-2


@roles(TOKENS)
def test_masks_are_on_the_grid_of_the_image_at_hand(encoder: TokenEncoder, images) -> None:
    mask = torch.zeros(1, 8, 4, dtype=torch.bool)
    mask[0, 6, 1] = True
    image = images(1, 64, 32)
    repainted = image.clone()
    repainted[:, :, 48:56, 8:16] = 0
    assert same(encoder(image, mask), encoder(repainted, mask))


@roles(ONE_OF_EACH_KIND)
def test_a_mask_changes_the_output_and_an_empty_one_does_not(encoder: Encoder, images) -> None:
    image, mask = images(2, HEIGHT, WIDTH), torch.zeros(2, *grid_of(encoder), dtype=torch.bool)
    plain = encoder(image)
    assert all(torch.equal(a, b) for a, b in zip(tensors(plain), tensors(encoder(image, mask)), strict=True))
    mask[:, 0, 1] = True
    assert not same(plain, encoder(image, mask))
    # No mask stays behind for the next call.
    assert same(plain, encoder(image))


@roles(ONE_OF_EACH_KIND)
def test_a_mask_hides_its_own_image_alone(encoder: Encoder, images) -> None:
    image, mask = images(3, HEIGHT, WIDTH), torch.zeros(3, *grid_of(encoder), dtype=torch.bool)
    mask[1] = True
    plain, masked = encoder(image), encoder(image, mask)
    assert [same(plain, masked, at) for at in range(3)] == [True, False, True]


@roles(PYRAMIDS)
def test_a_fully_hidden_image_shows_nothing_of_its_pixels(encoder: PyramidEncoder, images) -> None:
    mask = torch.ones(1, *grid_of(encoder), dtype=torch.bool)
    first, second = (encoder(images(1, HEIGHT, WIDTH, seed), mask) for seed in (0, 1))
    assert same(first, second)


@roles(PYRAMIDS)
@pytest.mark.parametrize("at", [(0, 0), (1, 2), (3, 7)])
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


@roles(ONE_OF_EACH_KIND)
def test_the_mask_token_learns(encoder: Encoder, images) -> None:
    mask = torch.zeros(1, *grid_of(encoder), dtype=torch.bool)
    mask[0, 0] = True
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(
            encoder(images(1, HEIGHT, WIDTH), mask).levels[-1].square().sum(), encoder.mask_token
        )
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_the_mask_token_starts_at_zero(name: str) -> None:
    assert not build_toy(MODELS[name]).mask_token.any()


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_seeded_builds_are_equal_and_leave_the_global_generator_alone(name: str) -> None:
    def build(purpose: str) -> dict[str, Tensor]:
        return seeded(lambda: build_toy(MODELS[name]), purpose).state_dict()

    state = torch.get_rng_state()
    first, again, other = build("one"), build("one"), build("another")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_normalisation_is_no_part_of_the_weights() -> None:
    state = build_toy(MODELS["deit-s"]).state_dict()
    assert not {"mean", "std"} & set(state)
