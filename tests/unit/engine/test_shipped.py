"""Stages that are common to all seeds: one key, one result, fresh or shipped; and the proof that lets them age."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdbench.engine import keys as engine_keys
from kdbench.engine import store as engine_store
from kdbench.engine.grid import Done
from kdbench.engine.plan import make_plan
from kdbench.engine.preflight import describe
from kdbench.engine.shipped import ShippedStage, shipped_stages
from kdbench.engine.states import to_half
from kdbench.errors import KdbenchError
from kdbench.progress import Silent
from kdbench.protocol import PROTOCOLS
from kdbench.report.boards import boards
from kdbench.report.frame import Entry, to_frame
from kdbench.tools.shipping import StageVerifier, deviation, ship_stages

Run = Callable[..., list[Done]]
Plan = Callable[..., tuple]


@pytest.fixture
def shipped(plan_cells: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ShippedStage:
    """GKD's proxy stage for the usual smoke request, as the package would ship it; nobody may write there."""
    folder = tmp_path / "shipped"
    context, cells = plan_cells(store=tmp_path / "makers-store")
    (stage,) = ship_stages(context, cells, folder)
    monkeypatch.setattr(engine_store, "SHIPPED", folder)
    return stage


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_fresh_equals_shipped_bit_for_bit_and_the_record_tells_them_apart(
    shipped: ShippedStage, run_cells: Run, tmp_path: Path
) -> None:
    """Law 4, from a folder without permission to write."""
    for path in (*shipped.path.iterdir(), shipped.path, shipped.path.parent):
        path.chmod(0o444 if path.is_file() else 0o555)
    before = files(shipped.path.parent)
    (ours,) = run_cells(store=tmp_path / "empty", results=tmp_path / "a")
    (fresh,) = run_cells(store=tmp_path / "empty", results=tmp_path / "b", fresh=True)
    (again,) = run_cells(store=tmp_path / "empty", results=tmp_path / "c")
    assert files(shipped.path.parent) == before
    for path in (shipped.path.parent, shipped.path):
        path.chmod(0o755)
    records = [done.record for done in (ours, fresh, again)]
    assert [record.run.cached for record in records] == [["proxy"], [], ["proxy", "source", "task"]]
    assert [record.run.shipped for record in records] == [["proxy"], [], []]
    assert all(set(record.run.stage_devices) == {"proxy"} for record in records)
    assert len({record.result.model_dump_json() for record in records}) == 1


def test_a_board_says_what_was_shipped(shipped: ShippedStage, run_cells: Run, tmp_path: Path) -> None:
    (done,) = run_cells(store=tmp_path / "empty")
    (board,) = boards(to_frame([Entry(done.record)]))
    assert board.rows.footnote["gkd"] == "proxy: shipped"


def test_a_dry_run_says_what_is_shipped_stored_or_to_do(
    shipped: ShippedStage, plan_cells: Plan, run_cells: Run, tmp_path: Path
) -> None:
    def states(**fields: object) -> list[str]:
        context, cells = plan_cells(store=tmp_path / "empty", **fields)
        lines = [line.split("  ") for line in describe(context, cells) if " trains " in line]
        return [next(state for state in ("shipped", "stored", "to do") if f"{state} " in " ".join(x)) for x in lines]

    assert states() == ["shipped", "to do", "to do"]
    assert states(fresh=True) == ["to do"] * 3
    run_cells(store=tmp_path / "empty", fresh=True)
    assert states() == ["stored"] * 3


def test_only_what_later_stages_read_is_shipped_in_half_precision(shipped: ShippedStage) -> None:
    card = shipped.card
    assert card.parts == ["student.encoder"]
    assert set(card.key_parts["trains"]) > {"student.encoder"}
    state = shipped.load(0, "student.encoder")
    assert all(torch.equal(value, value.half().float()) for value in state.values() if value.is_floating_point())
    numbers = sum(value.numel() for value in state.values())
    assert (shipped.path / "snapshot-0.safetensors").stat().st_size < 2.2 * numbers
    with pytest.raises(KdbenchError, match=r"holds student\.encoder, and this run reads token_head too\. .*--fresh"):
        shipped.load(0, "token_head")


