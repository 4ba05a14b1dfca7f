"""Agreement with published numbers: Kendall's tau, its p and the gap recovered against independent counts."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from itertools import combinations, permutations
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from kdbench.cli import app
from kdbench.report.agreement import Agreement, agreement_tables, agreements, to_csv, to_json
from kdbench.report.boards import Board
from kdbench.report.formats import render
from kdbench.tools.ci_checks import agreement as check

PAIR = "dinov2-l:deit-b"
ROLES = {"teacher": "teacher", "baseline": "undistilled"}
Scores = dict[str, dict[str, float]]
"""Method -> benchmark -> mIoU."""
PAPER: Scores = {
    "teacher": {"g2c": 60.0, "p2r": 70.0},
    "baseline": {"g2c": 40.0, "p2r": 50.0},
    "cwd": {"g2c": 45.0, "p2r": 52.0},
    "vitkd": {"g2c": 44.0, "p2r": 55.0},
    "gkd": {"g2c": 55.0, "p2r": 65.0},
}


def published(scores: Scores, pair: str = PAIR) -> pd.DataFrame:
    rows = [
        {"paper": "A et al.", "pair": pair, "measured_as": method, "column": column, "miou": miou}
        for method, columns in scores.items()
        for column, miou in columns.items()
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def boards(make_record, boards_of) -> Callable[..., list[Board]]:
    def of(scores: Scores, **changes: str) -> list[Board]:
        resolved = {"protocol_id": "mini-v1", **changes}
        return boards_of(*(
            make_record(
                {"target": miou}, {}, method=method, role=ROLES.get(method, "distilled"), benchmark=benchmark,
                teacher="dinov2-l", student=None if method == "teacher" else "deit-b", **resolved,
            )
            for method, columns in scores.items()
            for benchmark, miou in columns.items()
        ))  # fmt: skip

    return of


def tau_b(one: list[float], other: list[float]) -> float:
    """Concordant less discordant pairs, over the geometric mean of the pairs that are not tied in each."""
    signs = [
        ((a > b) - (a < b), (c > d) - (c < d))
        for (a, c), (b, d) in combinations(zip(one, other, strict=True), 2)
    ]  # fmt: skip
    untied = sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs)
    return sum(x * y for x, y in signs) / math.sqrt(untied)


def only(found: list[Agreement]) -> Agreement:
    assert len(found) == 1
    return found[0]


def test_tau_counts_pairs_and_p_tries_every_relabelling(boards) -> None:
    ours: Scores = {
        "teacher": {"g2c": 30.0, "p2r": 35.0},
        "baseline": {"g2c": 20.0, "p2r": 25.0},
        "cwd": {"g2c": 22.0, "p2r": 24.0},
        "vitkd": {"g2c": 22.0, "p2r": 26.0},  # a tie on g2c
        "gkd": {"g2c": 21.0, "p2r": 29.0},
    }
    found = only(agreements(published(PAPER), boards(ours)))
    students = [name for name in PAPER if name != "teacher"]

    def pooled(order: tuple[str, ...]) -> float:
        return sum(
            tau_b([PAPER[name][b] for name in students], [ours[name][b] for name in order]) for b in ("g2c", "p2r")
        ) / 2  # fmt: skip

    expected = pooled(tuple(students))
    assert found.tau == pytest.approx(expected)
    # Ten of the paper's and the measured order: by hand, (4 - 1) / sqrt(6 * 5) on g2c and (5 - 1) / 6 on p2r.
    assert list(found.by_benchmark.tau) == pytest.approx([1 / math.sqrt(30), 4 / 6])
    all_of_them = [pooled(order) for order in permutations(students)]
    assert found.p == pytest.approx(sum(value >= expected - 1e-9 for value in all_of_them) / 24)
    assert list(found.by_benchmark.methods) == [4, 4]


def test_the_gap_recovered_is_a_share_of_the_teachers_mean_lead(boards) -> None:
    ours = {method: {name: miou / 2 for name, miou in columns.items()} for method, columns in PAPER.items()}
    ours["gkd"] = {"g2c": 25.0, "p2r": 30.0}
    found = only(agreements(published(PAPER), boards(ours)))
    # Published: the teacher leads by 20 on average, GKD by 15. Here by 10, and by (5 + 5) / 2.
    assert found.recovered.published["gkd"] == pytest.approx(15 / 20)
    assert found.recovered.measured["gkd"] == pytest.approx(5 / 10)
    assert set(found.recovered.index) == {"cwd", "vitkd", "gkd"}


def test_an_order_that_is_the_papers_has_tau_1_and_the_smallest_p(boards) -> None:
    found = only(agreements(published(PAPER), boards(PAPER)))
    assert found.tau == 1.0
    # CWD and ViTKD change places between the benchmarks, so one relabelling of 24 fits both.
    assert found.p == pytest.approx(1 / 24)


def test_methods_that_one_side_lacks_are_left_out_benchmark_by_benchmark(boards) -> None:
    ours = {name: dict(columns) for name, columns in PAPER.items()}
    del ours["cwd"]["p2r"]
    ours["dkd"] = {"g2c": 99.0, "p2r": 99.0}
    found = only(agreements(published(PAPER), boards(ours)))
    assert dict(found.by_benchmark.methods) == {"g2c": 4, "p2r": 3}
    assert list(found.measured.index) == ["baseline", "cwd", "gkd", "vitkd"]
    # The scores are the paper's wherever there are any.
    assert list(found.by_benchmark.tau) == [1.0, 1.0]


def test_a_benchmark_with_too_few_methods_is_not_in_the_mean(boards) -> None:
    ours = {name: dict(columns) for name, columns in PAPER.items()}
    for name in ("cwd", "vitkd"):
        del ours[name]["p2r"]
    ours["cwd"]["g2c"] = 41.0  # one of six pairs of methods changes places
    found = only(agreements(published(PAPER), boards(ours)))
    assert math.isnan(found.by_benchmark.tau["p2r"])
    assert found.tau == pytest.approx(4 / 6)


def test_real_images_and_synthetic_ones_are_two_agreements(boards) -> None:
    back = {name: {"g2c": 100 - columns["g2c"]} for name, columns in PAPER.items()}
    found = agreements(published(PAPER), [*boards(PAPER), *boards(back, data_source="real")])
    assert {(each.data_source, each.tau) for each in found} == {("synthetic-1", 1.0), ("real", -1.0)}
    captions = {table.conditions for table in agreement_tables(found)}
    assert any("mini:dinov2-l -> mini:deit-b" in text and "synthetic-1" in text for text in captions)


@pytest.mark.parametrize(
    "change",
    [
        {"protocol_id": "paper-v1-equal", "protocol": "paper"},
        {"protocol_id": "mini-v1+12345678", "protocol": "mini"},
        {"label_fraction": "1/2"},
    ],
)
def test_only_a_shipped_protocol_with_all_labels_is_compared(boards, change: dict[str, str]) -> None:
    assert agreements(published(PAPER), boards(PAPER, **change)) == []


def test_too_few_methods_have_a_sentence_and_another_pair_has_nothing(boards) -> None:
    few = agreements(published(PAPER), boards({name: PAPER[name] for name in ("teacher", "baseline", "gkd")}))
    assert math.isnan(only(few).tau)
    assert "No tau: no benchmark has 3 methods" in render("markdown", agreement_tables(few))
    (held,) = json.loads(to_json(few))
    assert (held["tau"], held["p"]) == (None, None)
    assert agreements(published(PAPER, "dinov2-b:deit-s"), boards(PAPER)) == []


def test_more_methods_than_can_be_tried_are_relabelled_by_seeded_draws(boards) -> None:
    many = {"teacher": {"g2c": 90.0}} | {f"m{k}": {"g2c": 50.0 + k} for k in range(8)}
    first, second = (only(agreements(published(many), boards(many))) for _ in range(2))
    assert first.tau == pytest.approx(1.0)
    assert 0 < first.p == second.p < 0.02


def test_it_is_written_in_every_format(boards) -> None:
    found = agreements(published(PAPER), boards(PAPER))
    text = render("markdown", agreement_tables(found))
    assert "| mean" in text
    assert "p = 0.042" in text
    (held,) = json.loads(to_json(found))
    assert (held["pair"], held["tau"]) == (PAIR, 1.0)
    lines = pd.read_csv(io.StringIO(to_csv(found))).set_index(["benchmark", "method"])
    assert len(lines) == 8
    assert dict(lines.loc[("p2r", "gkd"), ["published", "tau", "mean_tau", "p", "measured_gap_recovered"]]) == (
        pytest.approx({"published": 65, "tau": 1, "mean_tau": 1, "p": 1 / 24, "measured_gap_recovered": 15 / 20})
    )


def test_the_command_says_what_there_is_to_compare(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["leaderboard", "--agreement", "--pair", "dinov2-s:deit-s", "--results", str(tmp_path)]
    )
    assert isinstance(done.exception, Exception)
    assert "Run one of dinov2-b:deit-s, " in str(done.exception)
    both = CliRunner().invoke(app, ["leaderboard", "--agreement", "--published", "--results", str(tmp_path)])
    assert "ask for one of them" in str(both.exception)


def test_the_check_fails_below_the_committed_value(boards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "read_published", lambda: published(PAPER))
    monkeypatch.setattr(check, "boards", lambda frame: boards(PAPER))
    file = tmp_path / "agreement.json"

    def statuses(text: str) -> list[str]:
        file.write_text(text)
        return [result.status for result in check.check(tmp_path)]

    committed = to_json(agreements(published(PAPER), boards(PAPER)))
    assert statuses(committed) == ["ok"]
    monkeypatch.setattr(check, "boards", lambda frame: boards({**PAPER, "gkd": {"g2c": 1.0, "p2r": 1.0}}))
    assert statuses(committed) == ["FAIL"]
    monkeypatch.setattr(check, "boards", lambda frame: [])
    assert statuses(committed) == ["FAIL"]
    assert statuses("[{}]") == ["FAIL"]
    file.unlink()
    assert [result.status for result in check.check(tmp_path)] == ["skip"]
