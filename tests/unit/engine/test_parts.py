"""How parts lie in memory and what runs them: channels last, a teacher in bfloat16, compiled encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from kdbench.engine import parts
from kdbench.engine.grid import Done
from kdbench.engine.parts import Networks, WeightSource, compile_encoder, stage_models
from kdbench.engine.plan import Cell, RunContext, make_plan
from kdbench.errors import KdbenchError
from kdbench.method import Stage
from kdbench.models.backbones import Encoder, build_toy
from kdbench.models.registry import MODELS
from kdbench.models.segmentor import SegmentationModel, build_decoder, seeded
from kdbench.protocol import PROTOCOLS
from kdbench.types import STUDENT, Features, FeatureSpec, Part, Phase

CPU, SIZE = torch.device("cpu"), (64, 128)
Run = Callable[..., list[Done]]
Plan = Callable[..., tuple[RunContext, list[Cell]]]


def encoder(role: str) -> Encoder:
    return seeded(lambda: build_toy(MODELS[role]), "test", role)


def segmentor(role: str) -> SegmentationModel:
    body = encoder(role)
    return SegmentationModel(body, seeded(lambda: build_decoder("light", body.spec, 5), "test", "decoder"))


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def hidden(network: Encoder, count: int = 2) -> Tensor:
    grid = [side // network.spec.final_stride for side in SIZE]
    return torch.rand(count, *grid, generator=torch.Generator().manual_seed(1)) < 0.5


def maps(features: Features) -> list[Tensor]:
    return [*features.levels, features.final, features.pooled]


def test_a_block_that_was_not_asked_for_is_named() -> None:
    stage = Stage("task", Phase.TASK, trains=STUDENT, loss=lambda *_: {})
    student, _ = stage_models(Networks(segmentor("dinov2-s"), segmentor("deit-s")), stage)
    blocks = student.encode(images(), blocks=(0, -1)).blocks
    assert list(blocks) == [0, -1]
    with pytest.raises(KdbenchError, match=r"features\.blocks\[2\] was not asked for \(asked for: 0, -1\)\. Add 2"):
        blocks[2]


# --- channels last


def gradients(network: SegmentationModel) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Features and logits of a training pass with hidden positions, and every parameter's gradient."""
    network.train()
    features = network.encode(images(4), hidden(network.encoder, 4))
    logits = network.decode(features).logits
    (logits.square().mean() + features.final.square().mean()).backward()
    return [*maps(features), logits], {n: p.grad for n, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("role", ["resnet18", "resnet50"])
def test_channels_last_changes_no_feature_and_no_gradient(role: str) -> None:
    networks = Networks(segmentor("dinov2-s"), segmentor(role))
    networks.place(CPU)
    assert networks.student is not None
    (ours, ours_back), (theirs, theirs_back) = gradients(networks.student), gradients(segmentor(role))
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    assert ours_back.keys() == theirs_back.keys()
    for name, gradient in ours_back.items():
        assert (gradient - theirs_back[name]).norm() <= 3e-5 * theirs_back[name].norm(), name


def test_convolutional_networks_alone_lie_with_their_channels_last_and_stay_so() -> None:
    networks = Networks(segmentor("dinov2-s"), segmentor("resnet18"))
    state = segmentor("resnet18").encoder.state_dict()
    networks.place(CPU)
    networks.load({Part.STUDENT_ENCODER: WeightSource("weights", lambda: state)})
    student = networks.student
    assert student is not None
    kernels = [m.weight for m in student.modules() if isinstance(m, nn.Conv2d)]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    assert not all(kernel.is_contiguous() for kernel in kernels)
    assert student(images()).features.final.is_contiguous(memory_format=torch.channels_last)
    assert all(p.is_contiguous() for p in networks.teacher.parameters())


# --- the frozen teacher in bfloat16


BF16 = frozenset({Part.TEACHER_ENCODER})


def size_of(module: nn.Module) -> int:
    """Bytes of the parameters."""
    return sum(p.numel() * p.element_size() for p in module.parameters())


@pytest.mark.parametrize("role", ["dinov2-l", "eva02-b", "resnet50", "mit-b0"])
@torch.no_grad()
def test_a_bf16_teacher_is_the_one_that_autocast_computes(role: str) -> None:
    """Not near it: bit for bit, because norms, positions and statistics stay in single precision."""
    whole, networks = encoder(role).eval(), Networks(segmentor(role))
    networks.load({Part.TEACHER_ENCODER: WeightSource("weights", whole.state_dict)}, bf16_parts=BF16)
    networks.freeze_all_but(frozenset())
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = networks.teacher.encode(images()), whole(images())
    for a, b in zip(maps(ours), maps(theirs), strict=True):
        assert torch.equal(a, b)
    # The toy models are small: of the real encoders' parameters, a few in a hundred at most are no weights of products.
    assert size_of(networks.teacher.encoder) < 0.6 * size_of(whole)
    kinds = {buffer.dtype for buffer in networks.teacher.encoder.buffers() if buffer.is_floating_point()}
    assert kinds == {torch.float32}


def test_a_bf16_part_is_read_anew_where_it_is_wanted_whole() -> None:
    whole, networks = segmentor("dinov2-s"), Networks(segmentor("dinov2-s"))
    read = []

    def state() -> dict[str, Tensor]:
        read.append(1)
        return whole.encoder.state_dict()

    origin = {Part.TEACHER_ENCODER: WeightSource("weights", state)}
    for bf16_parts, reads in ((BF16, 1), (BF16, 1), (frozenset[str](), 2), (frozenset[str](), 2), (BF16, 3)):
        networks.load(origin, bf16_parts=bf16_parts)
        assert len(read) == reads
    networks.load(origin)
    for name, tensor in networks.teacher.encoder.state_dict().items():
        assert tensor.dtype == whole.encoder.state_dict()[name].dtype
        assert torch.equal(tensor, whole.encoder.state_dict()[name]), name


def test_what_is_held_in_bfloat16_is_the_frozen_teacher_under_mixed_precision(
    plan_cells: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    smoke = PROTOCOLS["smoke"]
    for precision, expected in (("32-true", []), ("bf16-mixed", [BF16] * 2)):
        monkeypatch.setitem(PROTOCOLS, "smoke", smoke.model_copy(update={"precision": precision}))
        context, cells = plan_cells(methods=("logit_kd",))
        fit, joint = (step.stage for step in make_plan(context, cells[0]).stages)
        assert [names for names in (context.bf16_parts(fit), context.bf16_parts(joint)) if names] == expected


# --- compiled encoders


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile without the compiler behind it: its graphs run operation by operation."""
    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **options: whole(module, backend="eager"))
    torch.compiler.reset()


class Small(Encoder):
    """Patches and a norm over the batch. It computes something else in compiled code, in the way that it is told."""

    def __init__(self, how: str = "") -> None:
        body = nn.Sequential(nn.Conv2d(3, 6, 8, 8), nn.BatchNorm2d(6))
        super().__init__(body, body[0], 6, "NCHW")
        self.how, self.spec = how, FeatureSpec((6,), (8,), 6, 8, class_token=False, convolutional=True)

    def forward(self, image: Tensor, mask: Tensor | None = None, blocks: Sequence[int] = ()) -> Features:
        if torch.compiler.is_compiling():
            if self.how == "scaled":
                image = 1.1 * image
            elif self.how == "unmasked":
                mask = None
            elif self.how == "lost":
                image = image / 0
        return super().forward(image, mask, blocks)

    def _features(self, image: Tensor, blocks: Mapping[int, int]) -> Features:
        final = self.body(image)
        return Features((final,), final, final.mean((2, 3)), {})


def copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("training", [False, True])
def test_a_compiled_encoder_is_the_encoder(training: bool) -> None:
    network = Small().train(training)
    before = copied(network)
    compiled = compile_encoder(network, "small", SIZE, torch.float32)
    assert list(network.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    network.eval()
    for mask in (None, hidden(network, 3)):
        for a, b in zip(maps(compiled(images(3), mask)), maps(network(images(3), mask)), strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("scaled", r"compiling small changes its features by up to 0\.\d+ of their length; 0.001 is rounding\. Run it"),
        ("unmasked", "compiling small changes its features of masked images by"),
        ("lost", "compiling small changes its features by up to nan"),
    ],
)
def test_a_backbone_that_behaves_otherwise_when_compiled_is_refused(how: str, message: str) -> None:
    with pytest.raises(KdbenchError, match=message):
        compile_encoder(Small(how).eval(), "small", SIZE, torch.float32)


def test_a_backbone_that_cannot_be_compiled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(graph: object, inputs: object) -> None:
        raise RuntimeError("no compiler")

    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **options: whole(module, backend=no_compiler))
    with pytest.raises(KdbenchError, match=r"small cannot be compiled here \(.*\)\. Run it without --compile"):
        compile_encoder(Small(), "small", SIZE, torch.float32)


def test_a_compiled_run_trains_through_what_was_compiled_and_has_keys_of_its_own(
    run_cells: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[object, ...]] = []
    seen: list[int] = []

    def counted(network: Encoder, *arguments: object) -> parts.Encode:
        tried.append((network.training, *arguments))
        return lambda image, mask, blocks: seen.append(len(image)) or network(image, mask, blocks)  # type: ignore[func-returns-value]

    monkeypatch.setattr("kdbench.engine.runner.compile_encoder", counted)
    (eager,) = run_cells()
    assert not tried
    (done,) = run_cells(compiled=True)
    assert not done.cached
    assert done.record.result is not None, done.record.error
    assert eager.record.result is not None
    teacher, student = "mini:dinov2-s", "mini:deit-s"
    expected = [(False, teacher), (True, student), (False, student)]
    assert tried == [(training, name, (32, 64), torch.float32) for training, name in expected]
    # The proxy stage is common to all runs. Both encoders in the source stage's 6 steps, the frozen student alone in 8.
    assert len(seen) == 2 * 6 + 8
    assert done.record.result.domains[0].confusion.tolist() == eager.record.result.domains[0].confusion.tolist()
    keys = [[stage.key for stage in found.record.result.stages] for found in (eager, done)]  # type: ignore[union-attr]
    assert [ours == theirs for ours, theirs in zip(*keys, strict=True)] == [True, False, False]
    assert [found.record.spec.passed["compiled"] for found in (eager, done)] == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("role", ["deit-s", "resnet18"])
def test_compiled_features_and_gradients_are_those_of_the_encoder(role: str) -> None:
    """With torch's own compiler."""
    torch.compiler.reset()
    network = encoder(role).train()
    before = copied(network)
    compiled = compile_encoder(network, role, SIZE, torch.float32)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    found = []
    for run in (network, compiled):
        network.zero_grad()
        features = run(images(3), hidden(network, 3))
        generator = torch.Generator().manual_seed(2)
        terms = [(map_ * torch.randn(map_.shape, generator=generator)).sum() for map_ in maps(features)]
        torch.stack(terms).sum().backward()
        found.append((maps(features), {n: p.grad for n, p in network.named_parameters() if p.grad is not None}))
    (theirs, theirs_back), (ours, ours_back) = found
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()
    assert ours_back.keys() == theirs_back.keys()
    for name, gradient in ours_back.items():
        assert (gradient - theirs_back[name]).norm() <= 1e-4 * theirs_back[name].norm(), name
