"""Every method that is found keeps the contract on every kind of pair; and every check fails where it should."""

from __future__ import annotations

import copy
import re
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from textwrap import dedent, indent

import pytest

from kdbench import conformance
from kdbench.conformance import CHECKS, PAIRS, Bench, check_method, find_pair, make_bench
from kdbench.errors import KdbenchError
from kdbench.plugins import load_method, method_names


@cache
def built(method: str, pair: str) -> Bench:
    plugin = load_method(method)
    if plugin.missing:
        pytest.skip(f"optional: {plugin.missing}")
    return make_bench(plugin, find_pair(pair))


@pytest.mark.parametrize("method", method_names())
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_method_keeps_the_contract(method: str, pair: str, check) -> None:
    # Checks step and set modes; a copy is cheaper than drawing the weights again.
    check(copy.deepcopy(built(method, pair)))


PAIR = "dinov2-s:resnet18"
SOUND = '''
import torch
import torch.nn.functional as F
from torch import nn

from kdbench.method import Method, MethodConfig, Stage
from kdbench.types import IGNORE, STUDENT, Part, Phase, SegOutput


class Mine(Method):
    """Mine."""

    def __init__(self, config, pair):
        super().__init__(config, pair)
        self.adapter = nn.Linear(pair.student.final_channels, pair.teacher.final_channels)

    reads_teacher_logits = False

    def hint(self, ours, theirs):
        return (self.adapter(ours.features.pooled) - theirs.pooled).square().mean()

    def loss(self, batch, student, teacher):
        output = student(batch.image)
        hint = self.hint(output, teacher.encode(batch.image))
        return {**student.task_loss(output, batch.label), "hint": hint}
'''


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A method that keeps the contract, with further definitions that replace some of its own, on one pair."""
    networks = built("baseline", PAIR).networks
    encoders = dict(zip(PAIR.split(":"), (networks.teacher.encoder, networks.student.encoder), strict=True))
    # Drawing weights takes longest, and for these faults any will do.
    monkeypatch.setattr(conformance, "build_toy", lambda role: copy.deepcopy(encoders[role.name]))
    monkeypatch.setattr(conformance, "PAIRS", (PAIR,))

    def make(further: str = "") -> Bench:
        path = tmp_path / "mine.py"
        path.write_text(SOUND + indent(dedent(further), "    "))
        return make_bench(load_method(str(path)), find_pair(PAIR))

    return make


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_sound_method_passes(check, bench) -> None:
    check(bench())


def replaced(init: str = "", hint: str = "", stages: str = "", loss: str = "", more: str = "") -> str:
    """Definitions that replace those of Mine: lines after super().__init__(), returned values, lines of loss()."""
    parts = [dedent(more)]
    if init:
        start = "def __init__(self, config, pair):\n    super().__init__(config, pair)\n"
        parts.append(start + "    widths = pair.student.final_channels, pair.teacher.final_channels\n" + _body(init))
    if hint:
        parts.append("def hint(self, ours, theirs):\n" + _body(hint))
    if stages:
        parts.append(f"def stages(self):\n    return {stages}\n")
    if loss:
        parts.append("def loss(self, batch, student, teacher):\n" + _body(loss))
    return "\n".join(parts)


def _body(lines: str) -> str:
    return indent(dedent(lines).strip(), "    ") + "\n"


ERROR = "(self.adapter(ours.features.pooled) - theirs.pooled).square().mean()"
ADAPTER = "self.adapter = nn.Linear(*widths)\n"
WITHOUT_MEMORY = '(Stage("joint", Phase.TASK, STUDENT | {"adapter"}, self.loss),)'
CANCELLED_BIAS = """
    # Over the positions, so that what is added to all of them cancels; a gradient of rounding errors is left.
    maps = self.adapter(ours.features.final.movedim(1, 3)), theirs.final.movedim(1, 3)
    ours, theirs = (map_.flatten(1, 2).log_softmax(1) for map_ in maps)
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
"""
WEIGHT = """
    class Config(MethodConfig):
        weight: float = 1.0
