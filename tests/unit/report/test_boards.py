"""Boards and summaries: what is grouped, ordered, averaged and left blank; rules of selection; side files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kdbench.metrics import hits
from kdbench.records import SIDE_FILE, DomainResult, Record, StageResult
from kdbench.report.boards import LAST, ORACLE, SOURCE, Summary, boards, select_snapshots, summaries
from kdbench.report.frame import Entry, load

ACDC = {"acdc-night": 30.0, "acdc-snow": 50.0}


def score(value: float) -> dict[str, float]:
    return {"cityscapes": value}


def blank(row: pd.Series) -> bool:
    """Whether a row has no value of its own."""
    return bool(row[["mean", "deviation", "worst", "source", "gap", "accuracy"]].isna().all())


def test_the_teacher_then_undistilled_then_distilled_best_first(make_record, board_of) -> None:
    board = board_of(
        make_record(score(0), method="cwd"),
        make_record(error="stopped", method="akd"),
        make_record(score(50), method="plain", role="undistilled"),
        make_record(score(40), method="gkd"),
        make_record(score(20), role="teacher"),
        make_record(score(45), method="gkd", variant="weight=2"),
    )
    assert list(board.rows.index) == ["teacher", "plain", "gkd[weight=2]", "gkd", "cwd", "akd"]
    assert board.comparison.baseline == "plain"


def test_values_of_a_row_are_means_over_seeds(make_record, board_of) -> None:
    values = {4: (40.0, 40.0), 0: (20.0, 50.0), 1: (30.0, 60.0)}
    board = board_of(
        *(
            make_record(
                {"acdc-night": night, "acdc-snow": snow}, {"a": 60.0 - seed, "b": 80.0}, seed=seed, benchmark="c2a",
                deployed=7,
            )
            for seed, (night, snow) in values.items()
        )
    )  # fmt: skip
    row = board.rows.loc["gkd"]
    assert row.seeds == (0, 1, 4)
    assert board.by_seed.loc["gkd"].T.to_dict("list") == {seed: list(values[seed]) for seed in (0, 1, 4)}
    assert board.scores.loc["gkd"].to_dict() == {0: 35, 1: 45, 4: 40}
    assert list(board.targets.loc["gkd"]) == [30, 50]
    assert (row["mean"], row.deviation, row.worst, row.parameters) == (40, 5, 30, 7)
    assert row.source == pytest.approx(70 - 5 / 6, abs=0.05)
    assert row.gap == row.source - 40
    assert pd.isna(board_of(make_record()).rows.deviation["gkd"])


def test_no_mean_over_a_target_without_labels_or_without_a_result(make_record, make_domain, board_of) -> None:
    domains = list(make_record({"acdc-night": 30.0}).result.domains)
    empty = make_domain("acdc-snow", "target", domains[0].confusion * 0)
    board = board_of(
        make_record(ACDC, benchmark="c2a", method="kd"),
        make_record({"acdc-night": 90.0}, benchmark="c2a"),
        make_record(domains=[*domains, empty], benchmark="c2a", method="empty"),
    )
    assert list(board.targets.columns) == [f"synthetic {name}-like" for name in ACDC]
    assert list(board.rows.index) == ["kd", "empty", "gkd"]
    for method, (known, source) in {"gkd": (90, 60), "empty": (30, 60)}.items():
        assert board.targets.loc[method].iloc[0] == known
        assert pd.isna([board.targets.loc[method].iloc[1], board.rows["mean"][method], board.rows.gap[method]]).all()
        assert board.rows.source[method] == source
        assert method not in board.selection.index
    assert board.classes.loc["gkd"].isna().all()


def test_classes_are_averaged_over_the_targets_that_show_them(make_record, make_domain, board_of) -> None:
    """road in both targets, building in the first, sky in none: it is only guessed there."""
    night = make_domain("acdc-night", "target", np.array([[50, 50, 0], [0, 100, 0], [0, 0, 0]]))
    snow = make_domain("acdc-snow", "target", np.array([[60, 20, 20], [0, 0, 0], [0, 0, 0]]))
    board = board_of(make_record(domains=[night, snow], benchmark="c2a"))
    assert list(board.classes.loc["gkd"])[:2] == pytest.approx([(50 + 60) / 2, 100 * 100 / 150])
    assert pd.isna(board.classes.sky["gkd"])
    assert board.rows.accuracy["gkd"] == pytest.approx((75 + 60) / 2)


def test_the_source_is_what_was_trained_on_even_if_nothing_validates_it(make_record, board_of) -> None:
    stage = StageResult(
        name="task", phase="task", key="0", data={"gtav": "real"}, steps=1, images=1, student_forwards=1, losses={}
    )
    board = board_of(make_record(sources={}, stages=[stage], data_source="real", model_set="pretrained"))
    assert (board.validated, board.sources) == ((), ("gtav",))
    assert pd.isna([board.rows.source["gkd"], board.rows.gap["gkd"]]).all()


def test_the_first_undistilled_row_without_a_variant_is_compared_with(make_record, board_of) -> None:
    board = board_of(
        make_record(score(50), method="plain", role="undistilled", variant="longer"),
        make_record(score(40), method="plain", role="undistilled"),
        make_record(score(45)),
        make_record(error="stopped", method="kd"),
    )
    assert board.comparison.baseline == "plain"
    assert board.comparison.to_baseline.value.to_dict() == {"plain[longer]": 10, "gkd": 5}


@pytest.mark.parametrize(
    ("seeds", "footnote"),
    [
        ([{}, {"targets": {"bdd100k": 40.0}}], "blank: its seeds were tested on different domains"),
        ([{}, {"error": "no memory\nTraceback"}], "seed 1 failed: no memory"),
        ([{"error": "no memory\nTraceback"}], "failed: no memory"),
        # As a label that was given to two settings would do.
        ([{"options": {"t": 2.0}}, {"options": {"t": 3.0}}], "blank: its seeds were run with different options"),
        (
            [{"weights": {"resnet50": own}} for own in ("new", "new", "old")],
            "blank: seed 2 began with other weights of resnet50 than most records of this board; run all with the same",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_averaged_is_blank_and_says_why(make_record, board_of, seeds: list[dict], footnote: str) -> None:
    board = board_of(
        *(make_record(**{"targets": score(20)} | cell, seed=seed) for seed, cell in enumerate(seeds)),
        make_record(method="kd"),
    )
    row = board.rows.loc["gkd"]
    assert blank(row)
    assert (row.footnote, row.seeds) == (footnote, tuple(range(len(seeds))))
    assert board.targets.loc["gkd"].isna().all()
    assert board.scores.loc["gkd"].isna().all()
    assert not row.ranked
    assert board.targets.loc["kd"].iloc[0] == 40


def test_what_an_older_record_does_not_know_is_no_difference(make_record, board_of) -> None:
    new = make_record(score(40.0), options={"t": 2.0, "values": "student"}, weights={"resnet50": "new"})
    row = board_of(new, make_record(score(42.0), seed=1, options={"t": 2.0})).rows.loc["gkd"]
    assert (row["mean"], row.footnote) == (pytest.approx(41), "")


@pytest.mark.parametrize(
    "other",
    [
        {"protocol_id": "mini-00000000"},
        {"data_source": "real"},
        {"data_source": "synthetic-2"},
        {"data_sources": {"gtav": "synthetic-2"}},
        {"benchmark": "g2b"},
        {"teacher": "dinov2-b"},
        {"student": "resnet18"},
        {"label_fraction": "1/2"},
        {"classes": ["road", "building", "water"]},
    ],
    ids=str,
)
def test_what_may_not_be_ranked_together_is_apart(make_record, boards_of, other: dict) -> None:
    found = boards_of(make_record(method="kd"), make_record(**other))
    assert sorted(list(board.rows.index) for board in found) == [["gkd"], ["kd"]]


def test_two_data_sources_are_apart_however_they_are_mixed(make_record, boards_of) -> None:
    mixed = (
        make_record(ACDC, method=method, data_sources={name: "synthetic-2"})
        for method, name in zip("ab", ACDC, strict=True)
    )
    assert sorted(list(board.rows.index) for board in boards_of(*mixed)) == [["a"], ["b"]]


def test_the_teacher_heads_every_board_of_its_place(make_record, boards_of) -> None:
    found = boards_of(
        make_record(role="teacher"),
        make_record(role="teacher", protocol_id="mini-00000000"),
        make_record(role="teacher", benchmark="c2a"),
        make_record(student="resnet18"),
        make_record(student="resnet50"),
    )
    assert [(board.protocol_id, board.benchmark, board.pair, list(board.rows.index)) for board in found] == [
        ("mini-00000000", "g2c", "dinov2-l", ["teacher"]),
        ("mini-1a2b3c4d", "c2a", "dinov2-l", ["teacher"]),
        ("mini-1a2b3c4d", "g2c", "dinov2-l:resnet18", ["teacher", "gkd"]),
        ("mini-1a2b3c4d", "g2c", "dinov2-l:resnet50", ["teacher", "gkd"]),
    ]


def test_nothing_small_or_drawn_goes_by_a_bare_name(make_record, board_of) -> None:
    board = board_of(make_record(role="teacher"), make_record())
    assert board.models == ("mini:dinov2-l", "mini:resnet50")
    assert (list(board.targets.columns), board.validated) == (["synthetic cityscapes-like"], ("synthetic gtav-like",))
    assert board.data_sources == {"synthetic cityscapes-like": "synthetic-1", "synthetic gtav-like": "synthetic-1"}
    assert board.title == "synthetic likeness of GTAV to Cityscapes"
    for part in ("mini:dinov2-l", "mini:resnet50", "F2L", "synthetic-1", "mini-1a2b3c4d", "decoder light"):
        assert part in board.conditions
    board = board_of(make_record(data_source="real", model_set="published"))
    assert (board.models, list(board.targets.columns)) == (("dinov2-l", "resnet50"), ["cityscapes"])
    assert (board.validated, board.title) == (("gtav",), "GTAV to Cityscapes")


def test_a_row_that_is_partly_reference_says_which_seeds(make_record, board_of) -> None:
    row = board_of(*(Entry(make_record(seed=seed), reference=seed > 0) for seed in range(3))).rows.loc["gkd"]
    assert (row.reference, row.footnote) == (False, "seeds 1, 2: reference")


def test_known_versions_of_the_engine_that_differ_are_noted(make_record, board_of) -> None:
    def made(method: str, version: str | None, seed: int = 0) -> Record:
        record = make_record(method=method, seed=seed)
        if version:
            record.run.versions["engine"] = version
        return record

    assert board_of(made("a", "2"), made("b", "2")).notes == ()
    assert board_of(made("a", None), made("b", "2"), made("b", None, seed=1)).notes == ()
    assert board_of(made("a", "2"), made("b", "1"), made("c", None), made("b", "2", seed=1)).notes == (
        "Made with different versions of the engine: 1: b; 2: a, b.",
    )


def test_costs_are_means_over_seeds_and_missing_where_one_is(make_record, board_of) -> None:
    def stage(flops: int | None) -> StageResult:
        return StageResult(
            name="a", phase="task", key="k", data={}, steps=1, images=8, student_forwards=8, flops=flops, losses={}
        )

    def record(flops: int | None, seed: int, latency: float, method: str = "gkd") -> Record:
        made = make_record(stages=[stage(flops)], seed=seed, method=method)
        return made.model_copy(update={"run": made.run.model_copy(update={"latency_ms": latency})})

    rows = board_of(
        record(100, 0, 2.0), record(300, 1, 4.0), record(100, 0, 1.0, "part"), record(None, 1, 1.0, "part")
    ).rows
    assert (rows.train_flops["gkd"], rows.latency_ms["gkd"], rows.train_images["gkd"]) == (200, 3, 8)
    assert pd.isna(rows.train_flops["part"])
    assert pd.isna(rows.memory_mb["gkd"])
    assert rows.pareto.to_dict() == {"gkd": True, "part": False}


# Rules of selection


def test_each_rule_selects_its_snapshot() -> None:
    found = select_snapshots(np.array([25.0, 45, 40, 30]), np.array([50.0, 55, 70, 60]))
    assert found == {LAST: (4, 30), SOURCE: (3, 40), ORACLE: (2, 45)}


@pytest.mark.parametrize(
    ("targets", "sources", "expected"),
    [
        ([40.0, 40, 30], [50.0, 50, 50], {LAST: 3, SOURCE: 3, ORACLE: 2}),  # of equal snapshots the later
        ([40.0], [50.0], {LAST: 1}),  # a single snapshot leaves no choice
        ([40.0, 30], None, {LAST: 2, ORACLE: 1}),
        (None, [50.0, 40], {}),
    ],
)
def test_what_a_rule_needs(targets: list | None, sources: list | None, expected: dict[str, int]) -> None:
    curves = (None if curve is None else np.array(curve) for curve in (targets, sources))
    assert {rule: place for rule, (place, _) in select_snapshots(*curves).items()} == expected


def counts(miou: float) -> np.ndarray:
    """A confusion matrix with 10,000 pixels a class; misses go to its neighbour, so IoU = right / (20,000 - right)."""
    right = round(20_000 * miou / (100 + miou))
    return np.eye(3, dtype=np.int64) * right + np.roll(np.eye(3, dtype=np.int64), 1, axis=1) * (10_000 - right)


def curve(name: str, role: str, *values: float) -> DomainResult:
    """A domain with these mIoU at its snapshots."""
    *earlier, last = map(counts, values)
    rates = np.array([hits(each)[:2] for each in earlier]).reshape(-1, 2, 3)
    return DomainResult(domain=name, role=role, data_source="synthetic-1", images=48, confusion=last, earlier=rates)


def test_rules_select_in_every_run_for_itself(make_record, board_of) -> None:
    runs = [
        [curve("night", "target", 40, 30), curve("snow", "target", 20, 10), curve("s", "source", 60, 50)],
        [curve("night", "target", 20, 60), curve("snow", "target", 0, 40), curve("s", "source", 10, 20)],
    ]
    board = board_of(*(make_record(domains=domains, seed=seed) for seed, domains in enumerate(runs)))
    chosen = board.selection.loc["gkd"]
    assert chosen.snapshots.to_dict() == {LAST: (2, 2), SOURCE: (1, 2), ORACLE: (1, 2)}
    assert chosen["mean"].to_dict() == pytest.approx({LAST: 35, SOURCE: 40, ORACLE: 40}, abs=0.02)
    assert chosen.deviation[SOURCE] == pytest.approx(np.std([30, 50], ddof=1), abs=0.02)
    assert chosen["mean"][LAST] == board.rows["mean"]["gkd"]
    assert list(board.snapshots.loc["gkd", "target"]) == pytest.approx([20, 35], abs=0.02)
    assert list(board.snapshots.loc["gkd", "source"]) == pytest.approx([35, 35], abs=0.02)


def test_seeds_with_other_snapshots_have_no_common_curve(make_record, board_of) -> None:
    board = board_of(
        make_record(domains=[curve("night", "target", 40, 30)]),
        make_record(domains=[curve("night", "target", 40, 35, 30)], seed=1),
    )
    assert board.snapshots.empty
    assert list(board.selection.loc["gkd"].index) == [LAST, ORACLE]


# Side files


def images(seed: int, right: float, number: int = 30) -> np.ndarray:
    """Hits (N, 3, K) of images whose labels are a function of the image alone."""
    labels = np.random.default_rng(0).integers(20, 200, (number, 3))
    share = np.clip(np.random.default_rng(seed).normal(right, 0.1, labels.shape), 0, 1)
    hit = np.round(labels * share).astype(np.int64)
    return hits(hit[..., None] * np.eye(3, dtype=int) + (labels - hit)[..., None] * np.roll(np.eye(3, dtype=int), 1, 1))


@pytest.fixture
def written(tmp_path: Path, make_record, write):
    """Writes a record of targets with its side file."""

    def of(counted: dict[str, np.ndarray], **cell) -> Path:
        domains = [
            DomainResult(
                domain=name, role="target", data_source="synthetic-1", images=len(each),
                confusion=np.diag(each.sum(0)[0]) + np.roll(np.diag(each.sum(0)[2]), 1, axis=1),
                earlier=np.zeros((0, 2, 3), int),
            )
            for name, each in counted.items()
        ]  # fmt: skip
        path = write(tmp_path, make_record(domains=domains, benchmark="c2a", **cell))
        side = path.with_name(path.stem + SIDE_FILE)
        np.savez_compressed(side, **counted)
        return side

    return of


def test_a_board_has_the_interval_where_all_side_files_are(tmp_path: Path, written) -> None:
    for seed in (0, 1):
        for method, role, right in (("plain", "undistilled", 0.5), ("gkd", "distilled", 0.7), ("kd", "distilled", 0.6)):
            side = written({"night": images(seed, right)}, method=method, role=role, seed=seed)
    side.unlink()
    (board,) = boards(load(tmp_path, None).frame)
    assert list(board.over_images.index) == ["gkd"]
    low, high = board.over_images.loc["gkd"]
    assert low < board.comparison.to_baseline.value["gkd"] < high
    assert board.faults == ()


def test_a_single_image_has_no_interval(tmp_path: Path, written) -> None:
    for method, role in (("plain", "undistilled"), ("gkd", "distilled")):
        written({"night": images(0, 0.5, number=1)}, method=method, role=role)
    (board,) = boards(load(tmp_path, None).frame)
    assert (board.over_images.empty, board.faults) == (True, ())


@pytest.mark.parametrize("fault", ["cut off", "overwritten", "no archive", "of another record", "without a target"])
def test_a_damaged_side_file_is_named_and_harms_no_board(tmp_path: Path, written, fault: str) -> None:
    counted = {"night": images(0, 0.5), "snow": images(1, 0.5)}
    written(counted, method="plain", role="undistilled")
    side = written(counted)
    whole = side.read_bytes()
    if fault == "cut off":
        side.write_bytes(whole[: len(whole) // 2])
    elif fault == "overwritten":
        side.write_bytes(whole[:80] + b"\xff" * 40 + whole[120:])
    elif fault == "no archive":
        side.write_text("{}")
    else:
        kept = ("night",) if fault == "without a target" else counted
        np.savez_compressed(side, **{name: images(9, 0.4) for name in kept})
    (board,) = boards(load(tmp_path, None).frame)
    assert board.over_images.empty
    assert board.rows["mean"].notna().all()
    (message,) = board.faults
    assert str(side) in message
    assert "--fresh" in message


# Summaries

SOURCES = {"g2c": "gtav", "g2b": "gtav", "c2a": "cityscapes"}
MODELS = {"teacher": "teacher", "plain": "undistilled"}
Values = dict[tuple[str, str, int], float]


@pytest.fixture
def entries(make_record):
    """Records of mIoU by (benchmark, method, seed); keywords replace a cell's fields."""

    def of(values: Values, **cell) -> list[Record]:
        return [
            make_record(
                {f"target-{benchmark}": value},
                {SOURCES[benchmark]: 60.0},
                benchmark=benchmark,
                method=method,
                seed=seed,
                role=MODELS.get(method, "distilled"),
                **cell,
            )
            for (benchmark, method, seed), value in values.items()
        ]

    return of


