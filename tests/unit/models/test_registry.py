"""Model names, pairs, and models that users register."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kdbench.cli.listing import listing
from kdbench.errors import KdbenchError
from kdbench.models import registry
from kdbench.models.backbones import ModuleEncoder, TokenEncoder, build_toy
from kdbench.models.decoders import LinearDecoder
from kdbench.models.registry import CNN_PAIRS, MODELS, PAPER_PAIRS, find_model, parse_pair, register_model
from kdbench.models.toy import ToyModels
from kdbench.models.weights import PretrainedModels


@pytest.mark.parametrize("text", [*PAPER_PAIRS, *CNN_PAIRS])
def test_a_pair_is_f2f_or_f2l_by_its_student(text: str) -> None:
    pair = parse_pair(text)
    assert pair.name == text
    local = pair.student.name.startswith(("deit", "dino-", "resnet", "mit"))
    assert pair.family == ("F2L" if local else "F2F")


@pytest.mark.parametrize("text", ["", ":", "dinov2-l", "dinov2-l:", ":resnet50", "dinov2-l resnet50"])
def test_a_malformed_pair_shows_how_to_write_one(text: str) -> None:
    with pytest.raises(KdbenchError, match=r"is not a pair\. Write teacher:student, e\.g\."):
        parse_pair(text)


@pytest.mark.parametrize(
    ("text", "asked", "nearest"),
    [
        ("dinov2-xl:deit-s", "dinov2-xl", "dinov2-"),
        ("dinov2-l:resnet51", "resnet51", "resnet5"),
        ("dinov2-l:deit-s:deit-b", "deit-s:deit-b", "deit-"),
    ],
)
def test_an_unknown_model_is_named_with_the_nearest_one(text: str, asked: str, nearest: str) -> None:
    with pytest.raises(KdbenchError, match="unknown model") as caught:
        parse_pair(text)
    message = str(caught.value)
    assert f"'{asked}'" in message
    assert f"'{text}'" in message
    assert f"Did you mean '{nearest}" in message


def test_a_local_model_cannot_teach_and_one_of_timm_may() -> None:
    with pytest.raises(KdbenchError, match=r"'deit-s' .* cannot teach\. Teachers: dinov2-s, ") as caught:
        parse_pair("deit-s:resnet18")
    assert "resnet" not in str(caught.value).split("Teachers: ")[1]
    assert parse_pair("timm/resnet50:resnet18").teacher.network == "resnet50"


def test_a_real_network_has_no_toy_model() -> None:
    with pytest.raises(KdbenchError, match=r"unknown toy model 'timm/resnet50'.*--protocol paper"):
        ToyModels().find(find_model("timm/resnet50"))


# ---- models that users register


class Pyramid(nn.Module):
    """What a user has: images to maps at strides 4 and 8, in a list or dict."""

    def __init__(self, width: int = 8, wrap: Callable[[list[Tensor]], Any] = list) -> None:
        super().__init__()
        self.wrap = wrap
        self.first = nn.Conv2d(3, width, 4, stride=4)
        self.second = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2 * width, 2, stride=2))

    def forward(self, image: Tensor) -> Any:
        first = self.first(image)
        return self.wrap([first, self.second(first)])


def registered(*given: Any, **more: Any) -> Any:
    """The Model of a network that is registered as `mine`."""
    return PretrainedModels().find(register_model("mine", *given, **more))


def named(maps: list[Tensor]) -> dict[str, Tensor]:
    return dict(zip("ab", maps, strict=True))


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "REGISTERED", {})


@pytest.mark.parametrize("wrap", [list, named])
@pytest.mark.parametrize("source", [ToyModels(), PretrainedModels()], ids=["toy", "pretrained"])
@torch.no_grad()
def test_a_module_becomes_an_encoder_whose_maps_are_measured(source: Any, wrap: Any) -> None:
    encoder = source.find(register_model("mine", lambda: Pyramid(wrap=wrap))).build().eval()
    spec = encoder.spec
    assert (spec.channels, spec.strides, spec.blocks) == ((8, 16), (4, 8), (8, 16))
    assert (spec.final_channels, spec.final_stride, spec.class_token) == (16, 8, False)
    assert spec.batch_norms
    image, mask = torch.rand(2, 3, 32, 64), torch.zeros(2, 4, 8, dtype=torch.bool)
    features = encoder(image, blocks=(0, -1))
    encoder.body.wrap = list
    maps = encoder.body((image - encoder.mean) / encoder.std)
    assert all(torch.equal(level, map_) for level, map_ in zip(features.levels, maps, strict=True))
    assert torch.equal(features.final, maps[1])
    assert torch.equal(features.pooled, maps[1].mean((2, 3)))
    assert torch.equal(features.blocks[0], maps[0])
    assert torch.equal(features.blocks[-1], maps[1])
    # A mask hides pixels.
    mask[:, 1, 2] = True
    other = image.clone()
    other[:, :, 8:16, 16:24] = 0.9
    assert torch.equal(encoder(image, mask).final, encoder(other, mask).final)
    assert not torch.equal(encoder(other).final, features.final)


def test_building_leaves_a_module_that_is_returned_every_time_as_it_was() -> None:
    shared = Pyramid().train()
    shared.second[0].eval()
    generator = torch.get_rng_state()
    model = registered(lambda: shared)
    first, second = model.build(), model.build()
    assert torch.equal(torch.get_rng_state(), generator)
    assert not first.body.second[0].running_mean.any()
    with torch.no_grad():
        first.body.first.weight.zero_()
    for body in (shared, second.body):
        assert (body.training, body.second[0].training) == (True, False)
        assert body.first.weight.any()
    with torch.device("meta"):
        assert ModuleEncoder(Pyramid()).spec == first.spec


def test_an_encoder_of_its_own_is_taken_as_it_is() -> None:
    assert isinstance(registered(lambda: build_toy(MODELS["deit-s"])).build(), TokenEncoder)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Flatten, r"Flatten gives \(1, 18432\) of an image of 64 x 96 pixels"),
        (lambda: nn.Linear(7, 2), r"Linear gives no maps .* of 64 x 96 pixels \(RuntimeError.*an Encoder of your own"),
        (lambda: nn.Conv2d(3, 4, 5), r"Conv2d gives \(1, 4, 60, 92\) .* whose sides divide the image's evenly"),
        (lambda: Pyramid(wrap=lambda maps: maps[::-1]), r"from fine to coarse"),
        (lambda: "text", "returned 'text', not a torch.nn.Module"),
        (lambda: 1 / 0, r"model 'mine' cannot be used: ZeroDivisionError: .* test_registry\.py"),
    ],
)
def test_what_is_no_encoder_is_told_with_the_repair(module: Any, message: str) -> None:
    with pytest.raises(KdbenchError, match=message):
        registered(module).build()


@pytest.mark.parametrize("kind", ["file", "function", "builder"])
def test_weights_come_from_a_file_a_function_or_the_builder(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(1)
    trained = Pyramid()
    save_file(trained.state_dict(), tmp_path / "mine.safetensors")
    given: dict[str, Any] = {
        "file": {"weights": tmp_path / "mine.safetensors"},
        "function": {"weights": trained.state_dict},
        "builder": {},
    }[kind]
    model = registered((lambda: trained) if kind == "builder" else Pyramid, **given)
    state = model.load()
    assert all(torch.equal(state[f"body.{name}"], tensor) for name, tensor in trained.state_dict().items())
    assert not state["mask_token"].any()
    model.build().load_state_dict(state)
    assert model.weights().startswith("file-" if kind == "file" else "state-")
    assert str(tmp_path) in model.origin() if kind == "file" else "registered 'mine'" in model.origin()


def test_weights_of_another_network_are_refused() -> None:
    model = registered(Pyramid, weights=lambda: Pyramid(4).state_dict())
    with pytest.raises(KdbenchError, match=r"weights of 'mine' does not fit Pyramid\. shapes: first\.weight"):
        model.load()


def test_the_key_follows_the_weights_unless_it_is_given() -> None:
    def key(value: float, **more: Any) -> str:
        state = {name: torch.full_like(t, value) for name, t in Pyramid().state_dict().items()}
        return registered(Pyramid, weights=lambda: state, **more).key()

    assert key(1) == key(1) != key(2)
    assert key(1, key="v1") == key(2, key="v1") != key(1, key="v2")


def test_drawn_weights_are_the_same_for_every_run() -> None:
    model = registered(Pyramid)
    first = model.load()
    torch.rand(5)
    assert all(torch.equal(tensor, first[name]) for name, tensor in model.load().items())


@pytest.mark.parametrize(
    ("name", "build", "message"),
    [
        ("resnet18", Pyramid, "a model of kdbench's own"),
        ("timm/mine", Pyramid, "kdbench's own"),
        ("a:b", Pyramid, "cannot stand in a pair"),
        ("mine", None, "None builds nothing"),
    ],
)
def test_what_cannot_be_registered(name: str, build: Any, message: str) -> None:
    with pytest.raises(KdbenchError, match=message):
        register_model(name, build)


def test_a_registered_name_is_suggested_and_may_be_replaced() -> None:
    register_model("mymodel", Pyramid)
    with pytest.raises(KdbenchError, match=r"Did you mean 'mymodel'.*kdbench\.register_model"):
        parse_pair("dinov2-b:mymodle")
    register_model("mymodel", Pyramid, family="foundation")
    assert parse_pair("mymodel:mymodel").family == "F2F"


# ---- entry points


@pytest.fixture
def announce(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Announces models as an installed package would: name -> what its entry point loads."""

    def install(**points: Any) -> None:
        def found(group: str) -> Iterator[Any]:
            for name, loaded in points.items() if group == "kdbench.models" else ():
                yield SimpleNamespace(name=name.replace("__", "/"), value="package:attribute", load=lambda x=loaded: x)

        monkeypatch.setattr(registry.importlib.metadata, "entry_points", found)

    return install


