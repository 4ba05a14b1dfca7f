"""Summaries: a source counts once, nothing is averaged over what is missing, families are means over pairs."""

from __future__ import annotations

import pytest

from kdbench.report.board import boards
from kdbench.report.entries import Entry
from kdbench.report.summary import Summary, families, summaries

SOURCES = {"g2c": "gtav", "g2b": "gtav", "c2a": "cityscapes"}
MODELS = {"teacher": "teacher", "plain": "undistilled"}


@pytest.fixture
def summarised(make_record):
    """Summaries of mIoU by (benchmark, method, seed); keywords replace a cell's fields."""

    def of(values: dict[tuple[str, str, int], float], **cell) -> list[Summary]:
        return summaries(boards(entries(values, **cell)))

    def entries(values: dict[tuple[str, str, int], float], **cell) -> list[Entry]:
        return [
            Entry(
                make_record(
                    {f"target-{benchmark}": value},
                    {SOURCES[benchmark]: 60.0},
                    benchmark=benchmark,
                    method=method,
                    seed=seed,
                    role=MODELS.get(method, "distilled"),
                    **cell,
                )
            )
            for (benchmark, method, seed), value in values.items()
        ]

    of.entries = entries
    return of


def grid(method: str, g2c: float, g2b: float, c2a: float, seeds: int = 1) -> dict[tuple[str, str, int], float]:
    """One method on all benchmarks; every further seed is one point better."""
    return {
        (benchmark, method, seed): value + seed
        for benchmark, value in (("g2c", g2c), ("g2b", g2b), ("c2a", c2a))
        for seed in range(seeds)
    }


def test_a_source_counts_once(summarised) -> None:
    """Over benchmarks a leads, over trainings b: (10 + 40) / 2 against (30 + 30) / 2."""
    (summary,) = summarised(grid("a", 5, 15, 40) | grid("b", 30, 30, 30))
    rows = {row.method: row for row in summary.rows}
    assert summary.sources == {"synthetic cityscapes-like": ("c2a",), "synthetic gtav-like": ("g2b", "g2c")}
    assert rows["a"].sources == (pytest.approx(40), pytest.approx(10))
    assert rows["a"].mean == pytest.approx(25)
    assert rows["b"].mean == pytest.approx(30)
    assert [row.method for row in summary.rows] == ["b", "a"]


def test_seeds_are_averaged_within_before_they_are_compared(summarised) -> None:
    (summary,) = summarised(grid("plain", 10, 10, 10, seeds=3) | grid("a", 12, 12, 16, seeds=3))
    row = next(row for row in summary.rows if row.method == "a")
    assert row.scores == {0: pytest.approx(14), 1: pytest.approx(15), 2: pytest.approx(16)}
    assert (row.mean, row.deviation) == (pytest.approx(15), pytest.approx(1))
    assert summary.comparison.to_undistilled["a"].value == pytest.approx(4)
    assert summary.comparison.to_undistilled["a"].seeds == (0, 1, 2)


def test_only_the_seeds_that_all_benchmarks_have_count(summarised) -> None:
    values = grid("a", 10, 10, 10, seeds=3)
    del values["c2a", "a", 1]
    (summary,) = summarised(values)
    assert summary.rows[0].seeds == (0, 2)
    assert summary.rows[0].mean == pytest.approx(11)


def test_a_method_that_lacks_a_benchmark_has_no_mean(summarised) -> None:
    values = grid("a", 10, 10, 10) | grid("b", 90, 90, 90)
    del values["g2b", "b", 0]
    (summary,) = summarised(values)
    row = summary.rows[-1]
    assert (row.method, row.mean, row.scores, row.sources) == ("b", None, {}, (pytest.approx(90), None))
    assert summary.comparison.best == "a"