@pytest.fixture
def summarised(entries, boards_of):
    def of(values: Values, **cell) -> Summary:
        (found,) = summaries(boards_of(*entries(values, **cell)))
        return found

    return of


def grid(method: str, g2c: float, g2b: float, c2a: float, seeds: int = 1) -> Values:
    """One method on all benchmarks; every further seed is one point better."""
    return {
        (benchmark, method, seed): value + seed
        for benchmark, value in (("g2c", g2c), ("g2b", g2b), ("c2a", c2a))
        for seed in range(seeds)
    }


def test_a_source_counts_once(summarised) -> None:
    """Over benchmarks a leads, over trainings b: (10 + 40) / 2 against (30 + 30) / 2."""
    summary = summarised(grid("a", 5, 15, 40) | grid("b", 30, 30, 30))
    assert summary.benchmarks == {"synthetic cityscapes-like": ("c2a",), "synthetic gtav-like": ("g2b", "g2c")}
    assert list(summary.sources.loc["a"]) == pytest.approx([40, 10])
    assert summary.rows["mean"].to_dict() == pytest.approx({"b": 30, "a": 25})
    assert list(summary.rows.index) == ["b", "a"]


def test_seeds_are_averaged_within_before_they_are_compared(summarised) -> None:
    summary = summarised(grid("plain", 10, 10, 10, seeds=3) | grid("a", 12, 12, 16, seeds=3))
    assert summary.scores.loc["a"].to_dict() == pytest.approx({0: 14, 1: 15, 2: 16})
    assert (summary.rows["mean"]["a"], summary.rows.deviation["a"]) == (pytest.approx(15), pytest.approx(1))
    difference = summary.comparison.to_baseline.loc["a"]
    assert (difference.value, difference.seeds) == (pytest.approx(4), (0, 1, 2))


