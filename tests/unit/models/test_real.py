"""Real networks as encoders: shapes as announced, masks that hide, other patch sizes."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_sam import VisionTransformerSAM

from kdbench.errors import KdbenchError
from kdbench.models.backbones import Encoder, SamEncoder, TokenEncoder, build_pretrained, build_toy, cut
from kdbench.models.geometry import Geometry
from kdbench.models.registry import MODELS, find_model
from kdbench.models.segmentor import seeded

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


def test_a_vit_at_its_own_patch_size_gives_what_timm_gives() -> None:
    encoder = built("timm/test_vit")
    body = encoder.body
    assert isinstance(body, VisionTransformer)
    assert isinstance(encoder, TokenEncoder)
    image = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        features = encoder(image)
        tokens = body.forward_features((image - encoder.mean) / encoder.std)
    assert torch.allclose(features.final, tokens[:, 1:].transpose(1, 2).reshape(2, 64, 10, 10), atol=1e-6)
    assert torch.allclose(features.pooled, tokens[:, 0], atol=1e-6)


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


def test_a_network_that_timm_does_not_have_is_named_with_the_nearest() -> None:
    with pytest.raises(KdbenchError, match=r"unknown network of timm 'resnet5'\. Did you mean 'resnet50'"):
        build_pretrained(find_model("timm/resnet5"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet5O", r"unknown network of timm 'resnet5O'\..* These are the nearest"),
        ("timm/resnet18.nosuchtag", r"unknown weights of timm's 'resnet18' 'nosuchtag'\..*Known: .*a1_in1k"),
        (
            "timm/swin_tiny_patch4_window7_224",
            r"no maps of images of 64 x 96 pixels \(.*takes images of any size",
        ),
    ],
)
def test_what_cannot_be_built_is_an_error_of_one_paragraph(name: str, message: str) -> None:
    with pytest.raises(KdbenchError, match=message) as error:
        build_pretrained(find_model(name))
    assert len(str(error.value)) < 1500


def test_mit_is_no_convolutional_network_for_real_and_as_a_stand_in() -> None:
    assert not build_pretrained(find_model("mit-b0")).spec.convolutional
    assert not build_toy(find_model("mit-b0")).spec.convolutional


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
    assert torch.equal(found.blocks[-2], cut(expected.blocks[4], (57, 83), 16))
    assert torch.equal(found.final, cut(expected.final, (57, 83), 16))


def test_every_role_names_a_network() -> None:
    assert all(role.network and role.weights for role in MODELS.values())