def test_rounding_leaves_integers_running_statistics_and_what_half_precision_cannot_hold() -> None:
    state = {
        "weight": torch.tensor([1 / 3]), "large": torch.tensor([1e6, 1.0]), "hidden": torch.tensor([-torch.inf]),
        "bn.running_var": torch.tensor([1 / 3]), "count": torch.tensor([2**20 + 1]),
    }  # fmt: skip
    rounded = to_half(state)
    # 1/3 in half precision: 1365 / 4096.
    assert rounded.pop("weight").item() == 1365 / 4096
    assert all(torch.equal(value, state[name]) and value.dtype == state[name].dtype for name, value in rounded.items())


@pytest.mark.parametrize("place", ["c2a", "p2r"])
@pytest.mark.parametrize("pair", ["dinov2-l:resnet50", "dinov2-b:deit-s", "dinov2-b:dinov2-s"])
def test_the_stages_that_are_shipped_are_those_that_mini_asks_for(
    pair: str, place: str, plan_cells: Plan, tmp_path: Path
) -> None:
    """Else the usual command would train them, for an hour. `models verify --adopt` mends a changed key."""
    for seed in (0, 1):
        asked = {"pairs": (pair,), "benchmarks": (place,), "protocol": "mini", "seeds": (seed,)}
        context, (cell,) = plan_cells(**asked, store=tmp_path / "empty")
        origins = {stage.stage.name: stage.folder.origin for stage in make_plan(context, cell).stages}
        assert origins == {"proxy": "shipped", "source": None, "task": None}


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\0"), r"snapshot-0\.safetensors is damaged: sha256"),
        (lambda path: path.unlink(), r"snapshot-0\.safetensors is missing"),
        (lambda path: path.with_name("stage.json").write_text("{}"), r"stage\.json is damaged: cell: Field required"),
    ],
    ids=["changed", "missing", "card"],
)
def test_a_damaged_shipped_file_is_an_error_that_names_it_and_the_way_round(
    shipped: ShippedStage, run_cells: Run, tmp_path: Path, harm: Callable[[Path], object], said: str
) -> None:
    harm(shipped.path / "snapshot-0.safetensors")
    (done,) = run_cells(store=tmp_path / "empty")
    assert done.record.status == "failed"
    with pytest.raises(KdbenchError, match=rf"{shipped.path.name}/{said}.*--fresh"):
        raise KdbenchError(done.record.error)
    (done,) = run_cells(store=tmp_path / "empty", fresh=True)
    assert done.record.status == "done"


def proxy_key(plan_cells: Plan, **fields: object) -> str:
    context, cells = plan_cells(**fields)
    return make_plan(context, cells[-1]).stages[0].key


def test_a_common_stages_key_is_the_same_on_another_processor(plan_cells: Plan) -> None:
    """Random weights differ in their last bit there: this method draws normal ones."""
    code = (
        "from kdbench.api import make_request as request; from kdbench.engine.grid import expand, make_context;"
        "from kdbench.engine.plan import make_plan; from kdbench.progress import Silent;"
        "spec = request(print, method='lightly', pair='dinov2-s:deit-s', benchmark='g2c', protocol='smoke',"
        " references=False, device='cpu', watch='none'); context = make_context(spec, Silent());"
        "plan = make_plan(context, expand(spec, context)[0]);"
        "print(plan.stages[0].key, plan.stages[1].key)"
    )
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default"}
    there = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.split()[0] == proxy_key(plan_cells, methods=("lightly",))


CLASSES = """
    def __init__(self, config, pair):
        super().__init__(config, pair)
        from torch import nn
        {first}
        self.head = nn.Linear(4, 4)

    def stages(self):
        from kdbench.types import ENCODERS
        trains = frozenset({{"student.encoder", "head"}})
        first = Stage("proxy", Phase.PROXY, trains=trains, uses=ENCODERS, loss=self.loss)
        return (first, Stage("task", Phase.TASK, trains=STUDENT, uses=STUDENT, loss=task_loss))
"""


