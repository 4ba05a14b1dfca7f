"""The contract that every method keeps, as functions that raise AssertionError. Importable by a plug-in's author:

from kdbench.conformance import CHECKS, check_method
check_method("path/to/mine.py")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, get_args

import torch
from torch import Tensor, nn

from kdbench.engine.parts import Networks, check_stages, stage_models
from kdbench.errors import KdbenchError, describe
from kdbench.method import Method, MethodConfig, Stage, check_terms
from kdbench.models.backbones import build_toy
from kdbench.models.registry import ModelSpec, Pair, find_model
from kdbench.models.segmentor import SegmentationModel, build_decoder, seeded
from kdbench.plugins import MethodPlugin, load_method
from kdbench.types import IGNORE, Batch, FeatureSpec, PairSpec

CLASSES = 5
SIZE = (32, 64)
PAIRS = ("dinov2-s:deit-s", "dinov2-b:deit-s", "dinov2-s:resnet18", "eva02-s:mit-b0", "resnet50:deit-s")
"""Equal widths; different widths; a convolutional student without a class token; another stride; a convolutional
teacher, as `timm/NAME` gives one."""
ROUNDING = 1e-5
"""The part of a module's largest gradient below which another one is rounding, as behind a softmax over one entry."""
SHOWN = 4
"""Parameters that a fault names."""


def sample_pair() -> PairSpec:
    """Return a pair to build a method for when only its stages and options are asked for."""
    spec = FeatureSpec((8,) * 4, (8,) * 4, 8, 8, class_token=True, blocks=(8,) * 6)
    return PairSpec(spec, spec, CLASSES)


def find_pair(text: str) -> Pair:
    """`teacher:student` among the toy models, of whatever family: nothing here asks what a teacher was trained on."""
    teacher, _, student = text.partition(":")
    return Pair(find_model(teacher), find_model(student))


@dataclass
class Bench:
    """A method on a small pair with random weights."""

    networks: Networks
    method: Method[Any]

    def stages(self) -> tuple[Stage, ...]:
        """The method's stages, checked."""
        stages = self.method.stages()
        check_stages(self.method, stages, self.networks)
        return stages

    def losses(self, stage: Stage, batch: Batch) -> dict[str, Tensor]:
        """The stage's losses with what it trains set up, as the engine does it; the same seed each time."""
        self.networks.freeze_all_but(stage.trains)
        torch.manual_seed(0)
        try:
            return check_terms(stage.loss(batch, *stage_models(self.networks, stage)))
        except KdbenchError as error:
            raise KdbenchError(f"stage {stage.name}: {error}") from error


def make_bench(plugin: MethodPlugin, pair: Pair) -> Bench:
    """Build the method on a pair of toy models."""

    def segmentor(role: ModelSpec, part: str) -> SegmentationModel:
        encoder = seeded(lambda: build_toy(role), "conformance", part)
        # LayerNorms' and zero-initialised residuals' start values hide missing gradients and moves.
        _roughen(parameter for parameter in encoder.parameters() if parameter.ndim <= 1)
        return SegmentationModel(
            encoder, seeded(lambda: build_decoder("light", encoder.spec, CLASSES), "conformance", part)
        )

    teacher, student = segmentor(pair.teacher, "teacher"), segmentor(pair.student, "student")
    spec = PairSpec(teacher.spec, student.spec, CLASSES)
    method = _make_method(plugin.method, plugin.method.Config(), spec)
    return Bench(Networks(teacher, student, method), method)


def _make_method(kind: type[Method[Any]], config: MethodConfig, pair: PairSpec) -> Method[Any]:
    method = seeded(lambda: kind(config, pair), "conformance", "method")
    # What starts at zero keeps gradients from all that stands before it, for one step.
    _roughen((parameter for parameter in method.parameters() if not parameter.any()), 0.3)
    return method


