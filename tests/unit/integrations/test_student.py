"""A detectron2 config as a student: its features, its loss, and where its weights come from."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kdbench.conformance import CHECKS, Bench, make_bench
from kdbench.errors import KdbenchError
from kdbench.models.backbones import cut
from kdbench.models.registry import find_model, parse_pair
from kdbench.models.toy import ToyModels
from kdbench.models.weights import Model, PretrainedModels
from kdbench.plugins import load_method
from kdbench.types import IGNORE, FeatureSpec, PairSpec

CONFIG = "Misc/semantic_R_50_FPN_1x.yaml"
PANOPTIC = "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml"
NAME = f"detectron2/{CONFIG}"
SMALL = Path(__file__).parent / "small_fpn.yaml"
CLASSES = 5


@pytest.fixture(scope="module")
def d2() -> ModuleType:
    """The module, which only detectron2 lets import."""
    pytest.importorskip("detectron2", reason="optional: detectron2")
    from kdbench.integrations.detectron2 import student as detectron2

    return detectron2


@pytest.fixture(scope="module")
def student(d2: ModuleType) -> Any:
    """A student in eval mode."""
    return d2.student_from_config(CONFIG, CLASSES).eval()


def images(count: int = 2, height: int = 64, width: int = 128) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_features_have_the_shapes_of_the_spec(student: Any) -> None:
    # Its weights are drawn, so that FrozenBN is BN.
    assert student.spec == FeatureSpec(
        (256,) * 4, (4, 8, 16, 32), 256, 32, class_token=False, convolutional=True, batch_norms=True,
        blocks=(64, 256, 512, 1024, 2048),
    )  # fmt: skip
    features = student.encode(images(), blocks=(0, -1))
    assert [tuple(level.shape) for level in features.levels] == [(2, 256, 64 // s, 128 // s) for s in (4, 8, 16, 32)]
    assert features.final is features.levels[-1]
    assert torch.allclose(features.pooled, features.final.flatten(2).mean(2))
    assert {block: tuple(found.shape) for block, found in features.blocks.items()} == {
        0: (2, 64, 16, 32),
        -1: (2, 2048, 2, 4),
    }
    assert student(images()).logits.shape == (2, CLASSES, 16, 32)
    # A mask replaces the stem's output.
    mask = torch.zeros(2, 2, 4, dtype=torch.bool)
    mask[..., 2:] = True
    stem = student.encode(images(), mask, blocks=(0,)).blocks[0]
    assert not stem[..., 16:].any()
    assert torch.equal(stem[..., :16], features.blocks[0][..., :16])


@pytest.mark.parametrize("order", ["BGR", "RGB"])
@torch.no_grad()
def test_logits_are_those_of_detectron2s_own_model(d2: ModuleType, order: str) -> None:
    from detectron2.modeling import SemanticSegmentor

    config = d2.read_config(CONFIG)
    config.INPUT.FORMAT = order
    config.MODEL.PIXEL_MEAN, config.MODEL.PIXEL_STD = [100.0, 110.0, 120.0], [50.0, 60.0, 70.0]
    student = d2.student_from_config(config, CLASSES).eval()
    theirs = SemanticSegmentor(
        backbone=student.encoder.body,
        sem_seg_head=student.decoder.head,
        pixel_mean=config.MODEL.PIXEL_MEAN,
        pixel_std=config.MODEL.PIXEL_STD,
    ).eval()
    image = images(1)
    levels = (image[0] * 255).flip(0) if order == "BGR" else image[0] * 255
    expected = theirs([{"image": levels}])[0]["sem_seg"]
    ours = nn.functional.interpolate(student(image).logits, scale_factor=4, mode="bilinear", align_corners=False)[0]
    assert torch.allclose(ours, expected, atol=1e-4 * float(expected.abs().max()))
    assert not torch.allclose(student(image.flip(1)).logits, student(image).logits, rtol=1e-2)


def test_the_loss_is_the_heads_plain_cross_entropy(d2: ModuleType) -> None:
    student = d2.student_from_config(PANOPTIC, CLASSES)
    label = torch.randint(0, CLASSES, (2, 64, 128), generator=torch.Generator().manual_seed(1))
    label[:, :8] = IGNORE
    output = student(images())
    logits = nn.functional.interpolate(output.logits, scale_factor=4, mode="bilinear", align_corners=False)
    expected = nn.functional.cross_entropy(logits, label, ignore_index=IGNORE)
    losses = student.task_loss(output, label)
    assert list(losses) == ["loss_sem_seg"]
    # The panoptic config halves it.
    assert torch.allclose(losses["loss_sem_seg"], 0.5 * expected)
    nothing = student.task_loss(output, torch.full_like(label, IGNORE))["loss_sem_seg"]
    nothing.backward()
    assert nothing == 0
    assert all(p.grad is None or not p.grad.any() for p in student.parameters())


def test_a_method_keeps_its_contract_with_it(d2: ModuleType) -> None:
    plugin = load_method("gkd")

    def bench() -> Bench:
        made = make_bench(plugin, parse_pair("dinov2-s:resnet18"))
        made.networks.student = d2.student_from_config(CONFIG, CLASSES)
        spec = PairSpec(made.networks.teacher.spec, made.networks.student.spec, CLASSES)
        torch.manual_seed(0)
        made.method = made.networks.method = plugin.method(plugin.method.Config(), spec)
        return made

    for check in CHECKS:
        check(bench())


def checkpoint(student: Any) -> dict[str, Tensor]:
    """As detectron2 writes it, without the batches that FrozenBN does not count."""
    parts = {"backbone.": student.encoder.body, "sem_seg_head.": student.decoder.head}
    found = {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.state_dict().items()}
    return {name: tensor for name, tensor in found.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("stated", ["argument", "config"])
def test_a_local_checkpoint_is_loaded(d2: ModuleType, tmp_path: Path, stated: str) -> None:
    other = d2.student_from_config(CONFIG, 54, seed=1)
    path = tmp_path / "model.pth"
    torch.save({"model": checkpoint(other), "iteration": 5}, path)
    config = d2.read_config(CONFIG)
    if stated == "config":
        config.MODEL.WEIGHTS = str(path)
    config.freeze()
    before = config.dump()
    student = d2.student_from_config(config, CLASSES, path if stated == "argument" else None)
    assert config.dump() == before
    assert all(parameter.requires_grad for parameter in student.parameters())
    theirs, ours = checkpoint(other), checkpoint(student)
    different = [name for name in ours if not torch.equal(ours[name], theirs[name].expand_as(theirs[name]))]
    assert different == ["sem_seg_head.predictor.weight", "sem_seg_head.predictor.bias"]
    assert any("Frozen" in type(module).__name__ for module in student.modules())
    assert not student.spec.batch_norms


@pytest.fixture(scope="module")
def weights_of_r50(d2: ModuleType) -> dict[str, Tensor]:
    """A checkpoint of CONFIG."""
    return checkpoint(d2.student_from_config(CONFIG, CLASSES))


STEM = "backbone.bottom_up.stem.conv1.weight"


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        (lambda state: {n: t for n, t in state.items() if n != STEM}, "model.pth", f"lacks {STEM}"),
        (lambda state: state | {"backbone.fpn_output2.bias": torch.zeros(3)}, "model.pth",
         r"does not fit the config: backbone\.fpn_output2\.bias"),
        (lambda state: state, "R-50.pkl", "a pickle can run code"),
        (lambda state: {"model": SimpleNamespace()}, "model.pth", "cannot be read as weights"),
        (lambda state: {f"layer1.{i}.conv1.weight": torch.zeros(2) for i in range(2)}, "model.pth",
         r"model\.pth lacks backbone\.bottom_up\."),
        (lambda state: {"conv2.weight": torch.zeros(64, 64, 3, 3)}, "model.pth", "names that detectron2 cannot match"),
    ],
)  # fmt: skip
def test_checkpoints_that_do_not_fit_are_refused(
    d2: ModuleType, weights_of_r50: Any, tmp_path: Path, change: Any, name: str, message: str
) -> None:
    torch.save(change(weights_of_r50), tmp_path / name)
    with pytest.raises(KdbenchError, match=message):
        d2.student_from_config(CONFIG, CLASSES, tmp_path / name)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("Misc/semantic_R_5_FPN.yaml", "there is no config"),
        ("unsafe.yaml", "no config that detectron2 reads"),
        ("PascalVOC-Detection/faster_rcnn_R_50_C4.yaml", "needs an FPN on a ResNet"),
    ],
)
def test_configs_that_do_not_fit_are_refused(
    d2: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("unsafe.yaml").write_text("OUTPUT_DIR: !!python/object/apply:os.getcwd []\n", encoding="utf-8")
    with pytest.raises(KdbenchError, match=message):
        d2.student_from_config(config, CLASSES)


@torch.no_grad()
def test_sides_that_the_fpn_cannot_add_up_are_padded_with_the_mean_colour(student: Any) -> None:
    encoder, image = student.eval().encoder, images(1, 50, 100)
    whole = encoder.mean.expand(1, 3, 64, 128).clone()
    whole[..., :50, :100] = image
    found, expected = encoder(image, blocks=(0,)), encoder(whole, blocks=(0,))
    for level, stride in enumerate((4, 8, 16, 32)):
        assert torch.allclose(found.levels[level], cut(expected.levels[level], (50, 100), stride), atol=1e-5)
    assert torch.allclose(found.blocks[0], cut(expected.blocks[0], (50, 100), 4), atol=1e-5)


# Its weights, for the command line


def norms(encoder: nn.Module) -> set[str]:
    """The kinds of norms in a ResNet."""
    return {type(module).__name__ for module in encoder.body.bottom_up.modules() if hasattr(module, "running_var")}


def model(name: str, folder: Path | None = None) -> Model:
    return PretrainedModels(folder).find(find_model(name))


def small(folder: Path, name: str = "mine.yaml", **model: str) -> str:
    """The name of a student by a small config of its own."""
    folder.mkdir(exist_ok=True)
    changes = "".join(f"  {key}: {value}\n" for key, value in model.items())
    (folder / name).write_text(SMALL.read_text(encoding="utf-8") + changes, encoding="utf-8")
    return f"detectron2/{folder / name}"


def trained(d2: ModuleType, name: str) -> dict[str, Tensor]:
    """Weights as detectron2 names them, unlike any that are drawn."""
    student = d2.student_from_config(name.removeprefix("detectron2/"), CLASSES, seed=7)
    return checkpoint(student)


def fits(state: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    body = {f"backbone.{n.removeprefix('body.')}": tensor for n, tensor in state.items() if n.startswith("body.")}
    given = {n: tensor for n, tensor in weights.items() if n.startswith("backbone.")}
    assert given
    assert all(torch.equal(body[name], tensor) for name, tensor in given.items())


def test_weights_are_found_by_the_configs_name_or_by_that_of_its_weights(d2: ModuleType, tmp_path: Path) -> None:
    name = small(tmp_path / "configs", WEIGHTS="detectron2://ImageNetPretrained/R-18.pkl")
    weights = trained(d2, name)
    for file in ("R-18.pth", "mine.safetensors"):
        folder = tmp_path / file
        folder.mkdir()
        save = save_file if file.endswith("safetensors") else torch.save
        save(weights, folder / file)
        found = model(name, folder)
        state = found.load()
        fits(state, weights)
        assert not state["mask_token"].any()
        encoder = found.build()
        assert norms(encoder) == {"FrozenBatchNorm2d"}
        encoder.load_state_dict(state, strict=True)
        assert "-file-" in found.key()


def test_without_a_file_it_is_said_what_to_put_where_and_how_to_convert(d2: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(KdbenchError) as caught:
        model(NAME, tmp_path).load()
    message = str(caught.value)
    assert f"'{NAME}' starts from detectron2://ImageNetPretrained/MSRA/R-50.pkl, which is no file here" in message
    assert f"Put one of these into {tmp_path}: semantic_R_50_FPN_1x.safetensors, " in message
    assert "R-50.pth, " in message
    assert "torch.save({name: torch.as_tensor(array)" in message


def test_a_local_file_that_the_config_names_is_read_and_one_in_the_folder_comes_first(
    d2: ModuleType, tmp_path: Path
) -> None:
    name = small(tmp_path, WEIGHTS=str(tmp_path / "local.pth"))
    weights = trained(d2, small(tmp_path, "plain.yaml"))
    torch.save({"model": weights}, tmp_path / "local.pth")
    fits(model(name).load(), weights)
    other = {name: tensor + 1 for name, tensor in weights.items()}
    (tmp_path / "folder").mkdir()
    torch.save({"model": other}, tmp_path / "folder" / "mine.pth")
    fits(model(name, tmp_path / "folder").load(), other)


def test_a_config_that_names_no_weights_starts_from_random_ones_that_train(d2: ModuleType, tmp_path: Path) -> None:
    name = small(tmp_path)
    found = model(name, tmp_path)
    encoder, state = found.build(), found.load()
    assert norms(encoder) == {"BatchNorm2d"}
    encoder.load_state_dict(state, strict=True)
    torch.manual_seed(5)
    assert all(torch.equal(tensor, state[key]) for key, tensor in found.load().items())
    assert found.key().endswith("-random")
    torch.save(trained(d2, name), tmp_path / "mine.pth")
    assert norms(found.build()) == {"FrozenBatchNorm2d"}
    assert "random" not in found.key()


def test_the_key_follows_what_the_config_computes_and_not_where_it_lies(d2: ModuleType, tmp_path: Path) -> None:
    def key(name: str) -> str:
        return model(name).key()

    plain = key(small(tmp_path / "a"))
    assert key(small(tmp_path / "b", "other.yaml")) == plain
    changes = [{"PIXEL_MEAN": "[1.0, 2.0, 3.0]"}, {"MASK_ON": "True"}]
    assert len({plain, *(key(small(tmp_path / "a", **change)) for change in changes)}) == 3
    for place in ("a", "b"):
        torch.save({"x": torch.zeros(2)}, tmp_path / place / "same.pth")
    named = {key(small(tmp_path / place, WEIGHTS=str(tmp_path / place / "same.pth"))) for place in ("a", "b")}
    assert len(named) == 1
    assert plain not in named


def caffe2(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A ResNet's weights as MSRA's models name them: norms merged into a scale and a shift, no FPN."""
    branches = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c", "shortcut": "branch1"}
    found = {"fc1000_w": torch.zeros(3, 3), "fc1000_b": torch.zeros(3)}
    for name, tensor in weights.items():
        where = name.removeprefix("backbone.bottom_up.").split(".")
        if not name.startswith("backbone.bottom_up.") or where[-1].startswith("running"):
            continue
        ending = {"weight": "bn_s", "bias": "bn_b"}[where[-1]] if "norm" in where else "w"
        stem = "res_conv1" if "norm" in where else "conv1"
        if where[0] == "stem":
            found[f"{stem}_{ending}"] = tensor
        else:
            found[f"{where[0]}_{where[1]}_{branches[where[2]]}_{ending}"] = tensor
    return found