def test_only_the_seeds_that_all_benchmarks_have_count(summarised) -> None:
    values = grid("a", 10, 10, 10, seeds=3)
    del values["c2a", "a", 1]
    row = summarised(values).rows.loc["a"]
    assert (row.seeds, row["mean"]) == ((0, 2), pytest.approx(11))


def test_a_method_that_lacks_a_benchmark_has_no_mean(summarised) -> None:
    values = grid("a", 10, 10, 10) | grid("b", 90, 90, 90)
    del values["g2b", "b", 0]
    summary = summarised(values)
    assert list(summary.rows.index) == ["a", "b"]
    assert pd.isna([summary.rows["mean"]["b"], summary.sources.loc["b"].iloc[1]]).all()
    assert (summary.rows.seeds["b"], summary.sources.loc["b"].iloc[0]) == ((), pytest.approx(90))
    assert summary.comparison.best == "a"


def test_mean_ranks_average_over_sources_first(summarised) -> None:
    """b is second on both benchmarks of the one source and first on the other: (2 + 1) / 2, not (2 + 2 + 1) / 3."""
    values = grid("a", 30.5, 30.5, 10.5, seeds=5) | grid("b", 20, 20, 20, seeds=5)
    assert summarised(values).rows.mean_rank.to_dict() == {"a": 1.5, "b": 1.5}
    assert summarised(grid("a", 1, 2, 3) | grid("b", 2, 3, 4)).rows.mean_rank.isna().all()


def test_data_sources_and_pairs_are_never_mixed(entries, boards_of) -> None:
    first = entries({("g2c", "a", 0): 10.0})
    assert summaries(boards_of(*first)) == []
    for other in (
        {"protocol_id": "mini-00000000"},
        {"data_source": "real"},
        {"student": "resnet18"},
        {"label_fraction": "1/2"},
        {"data_sources": {"target-c2a": "real"}},
    ):
        assert summaries(boards_of(*first, *entries({("c2a", "a", 0): 10.0}, **other))) == []


def test_versions_of_the_synthetic_source_stand_in_one_summary(entries, boards_of) -> None:
    """Of a benchmark that was run with two of them the last counts."""
    first = entries({("g2c", "a", 0): 10.0, ("c2a", "a", 0): 50.0}, data_source="synthetic-v1")
    second = entries({("c2a", "a", 0): 30.0}, data_source="synthetic-v2")
    (summary,) = summaries(boards_of(*first, *second))
    assert summary.rows["mean"].to_dict() == {"a": pytest.approx(20.0)}
    assert "data source synthetic-v1 and synthetic-v2, protocol" in summary.common.conditions
    assert "data source synthetic-v1, protocol" in summaries(boards_of(*first))[0].common.conditions
