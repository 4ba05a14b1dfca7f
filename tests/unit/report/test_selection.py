"""Rules of selection: which point each of them takes, and when it cannot."""

from __future__ import annotations

import numpy as np
import pytest

from kdbench.metrics import hits
from kdbench.records import DomainResult, Record
from kdbench.report.board import boards
from kdbench.report.entries import Entry
from kdbench.report.selection import LAST, ORACLE, RULES, SOURCE, choose, oracle_gap


def counts(miou: float) -> np.ndarray:
    """A confusion matrix with 10,000 pixels a class; misses go to its neighbour, so IoU = right / (20,000 - right)."""
    right = round(20_000 * miou / (100 + miou))
    return np.eye(3, dtype=np.int64) * right + np.roll(np.eye(3, dtype=np.int64), 1, axis=1) * (10_000 - right)


def near(value: float) -> object:
    return pytest.approx(value, abs=0.02)


@pytest.fixture
def run(make_record):
    """A record of curves by domain: the mIoU at its points."""

    def domain(name: str, role: str, curve: tuple[float, ...]) -> DomainResult:
        *earlier, last = (counts(value) for value in curve)
        rates = np.array([hits(each)[:2] for each in earlier]).reshape(-1, 2, 3)
        return DomainResult(domain=name, role=role, data_source="synthetic-1", images=48, confusion=last, earlier=rates)

    def of(targets: dict[str, tuple[float, ...]], source: tuple[float, ...] | None = None) -> Record:
        domains = [domain(name, "target", curve) for name, curve in targets.items()]
        return make_record(domains=domains + ([domain("s", "source", source)] if source else []), benchmark="c2a")

    return of


def test_each_rule_takes_its_point(run) -> None:
    """Means over the targets: 25, 45, 40, 30."""
    targets = {"night": (20, 30, 50, 30), "snow": (30, 60, 30, 30)}
    found = choose([run(targets, source=(50, 55, 70, 60))])
    assert {rule: (each.mean, each.points) for rule, each in found.items()} == {
        LAST: (near(30), (4,)), SOURCE: (near(40), (3,)), ORACLE: (near(45), (2,))
    }  # fmt: skip
    assert oracle_gap(found) == near(15)


def test_rules_choose_in_every_run_for_itself(run) -> None:
    found = choose([run({"night": (40, 30)}, source=(60, 50)), run({"night": (20, 60)}, source=(10, 20))])
    assert (found[ORACLE].points, found[ORACLE].mean) == ((1, 2), near(50))
    assert found[LAST].mean == near(45)
    assert found[SOURCE].deviation == near(np.std([40, 60], ddof=1))


def test_of_equal_points_the_later_counts(run) -> None:
    found = choose([run({"night": (40, 40, 30)}, source=(50, 50, 50))])
    assert (found[ORACLE].points, found[SOURCE].points) == ((2,), (3,))


def test_a_run_with_one_point_has_no_choice(run) -> None:
    found = choose([run({"night": (40,)}, source=(50,))])
    assert {rule: each.points for rule, each in found.items()} == {LAST: (1,)}
    assert oracle_gap(found) is None


def test_without_validation_on_the_source_that_rule_is_left_out(run) -> None:
    assert set(choose([run({"night": (40, 30)})])) == {LAST, ORACLE}
    assert set(choose([run({"night": (40, 30)}, source=(50, 40)), run({"night": (40, 30)})])) == {LAST, ORACLE}


def test_no_rule_without_scores(run, make_record) -> None:
    assert choose([]) == {}
    assert choose([make_record(error="stopped")]) == {}
    assert choose([run({"night": (0.0, 40)}, source=(1, 2)), make_record(error="stopped")]) == {}
    nothing = {"confusion": np.zeros((3, 3), np.int64), "earlier": np.zeros((1, 2, 3), np.int64)}
    unlabelled = run({"night": (40, 40)}).result.domains[0].model_copy(update=nothing)
    assert choose([make_record(domains=[unlabelled])]) == {}
    assert oracle_gap({}) is None


def test_boards_use_the_last_point(run) -> None:
    (board,) = boards([Entry(run({"night": (90, 30)}, source=(50, 40)))])
    assert board.rows[0].mean == near(30)
    assert board.rows[0].chosen[LAST].mean == board.rows[0].mean
    assert list(board.rows[0].chosen) == list(RULES)