def test_mean_ranks_average_over_sources_first(summarised) -> None:
    """b is second on both benchmarks of the one source and first on the other: (2 + 1) / 2, not (2 + 2 + 1) / 3."""
    values = grid("a", 30.5, 30.5, 10.5, seeds=5) | grid("b", 20, 20, 20, seeds=5)
    (summary,) = summarised(values)
    assert {row.method: row.ranks for row in summary.rows} == {"a": 1.5, "b": 1.5}
    assert {row.method: row.ranks for row in summarised(grid("a", 1, 2, 3) | grid("b", 2, 3, 4))[0].rows} == {
        "a": None, "b": None
    }  # fmt: skip


def test_one_benchmark_is_no_summary(summarised) -> None:
    assert summarised({("g2c", "a", 0): 10.0}) == []


def test_worlds_and_pairs_are_never_mixed(summarised) -> None:
    first = summarised.entries({("g2c", "a", 0): 10.0})
    for other in (
        {"protocol_id": "mini-00000000"},
        {"data_source": "real"},
        {"student": "resnet18"},
        {"label_fraction": "1/2"},
    ):
        second = summarised.entries({("c2a", "a", 0): 10.0}, **other)
        assert summaries(boards(first + second)) == []
    stray = summarised.entries({("c2a", "a", 0): 10.0}, data_sources={"target-c2a": "real"})
    assert summaries(boards(first + stray)) == []


def test_versions_of_the_built_in_world_stand_in_one_summary(summarised) -> None:
    """Of a benchmark that was run in two of them the last counts."""
    first = summarised.entries({("g2c", "a", 0): 10.0, ("c2a", "a", 0): 50.0}, data_source="synthetic-v1")
    second = summarised.entries({("c2a", "a", 0): 30.0}, data_source="synthetic-v2")
    (summary,) = summaries(boards(first + second))
    assert {row.method: row.mean for row in summary.rows} == {"a": pytest.approx(20.0)}
    assert "world synthetic-v1 and synthetic-v2, protocol" in summary.common.conditions
    assert "world synthetic-v1, protocol" in summaries(boards(first))[0].common.conditions


def test_families_are_means_over_their_pairs(summarised) -> None:
    def held(student: str, family: str, plain: float, a: float) -> list[Entry]:
        values = grid("plain", plain, plain, plain) | grid("a", a, a, a)
        return summarised.entries(values, student=student, family=family)

    entries = held("resnet50", "F2L", 20, 26) + held("deit-s", "F2L", 10, 12) + held("dinov2-s", "F2F", 30, 31)
    (found,) = families(summaries(boards(entries)))
    rows = {row.method: row for row in found.rows}
    columns = list(found.families)
    assert sorted(columns) == ["F2F", "F2L"]
    assert found.families["F2L"] == ("mini:dinov2-l -> mini:deit-s", "mini:dinov2-l -> mini:resnet50")
    assert dict(zip(columns, rows["a"].means, strict=True)) == {"F2F": pytest.approx(31), "F2L": pytest.approx(19)}
    assert dict(zip(columns, rows["a"].gains, strict=True)) == {"F2F": pytest.approx(1), "F2L": pytest.approx(4)}
    assert rows["plain"].gains == (None, None)
    assert "teacher" not in rows


def test_a_method_that_lacks_a_pair_has_no_mean_in_its_family(summarised) -> None:
    entries = summarised.entries(grid("a", 1, 2, 3), student="deit-s", family="F2L")
    entries += summarised.entries(grid("b", 1, 2, 3), student="resnet50", family="F2L")
    (found,) = families(summaries(boards(entries)))
    assert [row.means for row in found.rows] == [(None,), (None,)]


def test_pairs_with_other_benchmarks_are_in_no_family_together(summarised) -> None:
    entries = summarised.entries(grid("a", 1, 2, 3), student="deit-s", family="F2L")
    values = {key: value for key, value in grid("a", 1, 2, 3).items() if key[0] != "g2b"}
    assert families(summaries(boards(entries + summarised.entries(values, family="F2L")))) == []