@pytest.mark.parametrize("seed", [0, 1])
def test_what_a_stage_resets_is_drawn_anew(plan_cells: Plan, seed: int) -> None:
    """Else the common stage's seed would go on with the heads that its encoder was trained towards."""
    context, (cell,) = plan_cells(seeds=(seed,))
    proxy, source, _ = make_plan(context, cell).stages
    heads = [name for name in source.stage.reset if proxy.inputs[name].state()]
    assert heads
    for name in heads:
        first, second = proxy.inputs[name].state(), source.inputs[name].state()
        assert first.keys() == second.keys()
        assert not any(torch.equal(first[key], second[key]) for key in first if first[key].ndim > 1)


@pytest.mark.parametrize(("first", "same"), [("pass", True), ("nn.Linear(pair.classes, 4)", False)])
def test_the_class_count_matters_where_it_changes_what_a_method_draws(
    plan_cells: Plan, plugin: Callable[..., str], first: str, same: bool
) -> None:
    """In the second, a layer that is thrown away moves the generator by the class count before the head is drawn."""
    path = plugin("made", CLASSES.format(first=first))
    street, aerial = (proxy_key(plan_cells, methods=(path,), benchmarks=(name,)) for name in ("g2c", "p2r"))
    assert (street == aerial) is same


def test_verify_finds_a_stage_current_stale_or_computed_otherwise(
    shipped: ShippedStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = StageVerifier(tmp_path / "makers-store", "cpu", Silent())
    assert "differ by 0.0e+00" in verifier.verify(shipped)
    monkeypatch.setattr(engine_keys, "ENGINE_VERSION", engine_keys.ENGINE_VERSION + 1)
    with pytest.raises(KdbenchError, match=rf"{shipped.path.name} is stale.*\(changed: engine\).*--adopt"):
        verifier.verify(shipped)
    smoke = PROTOCOLS["smoke"]
    faster = smoke.recipes["proxy"].model_copy(update={"lr": 1.5 * smoke.recipes["proxy"].lr})
    with monkeypatch.context() as patch:
        patch.setitem(PROTOCOLS, "smoke", smoke.model_copy(update={"recipes": smoke.recipes | {"proxy": faster}}))
        with pytest.raises(KdbenchError, match=r"\(changed: engine, recipe\).*the first steps differ.*models ship"):
            verifier.verify(shipped, adopt=True)
    assert shipped.path.is_dir()
    assert "adopted as" in verifier.verify(shipped, adopt=True)
    (adopted,) = shipped_stages(shipped.path.parent)
    assert adopted.path.name != shipped.path.name
    assert "differ by 0.0e+00" in verifier.verify(adopted)
    shutil.copytree(adopted.path, shipped.path)
    with pytest.raises(KdbenchError, match=f"{adopted.path.name} has it. Remove one of the two"):
        verifier.verify(shipped, adopt=True)
    card = json.loads((shipped.path / "stage.json").read_text(encoding="utf-8"))
    card["summary"]["first_losses"]["token"][3] *= 1.01
    (shipped.path / "stage.json").write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(KdbenchError, match=r"is stale.*If that is meant, remove"):
        verifier.verify(shipped, adopt=True)


def test_a_deviation_is_in_parts_of_a_terms_mean_in_early_steps_and_in_the_median() -> None:
    assert deviation({"a": [1.0, 3.0], "b": [10.0]}, {"a": [1.0, 3.5], "b": [11.0]}) == pytest.approx((0.25, 0.125))
    ones, spike, drift = [1.0] * 20, [1.0] * 15 + [2.0] * 5, [1.0] * 9 + [1.1] * 11
    assert deviation({"a": ones}, {"a": spike}) == (0, 0)
    assert deviation({"a": ones}, {"a": drift}) == pytest.approx((0.1, 0.1))
    assert deviation({"a": [1.0]}, {"b": [1.0]}) == (math.inf, math.inf)
    late = {"a": [1.0, 1.0], "late": [0.0, 0.0]}
    assert deviation(late, late) == (0, 0)
    assert deviation(late, late | {"late": [0.0, 1e-6]})[0] > 1


def test_a_method_without_a_common_stage_has_nothing_to_ship(plan_cells: Plan, tmp_path: Path) -> None:
    context, cells = plan_cells(methods=("cwd",))
    with pytest.raises(KdbenchError, match=r"nothing to ship.*common phases: proxy"):
        list(ship_stages(context, cells, tmp_path))