def make_batch(stage: Stage, ignored: bool = False) -> Batch:
    """Four random images, labelled where the stage's phase is."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, CLASSES, (4, *SIZE), generator=generator)
    label[:, :4] = IGNORE
    if ignored:
        label[:] = IGNORE
    return Batch(
        image=torch.rand(4, 3, *SIZE, generator=generator),
        label=label if stage.phase.labelled else None,
        domain=("somewhere",) * 4,
        index=torch.arange(4),
        progress=0.5,
    )


def _roughen(parameters: Iterable[nn.Parameter], deviation: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(deviation * torch.randn(parameter.shape, generator=generator))


def stages_are_sound(bench: Bench) -> None:
    """Stages have distinct names, train something, and name only parts that exist."""
    bench.stages()


def losses_are_finite_scalars(bench: Bench) -> None:
    """Every stage returns named scalars that are finite, also where every pixel is ignored."""
    for stage in bench.stages():
        for ignored in (False, True):
            for name, value in bench.losses(stage, make_batch(stage, ignored)).items():
                assert torch.isfinite(value), f"stage {stage.name}: loss '{name}' is {value} (all ignored: {ignored})"


def passes_are_declared(bench: Bench) -> None:
    """A stage declares how often an image goes through the student: the equal track counts on it."""
    for stage in bench.stages():
        bench.networks.freeze_all_but(stage.trains)
        batch, (student, teacher) = make_batch(stage), stage_models(bench.networks, stage)
        stage.loss(batch, student, teacher)
        taken = student.images / len(batch.image)
        assert taken == stage.student_forwards, (
            f"stage {stage.name} sends an image through the student {taken:g} times and declares "
            f"{stage.student_forwards:g}. Write Stage(..., student_forwards={taken:g})."
        )


def exactly_trains_moves(bench: Bench) -> None:
    """A step changes every part that `trains` names and nothing else, buffers included; the rest is in eval mode."""
    for stage in bench.stages():
        modules = bench.networks.modules()
        before = {name: _copy(module) for name, module in modules.items()}
        total = torch.stack(list(bench.losses(stage, make_batch(stage)).values())).sum()
        parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
        torch.optim.SGD(parameters, lr=0.1).zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        torch.optim.SGD(parameters, lr=0.1).step()
        for name, module in modules.items():
            moved = any(not torch.equal(a, b) for a, b in zip(before[name], _copy(module), strict=True))
            assert moved == (name in stage.trains), f"stage {stage.name}: {name} {'moved' if moved else 'did not move'}"
            modes = {part.training for part in module.modules()}
            assert modes == {name in stage.trains}, f"stage {stage.name}: {name} has its training mode mixed up"


def gradients_reach_what_trains(bench: Bench) -> None:
    """Every parameter that is trained gets a gradient, save unused ones and what a loss leaves unread of networks."""
    for stage in bench.stages():
        modules = bench.networks.modules()
        for module in modules.values():
            module.zero_grad(set_to_none=True)
        total = torch.stack(list(bench.losses(stage, make_batch(stage)).values())).sum()
        registered = {id(parameter) for module in modules.values() for parameter in module.parameters()}
        strays = [tuple(leaf.shape) for leaf in _leaves(total) if id(leaf) not in registered]
        assert not strays, (
            f"stage {stage.name}: the loss reads {len(strays)} parameters that no sub-module holds, one of "
            f"shape {strays[0]}. Nothing trains or saves them: keep modules as attributes, or in an nn.ModuleList"
        )
        total.backward()  # type: ignore[no-untyped-call]
        for name in sorted(stage.trains):
            # Of a network, a final norm or a mask token may have no part in a loss; a method's own modules are for it.
            unreached = _unreached if name in stage.own_modules else _unreached_though_read
            found = [f"{name}.{parameter}" for parameter in unreached(modules[name])]
            missed = [
                each for each in found if not any(fnmatch(each, pattern) for pattern in bench.method.unused_parameters)
            ]
            more = f" and {len(missed) - SHOWN} more" if len(missed) > SHOWN else ""
            assert not missed, (
                f"stage {stage.name}: no gradient reaches {', '.join(missed[:SHOWN])}{more}. Mend the path from the "
                "loss, leave out what nothing can train, or declare it with the reason: "
                f"unused_parameters = ({missed[0]!r},)"
            )


def _leaves(loss: Tensor) -> Iterator[Tensor]:
    """What a loss would send gradients to."""
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
            if hasattr(node, "variable"):
                yield node.variable


def _unreached(module: nn.Module) -> list[str]:
    """Parameters of a method's own module whose gradient is missing, zero, or no more than rounding."""
    largest = {name: 0.0 if p.grad is None else float(p.grad.abs().max()) for name, p in module.named_parameters()}
    floor = ROUNDING * max(largest.values(), default=0.0)
    return [name for name, value in largest.items() if not value > floor]