def test_an_entry_point_names_a_builder_or_a_spec(announce: Any) -> None:
    announce(plain=Pyramid, special=register_model("special", Pyramid, family="foundation"))
    pair = parse_pair("special:plain")
    assert (pair.name, pair.family) == ("special:plain", "F2L")
    assert PretrainedModels().find(pair.student).build().spec.strides == (4, 8)
    with pytest.raises(KdbenchError, match="Did you mean 'plain'"):
        find_model("plein")
    listed = {row["name"]: (row["family"], row["network"]) for row in listing("models")}
    assert listed["special"] == ("foundation", "registered")
    assert listed["plain"] == ("local", "registered")


def test_an_entry_point_with_a_slash_serves_every_name_below_it(announce: Any) -> None:
    announce(zoo__=lambda name: registry.ModelSpec(name, "local", decoder="its own", toy_protocols=False))
    assert find_model("zoo/any/thing.yaml").decoder == "its own"
    with pytest.raises(KdbenchError, match="unknown model 'zoo'"):
        find_model("zoo")


def test_a_broken_entry_point_breaks_its_own_name_alone(announce: Any) -> None:
    def broken(name: str) -> Any:
        raise ImportError("no module named left_pad")

    announce(broken__=broken, fine=Pyramid)
    assert find_model("fine").name == "fine"
    with pytest.raises(
        KdbenchError, match=r"model 'broken/x' \(entry point package:attribute\) cannot be used.*left_pad"
    ):
        find_model("broken/x")


# ---- in a run


def test_registered_models_teach_and_learn_in_a_smoke_cell(run_cells: Any) -> None:
    register_model("mine", Pyramid, family="foundation", key="v1")
    register_model("other", Pyramid, decoder=LinearDecoder)
    (done,) = run_cells(methods=("cwd",), pairs=("mine:other",))
    assert done.record.status == "done", done.record.error
    cell = done.record.spec.resolved
    assert (cell.student, cell.family) == ("other", "F2L")
    assert cell.decoder == "light (student: its own)"
    assert cell.weights["mine"] == "key-v1"
    assert cell.weights["other"].startswith("state-")
    (again,) = run_cells(methods=("cwd",), pairs=("mine:other",))
    assert again.cached