@pytest.mark.parametrize("layout", ["caffe2", "detectron2's ImageNet models"])
def test_imagenet_models_fill_the_resnet_under_their_own_names(d2: ModuleType, tmp_path: Path, layout: str) -> None:
    weights = {n: t + 1 for n, t in trained(d2, small(tmp_path)).items()}
    resnet = {name: t for name, t in weights.items() if name.startswith("backbone.bottom_up.")}
    if layout == "caffe2":
        content = caffe2(weights)
        resnet = {name: tensor for name, tensor in resnet.items() if "running" not in name}
    else:
        content = {name.removeprefix("backbone.bottom_up."): tensor for name, tensor in resnet.items()}
    torch.save(content, tmp_path / "mine.pth")
    state = model(small(tmp_path), tmp_path).load()
    fits(state, resnet)
    # The FPN is not in the file: drawn, and the same every time.
    lateral = "body.fpn_lateral2.weight"
    assert torch.equal(model(small(tmp_path), tmp_path).load()[lateral], state[lateral])
    assert not torch.equal(weights["backbone.fpn_lateral2.weight"], state[lateral])
    statistics = [tensor for name, tensor in state.items() if name.endswith("bottom_up.stem.conv1.norm.running_mean")]
    assert statistics[0].eq(0).all() == (layout == "caffe2")


def test_a_config_is_found_by_its_prefix_and_cannot_teach(d2: ModuleType) -> None:
    pair = parse_pair(f"dinov2-b:{NAME}")
    assert (pair.name, pair.family) == (f"dinov2-b:{NAME}", "F2L")
    assert (pair.student.network, pair.student.decoder) == (CONFIG, "its config's head")
    with pytest.raises(KdbenchError, match="is a local model and cannot teach"):
        parse_pair(f"{NAME}:resnet50")
    with pytest.raises(KdbenchError, match=r"unknown toy model .*--protocol paper"):
        ToyModels().find(pair.student)