def _unreached_though_read(module: nn.Module) -> list[str]:
    """Parameters of a network that the loss reads and whose gradient is zero throughout."""
    return [name for name, p in module.named_parameters() if p.grad is not None and not p.grad.any()]


def losses_repeat(bench: Bench) -> None:
    """At one seed a stage's losses are the same twice: no generator of its own, no hidden state outside its modules."""
    for stage in bench.stages():
        states = {
            name: {k: v.clone() for k, v in m.state_dict().items()} for name, m in bench.networks.modules().items()
        }
        first = bench.losses(stage, make_batch(stage))
        for name, module in bench.networks.modules().items():
            module.load_state_dict(states[name])
        again = bench.losses(stage, make_batch(stage))
        assert first.keys() == again.keys(), f"stage {stage.name}: other terms the second time"
        for name, value in first.items():
            assert torch.equal(value, again[name]), f"stage {stage.name}: '{name}' was {value}, then {again[name]}"


def ignored_options_change_nothing(bench: Bench) -> None:
    """A stage has the same losses under other values of the options that it says to ignore."""
    for stage in bench.stages():
        for option in sorted(stage.ignores):
            expected = bench.losses(stage, make_batch(stage))
            for value in _other_values(bench.method.config, option):
                config = bench.method.config.model_copy(update={option: value})
                method = _make_method(type(bench.method), config, bench.method.pair)
                other = Bench(Networks(bench.networks.teacher, bench.networks.student, method), method)
                same = next((there for there in other.stages() if there.name == stage.name), None)
                assert same is not None, f"stage {stage.name} ignores '{option}' and is not there with {option}={value}"
                found = other.losses(same, make_batch(same))
                unchanged = found.keys() == expected.keys() and all(map(torch.equal, found.values(), expected.values()))
                assert unchanged, (
                    f"stage {stage.name} ignores '{option}', and {option}={value} changes its losses. "
                    "Take it out of `ignores` (of `task_options`)."
                )


def _other_values(config: MethodConfig, option: str) -> list[Any]:
    """Return values of an option beside the one it has: the other words, the other truth value, another number."""
    fields = type(config).model_fields
    assert option in fields, f"`ignores` names '{option}', which is no option"
    value: Any = getattr(config, option)
    if isinstance(value, bool):
        return [not value]
    return [word for word in get_args(fields[option].annotation) if word != value] or [value * 2 + 1]


def deployment_segments(bench: Bench) -> None:
    """What is deployed gives logits for every class."""
    assert bench.networks.student is not None
    bench.networks.freeze_all_but(frozenset())
    model = bench.method.deploy(bench.networks.student, bench.networks.teacher)
    with torch.no_grad():
        logits = model(torch.rand(2, 3, *SIZE)).logits
    assert logits.shape[:2] == (2, CLASSES), f"deployed logits have shape {tuple(logits.shape)}"


CHECKS: tuple[Callable[[Bench], None], ...] = (
    stages_are_sound,
    losses_are_finite_scalars,
    passes_are_declared,
    exactly_trains_moves,
    gradients_reach_what_trains,
    losses_repeat,
    ignored_options_change_nothing,
    deployment_segments,
)


def _copy(module: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in module.state_dict().values()]


def check_method(name: str) -> list[tuple[str, str, str]]:
    """Runs every check on every pair; returns (pair, check, fault), the fault empty where the check passed."""
    plugin = load_method(name).usable()
    rows = []
    for text in PAIRS:
        for check in CHECKS:
            fault = ""
            try:
                check(make_bench(plugin, find_pair(text)))
            except AssertionError as error:
                fault = str(error) or describe(error)
            except Exception as error:  # a plug-in's own bug is a finding too, and the other checks go on
                fault = describe(error)
            rows.append((text, check.__name__, fault))
    return rows
