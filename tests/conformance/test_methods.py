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

from kdbench.method import Method, Stage
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


FAULTS = {
    "two stages of one name": (
        "stages_are_sound",
        "distinct names",
        """
        def stages(self):
            return (self.joint_stage(), self.joint_stage())
        """,
    ),
    "no stage": (
        "stages_are_sound",
        "distinct names",
        """
        def stages(self):
            return ()
        """,
    ),
    "a stage that trains nothing": (
        "stages_are_sound",
        "nothing trains",
        """
        def stages(self):
            return (Stage("joint", Phase.TASK, frozenset(), self.loss),)
        """,
    ),
    "an unknown part": (
        "stages_are_sound",
        "unknown parts student.head",
        """
        def stages(self):
            return (Stage("joint", Phase.TASK, frozenset({"student.head"}), self.loss),)
        """,
    ),
    "an unknown part to reset": (
        "stages_are_sound",
        "unknown parts head",
        """
        def stages(self):
            return (Stage("joint", Phase.TASK, STUDENT, self.loss, reset=frozenset({"head"})),)
        """,
    ),
    "a parameter outside of a sub-module": (
        "stages_are_sound",
        "holds scale directly",
        """
        def __init__(self, config, pair):
            super().__init__(config, pair)
            self.scale = nn.Parameter(torch.ones(()))
        """,
    ),
    "a buffer outside of a sub-module": (
        "stages_are_sound",
        "holds bank directly",
        """
        def __init__(self, config, pair):
            super().__init__(config, pair)
            self.register_buffer("bank", torch.zeros(3))
        """,
    ),
    "NaN": (
        "losses_are_finite_scalars",
        "loss 'hint' is nan",
        """
        def hint(self, ours, theirs):
            return self.adapter(ours.features.pooled).square().mean() * float("nan")
        """,
    ),
    "a mean over labelled pixels where there are none": (
        "losses_are_finite_scalars",
        "loss 'pixels' is nan .all ignored: True.",
        """
        def loss(self, batch, student, teacher):
            logits = F.interpolate(student(batch.image).logits, batch.label.shape[-2:])
            return {"pixels": F.cross_entropy(logits, batch.label, ignore_index=IGNORE)}
        """,
    ),
    "a loss an image": (
        "losses_are_finite_scalars",
        r"loss 'hint' has shape \(4,\), not a scalar",
        """
        def hint(self, ours, theirs):
            return (self.adapter(ours.features.pooled) - theirs.pooled).square().mean(1)
        """,
    ),
    "a logarithm of zero": (
        "losses_are_finite_scalars",
        "loss 'hint' is -inf",
        """
        def hint(self, ours, theirs):
            return (0 * self.adapter(ours.features.pooled)).abs().mean().log()
        """,
    ),
    "a second pass that is not declared": (
        "passes_are_declared",
        r"sends an image through the student 2 times and declares 1\. Write Stage\(\.\.\., student_forwards=2\)",
        """
        def loss(self, batch, student, teacher):
            student.encode(batch.image)
            output = student(batch.image)
            hint = self.hint(output, teacher.encode(batch.image))
            return {**student.task_loss(output, batch.label), "hint": hint}
        """,
    ),
    "a part that trains but is not read": (
        "exactly_trains_moves",
        "student.decoder did not move",
        """
        def loss(self, batch, student, teacher):
            theirs = teacher.encode(batch.image)
            return {"hint": (self.adapter(student.encode(batch.image).pooled) - theirs.pooled).square().mean()}
        """,
    ),
    "an adapter that trains but is detached": (
        "exactly_trains_moves",
        "adapter did not move",
        """
        def hint(self, ours, theirs):
            return (self.adapter(ours.features.pooled).detach() - theirs.pooled).square().mean()
        """,
    ),
    "a frozen module whose buffer follows the batch": (
        "exactly_trains_moves",
        "memory moved",
        """
        def __init__(self, config, pair):
            super().__init__(config, pair)
            self.adapter = nn.Linear(pair.student.final_channels, pair.teacher.final_channels)
            self.memory = nn.BatchNorm1d(pair.teacher.final_channels)

        def stages(self):
            return (Stage("joint", Phase.TASK, STUDENT | {"adapter"}, self.loss),)

        def hint(self, ours, theirs):
            self.memory.running_mean.lerp_(theirs.pooled.mean(0), 0.1)
            return (self.adapter(ours.features.pooled) - self.memory(theirs.pooled)).square().mean()
        """,
    ),
    "a frozen module that is put into training mode": (
        "exactly_trains_moves",
        "memory",
        """
        def __init__(self, config, pair):
            super().__init__(config, pair)
            self.adapter = nn.Linear(pair.student.final_channels, pair.teacher.final_channels)
            self.memory = nn.Dropout(0.5)

        def stages(self):
            return (Stage("joint", Phase.TASK, STUDENT | {"adapter"}, self.loss),)

        def hint(self, ours, theirs):
            return (self.adapter(ours.features.pooled) - self.memory.train()(theirs.pooled)).square().mean()
        """,
    ),
    "an adapter that stands in a list": (
        "gradients_reach_what_trains",
        r"reads 2 parameters that no sub-module holds, one of shape \(\d+",
        """
        def __init__(self, config, pair):
            super().__init__(config, pair)
            self.adapter = nn.Linear(pair.student.final_channels, pair.teacher.final_channels)
            self.more = [nn.Linear(pair.student.final_channels, pair.teacher.final_channels)]

        def hint(self, ours, theirs):
            both = self.adapter(ours.features.pooled) + self.more[0](ours.features.pooled)
            return (both - theirs.pooled).square().mean()
        """,
    ),
    "an adapter that gets no gradient": (
        "gradients_reach_what_trains",
        "no gradient reaches adapter",
        """
        def hint(self, ours, theirs):
            with torch.no_grad():
                projected = self.adapter(ours.features.pooled)
            return (projected - theirs.pooled).square().mean()
        """,
    ),
    "an adapter whose gradient is zero": (
        "gradients_reach_what_trains",
        "no gradient reaches adapter",
        """
        def hint(self, ours, theirs):
            return 0 * (self.adapter(ours.features.pooled) - theirs.pooled).square().mean()
        """,
    ),
    "a bias that the loss takes out again": (
        "gradients_reach_what_trains",
        r"stage joint: no gradient reaches adapter.bias\. .*unused_parameters = \('adapter.bias',\)",
        """
        def hint(self, ours, theirs):
            # Over the positions, so that what is added to all of them cancels; a gradient of rounding errors is left.
            maps = self.adapter(ours.features.final.movedim(1, 3)), theirs.final.movedim(1, 3)
            ours, theirs = (map_.flatten(1, 2).log_softmax(1) for map_ in maps)
            return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        """,
    ),
    "one of two layers left out of the loss": (
        "gradients_reach_what_trains",
        "no gradient reaches adapter.1.weight, adapter.1.bias",
        """
        def __init__(self, config, pair):
            super().__init__(config, pair)
            widths = pair.student.final_channels, pair.teacher.final_channels
            self.adapter = nn.ModuleList(nn.Linear(*widths) for _ in range(2))

        def hint(self, ours, theirs):
            return (self.adapter[0](ours.features.pooled) - theirs.pooled).square().mean()
        """,
    ),
    "a level of the student that is read in vain": (
        "gradients_reach_what_trains",
        r"no gradient reaches student.encoder.body.layer2\..* and \d+ more\.",
        """
        def loss(self, batch, student, teacher):
            features = student.encode(batch.image)
            shallow, deep = features.levels[0].square().mean(), 0 * features.final.square().mean()
            hint = self.adapter(features.pooled.detach()).square().mean()
            return {"shallow": shallow, "deep": deep, "hint": hint}
        """,
    ),
    "a generator of its own": (
        "losses_repeat",
        "'hint' was",
        """
        generator = torch.Generator().manual_seed(0)

        def hint(self, ours, theirs):
            noise = torch.rand(theirs.pooled.shape, generator=self.generator)
            return (self.adapter(ours.features.pooled) - theirs.pooled * noise).square().mean()
        """,
    ),
    "hidden state": (
        "losses_repeat",
        "'hint' was",
        """
        calls = 0

        def hint(self, ours, theirs):
            self.calls += 1
            return self.calls * (self.adapter(ours.features.pooled) - theirs.pooled).square().mean()
        """,
    ),
    "a hidden buffer that no checkpoint holds": (
        "losses_repeat",
        "'hint' was",
        """
        def __init__(self, config, pair):
            super().__init__(config, pair)
            self.adapter = nn.Linear(pair.student.final_channels, pair.teacher.final_channels)
            self.adapter.register_buffer("seen", torch.zeros(()), persistent=False)

        def hint(self, ours, theirs):
            self.adapter.seen += 1
            return self.adapter.seen * (self.adapter(ours.features.pooled) - theirs.pooled).square().mean()
        """,
    ),
    "terms that come and go": (
        "losses_repeat",
        "other terms the second time",
        """
        calls = 0

        def loss(self, batch, student, teacher):
            self.calls += 1
            return {f"term {self.calls}": student(batch.image).logits.square().mean()}
        """,
    ),
    "a deployment with fewer classes": (
        "deployment_segments",
        r"deployed logits have shape \(2, 4, ",
        """
        def deploy(self, student, teacher):
            class Fewer(nn.Module):
                def forward(self, image):
                    output = student(image)
                    return SegOutput(output.features, output.logits[:, 1:])

            return Fewer()
        """,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails_its_check(fault: str, bench) -> None:
    name, message, further = FAULTS[fault]
    check = next(check for check in CHECKS if check.__name__ == name)
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
    _, _, further = FAULTS["a bias that the loss takes out again"]
    (check,) = (check for check in CHECKS if check.__name__ == "gradients_reach_what_trains")
    check(bench(dedent(further) + 'unused_parameters = ("adapter.b*",)'))


def test_what_starts_at_zero_hides_nothing_behind_it(bench) -> None:
    further = """
        def __init__(self, config, pair):
            super().__init__(config, pair)
            inner, width = pair.student.final_channels, pair.teacher.final_channels
            self.adapter = nn.Sequential(nn.Linear(inner, 3), nn.Linear(3, width))
            nn.init.zeros_(self.adapter[1].weight)
    """
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


def test_every_check_has_a_fault_that_fails_it() -> None:
    assert {check.__name__ for check in CHECKS} == {name for name, _, _ in FAULTS.values()}


def test_a_teachers_decoder_that_is_not_in_play_cannot_be_read(bench) -> None:
    further = """
        def loss(self, batch, student, teacher):
            return {"kd": (student(batch.image).logits - teacher(batch.image).logits).square().mean()}
    """
    with pytest.raises(KdbenchError, match=r"reads the teacher.decoder, .*Add it to the stage's `uses`"):
        CHECKS[1](bench(further))


def test_check_method_reports_every_check_and_the_fault(bench, tmp_path: Path) -> None:
    bench(FAULTS["a generator of its own"][2])
    rows = list(check_method(str(tmp_path / "mine.py")))
    assert [(pair, check) for pair, check, _ in rows] == [(PAIR, check.__name__) for check in CHECKS]
    assert {check for _, check, fault in rows if fault} == {"losses_repeat"}