"""
IGNORING = '(Stage("joint", Phase.TASK, STUDENT | {"adapter"}, self.loss, ignores=frozenset({"weight"})),)'
OWN_GENERATOR = replaced(
    more="generator = torch.Generator().manual_seed(0)",
    hint=f"return {ERROR} * torch.rand((), generator=self.generator)",
)

FAULTS = {
    "stages_are_sound": [
        ("two stages of one name", "distinct names", replaced(stages="(self.joint_stage(), self.joint_stage())")),
        ("no stage", "distinct names", replaced(stages="()")),
        (
            "a stage that trains nothing", "nothing trains",
            replaced(stages='(Stage("joint", Phase.TASK, frozenset(), self.loss),)'),
        ),
        (
            "an unknown part", "unknown parts student.head",
            replaced(stages='(Stage("joint", Phase.TASK, frozenset({"student.head"}), self.loss),)'),
        ),
        (
            "an unknown part to reset", "unknown parts head",
            replaced(stages='(Stage("joint", Phase.TASK, STUDENT, self.loss, reset=frozenset({"head"})),)'),
        ),
        (
            "a parameter outside of a sub-module", "holds scale directly",
            replaced(init="self.scale = nn.Parameter(torch.ones(()))"),
        ),
        (
            "a buffer outside of a sub-module", "holds bank directly",
            replaced(init='self.register_buffer("bank", torch.zeros(3))'),
        ),
    ],
    "losses_are_finite_scalars": [
        ("NaN", "loss 'hint' is nan", replaced(hint=f"return {ERROR} * float('nan')")),
        (
            "a mean over labelled pixels where there are none", "loss 'pixels' is nan .all ignored: True.",
            replaced(loss="""
                logits = F.interpolate(student(batch.image).logits, batch.label.shape[-2:])
                return {"pixels": F.cross_entropy(logits, batch.label, ignore_index=IGNORE)}
            """),
        ),
        (
            "a loss an image", r"loss 'hint' has shape \(4,\), not a scalar",
            replaced(hint=f"return {ERROR.replace('mean()', 'mean(1)')}"),
        ),
        ("a logarithm of zero", "loss 'hint' is -inf", replaced(hint=f"return (0 * {ERROR}).log()")),
    ],
    "passes_are_declared": [
        (
            "a second pass that is not declared",
            r"sends an image through the student 2 times and declares 1\. Write Stage\(\.\.\., student_forwards=2\)",
            replaced(loss="""
                student.encode(batch.image)
                return student.task_loss(student(batch.image), batch.label)
            """),
        )
    ],
    "exactly_trains_moves": [
        (
            "a part that trains but is not read", "student.decoder did not move",
            replaced(loss="""
                theirs = teacher.encode(batch.image)
                return {"hint": (self.adapter(student.encode(batch.image).pooled) - theirs.pooled).square().mean()}
            """),
        ),
        (
            "an adapter that trains but is detached", "adapter did not move",
            replaced(hint="return (self.adapter(ours.features.pooled).detach() - theirs.pooled).square().mean()"),
        ),
        (
            "a frozen module whose buffer follows the batch", "memory moved",
            replaced(
                init=ADAPTER + "self.memory = nn.BatchNorm1d(widths[1])",
                stages=WITHOUT_MEMORY,
                hint=f"self.memory.running_mean.lerp_(theirs.pooled.mean(0), 0.1)\nreturn {ERROR}",
            ),
        ),
        (
            "a frozen module that is put into training mode", "memory",
            replaced(
                init=ADAPTER + "self.memory = nn.BatchNorm1d(widths[1])",
                stages=WITHOUT_MEMORY,
                hint=f"self.memory.train()\nreturn {ERROR}",
            ),
        ),
    ],
    "gradients_reach_what_trains": [
        (
            "an adapter that stands in a list",
            r"reads 2 parameters that no sub-module holds, one of shape \(\d+",
            replaced(
                init=ADAPTER + "self.more = [nn.Linear(*widths)]",
                hint=f"return {ERROR} + self.more[0](ours.features.pooled).square().mean()",
            ),
        ),
        (
            "an adapter that gets no gradient", "no gradient reaches adapter",
            replaced(hint=f"with torch.no_grad():\n    error = {ERROR}\nreturn error + ours.features.pooled.mean()"),
        ),
        ("an adapter whose gradient is zero", "no gradient reaches adapter", replaced(hint=f"return 0 * {ERROR}")),
        (
            "a bias that the loss takes out again",
            r"stage joint: no gradient reaches adapter.bias\. .*unused_parameters = \('adapter.bias',\)",
            replaced(hint=CANCELLED_BIAS),
        ),
        (
            "one of two layers left out of the loss",
            "no gradient reaches adapter.1.weight, adapter.1.bias",
            replaced(
                init="self.adapter = nn.ModuleList(nn.Linear(*widths) for _ in range(2))",
                hint=f"return {ERROR.replace('adapter', 'adapter[0]')}",
            ),
        ),
        (
            "a level of the student that is read in vain",
            r"no gradient reaches student.encoder.body.layer2\..* and \d+ more\.",
            replaced(loss="""
                features = student.encode(batch.image)
                shallow, deep = features.levels[0].square().mean(), 0 * features.final.square().mean()
                hint = self.adapter(features.pooled.detach()).square().mean()
                return {"shallow": shallow, "deep": deep, "hint": hint}
            """),
        ),
    ],
    "losses_repeat": [
        ("a generator of its own", "'hint' was", OWN_GENERATOR),
        (
            "hidden state", "'hint' was",
            replaced(more="calls = 0", hint=f"self.calls += 1\nreturn self.calls * {ERROR}"),
        ),
        (
            "a hidden buffer that no checkpoint holds", "'hint' was",
            replaced(
                init=ADAPTER + 'self.adapter.register_buffer("seen", torch.zeros(()), persistent=False)',
                hint=f"self.adapter.seen += 1\nreturn self.adapter.seen * {ERROR}",
            ),
        ),
        (
            "terms that come and go", "other terms the second time",
            replaced(
                more="calls = 0",
                loss="""
                    self.calls += 1
                    return {f"term {self.calls}": student(batch.image).logits.square().mean()}
                """,
            ),
        ),
    ],
    "ignored_options_change_nothing": [
        (
            "an option that the loss reads", "ignores 'weight', and weight=3.0 changes its losses",
            replaced(stages=IGNORING, more=WEIGHT, hint=f"return self.config.weight * {ERROR}"),
        ),
        (
            "an option that the modules depend on", "ignores 'weight', and weight=3.0 changes its losses",
            replaced(stages=IGNORING, more=WEIGHT, init=f"{ADAPTER}self.adapter.weight.data *= config.weight"),
        ),
        ("no option", "'weight', which is no option", replaced(stages=IGNORING)),
    ],
    "deployment_segments": [
        (
            "a deployment with fewer classes", r"deployed logits have shape \(2, 4, ",
            replaced(more="""
                def deploy(self, student, teacher):
                    class Fewer(nn.Module):
                        def forward(self, image):
                            output = student(image)
                            return SegOutput(output.features, output.logits[:, 1:])

                    return Fewer()
            """),
        )
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("check", "message", "further"),
    [
        pytest.param(check, message, further, id=fault)
        for check in CHECKS
        for fault, message, further in FAULTS[check.__name__]
    ],
)
def test_a_fault_fails_its_check(check, message: str, further: str, bench) -> None:
    with pytest.raises((AssertionError, KdbenchError), match=message):
        check(bench(further))


def test_terms_do_not_replace_a_loss_of_the_student(tmp_path: Path) -> None:
    plugin = tmp_path / "replaces.py"
    plugin.write_text(
        "from kdbench.method import LogitMethod\n\n\nclass Replaces(LogitMethod):\n"
        "    def terms(self, batch, student, teacher):\n        return {'task': (student - teacher).square().mean()}\n",
        encoding="utf-8",
    )
    faults = [fault for _, _, fault in check_method(str(plugin)) if fault]
    assert faults
    assert all("terms() names a loss 'task', which the loss has already. Give it another name." in f for f in faults)


def test_a_fault_in_an_authors_code_has_its_line(bench, tmp_path: Path) -> None:
    bench("def hint(self, ours, theirs):\n    return ours.nothing\n")
    faults = [fault for _, _, fault in check_method(str(tmp_path / "mine.py")) if fault]
    assert faults
    assert all(re.search(r"AttributeError: .* \(at mine\.py, line \d+, in hint\)", fault) for fault in faults)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def stages(self):\n    return (self.joint_stage())", r"stages\(\) returns one Stage\. Return a tuple"),
        ('unused_parameters = ("adapter.*")', r"unused_parameters is the text 'adapter\.\*'\. Write a tuple"),
    ],
)
def test_a_forgotten_comma_is_told(body: str, message: str, bench) -> None:
    with pytest.raises(KdbenchError, match=message):
        bench(body).stages()


def test_a_parameter_declared_unused_needs_no_gradient(bench) -> None:
    further = replaced(hint=CANCELLED_BIAS, more='unused_parameters = ("adapter.b*",)')
    conformance.gradients_reach_what_trains(bench(further))


def test_what_starts_at_zero_hides_nothing_behind_it(bench) -> None:
    further = replaced(
        init="""
        self.adapter = nn.Sequential(nn.Linear(widths[0], 3), nn.Linear(3, widths[1]))
        nn.init.zeros_(self.adapter[1].weight)
    """
    )
    for check in CHECKS:
        check(bench(further))


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("method", [name for name in method_names() if load_method(name).method.unused_parameters])
def test_parameters_declared_unused_get_no_gradient(method: str, pair: str) -> None:
    bench = copy.deepcopy(built(method, pair))
    bench.method.unused_parameters = ()
    parameters = [
        f"{name}.{key}" for name, part in bench.networks.modules().items() for key, _ in part.named_parameters()
    ]
    declared = [
        name for name in parameters if any(fnmatch(name, pattern) for pattern in type(bench.method).unused_parameters)
    ]
    with pytest.raises(AssertionError, match="no gradient reaches ") as fault:
        conformance.gradients_reach_what_trains(bench)
    assert f"no gradient reaches {', '.join(declared)}. Mend" in str(fault.value)


def test_a_teachers_decoder_that_is_not_in_play_cannot_be_read(bench) -> None:
    loss = 'return {"kd": (student(batch.image).logits - teacher(batch.image).logits).square().mean()}'
    with pytest.raises(KdbenchError, match=r"reads the teacher.decoder, .*Add it to the stage's `uses`"):
        CHECKS[1](bench(replaced(loss=loss)))


def test_check_method_reports_every_check_and_the_fault(bench, tmp_path: Path) -> None:
    bench(OWN_GENERATOR)
    rows = list(check_method(str(tmp_path / "mine.py")))
    assert [(pair, check) for pair, check, _ in rows] == [(PAIR, check.__name__) for check in CHECKS]
    assert {check for _, check, fault in rows if fault} == {"losses_repeat"}
