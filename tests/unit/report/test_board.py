"""Boards: what is grouped, ordered, averaged and left blank; what load keeps, replaces and refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdbench.errors import KdbenchError
from kdbench.records import StageResult
from kdbench.report.board import Board, boards
from kdbench.report.entries import Entry, load

ACDC = ("acdc-night", "acdc-snow")


def one(*records) -> Board:
    """The only board of these records."""
    (board,) = boards(map(Entry, records))
    return board


def methods(board: Board) -> list[str]:
    return [row.method for row in board.rows]


def score(value: float) -> dict[str, float]:
    return {"cityscapes": value}


def test_the_teacher_then_undistilled_then_distilled_best_first(make_record) -> None:
    board = one(
        make_record(score(0), method="cwd"),
        make_record(error="stopped", method="akd"),
        make_record(score(50), method="plain", role="undistilled"),
        make_record(score(40), method="gkd"),
        make_record(score(20), role="teacher"),
        make_record(score(45), method="gkd", variant="weight=2"),
    )
    assert methods(board) == ["teacher", "plain", "gkd[weight=2]", "gkd", "cwd", "akd"]


def test_values_of_a_row(make_record) -> None:
    targets = {"acdc-night": 30.0, "acdc-snow": 50.0}
    row = one(make_record(targets, {"a": 60.0, "b": 80.0}, benchmark="c2a", deployed=7)).rows[0]
    assert row.targets == (30, 50)
    assert (row.mean, row.source, row.gap, row.parameters) == (40, 70, 30, 7)


def test_no_mean_over_a_target_without_labels(make_record, make_domain) -> None:
    domains = list(make_record({"acdc-night": 30.0}).result.domains)
    empty = make_domain("acdc-snow", "target", domains[0].confusion * 0)
    row = one(make_record(domains=[*domains, empty], benchmark="c2a")).rows[0]
    assert row.targets == (30, None)
    assert (row.mean, row.gap, row.source) == (None, None, 60)


def test_a_record_without_one_of_the_targets_has_a_blank_and_no_mean(make_record) -> None:
    board = one(
        make_record({"acdc-night": 30.0, "acdc-snow": 50.0}, benchmark="c2a", method="kd"),
        make_record({"acdc-night": 90.0}, benchmark="c2a", method="gkd"),
    )
    assert board.columns == tuple(f"synthetic {name}-like" for name in ACDC)
    assert methods(board) == ["kd", "gkd"]
    assert (board.rows[1].targets, board.rows[1].mean, board.rows[1].gap) == ((90, None), None, None)


def test_means_over_seeds(make_record) -> None:
    row = one(*(make_record(score(20 + 10 * seed), {"gtav": 60 - 10 * seed}, seed=seed) for seed in (2, 0, 1))).rows[0]
    assert row.seeds == (0, 1, 2)
    assert (row.targets, row.mean, row.source, row.gap) == ((30,), 30, 50, 20)


def test_deviation_and_worst_target(make_record) -> None:
    values = {0: (20.0, 50.0), 1: (30.0, 60.0), 4: (40.0, 40.0)}
    targets = ({"acdc-night": night, "acdc-snow": snow} for night, snow in values.values())
    row = one(*(make_record(t, seed=s, benchmark="c2a") for s, t in zip(values, targets, strict=True))).rows[0]
    assert row.by_seed == values
    assert row.scores == {0: 35, 1: 45, 4: 40}
    assert (row.targets, row.mean, row.deviation, row.worst) == ((30, 50), 40, 5, 30)


def test_one_seed_has_no_deviation(make_record) -> None:
    assert one(make_record()).rows[0].deviation is None


def test_classes_are_averaged_over_the_targets_that_show_them(make_record, make_domain) -> None:
    """road in both targets, building in the first, sky in none: it is only guessed there."""
    night = make_domain("acdc-night", "target", np.array([[50, 50, 0], [0, 100, 0], [0, 0, 0]]))
    snow = make_domain("acdc-snow", "target", np.array([[60, 20, 20], [0, 0, 0], [0, 0, 0]]))
    row = one(make_record(domains=[night, snow], benchmark="c2a")).rows[0]
    assert row.classes == (pytest.approx((50 + 60) / 2), pytest.approx(100 * 100 / 150), None)
    assert row.accuracy == pytest.approx((75 + 60) / 2)


def test_classes_are_blank_where_a_target_is_missing(make_record) -> None:
    board = one(
        make_record({"acdc-night": 30.0, "acdc-snow": 50.0}, benchmark="c2a", method="kd"),
        make_record({"acdc-night": 90.0}, benchmark="c2a", method="gkd"),
    )
    assert board.rows[1].classes == (None, None, None)
    assert board.rows[1].chosen == {}


def test_the_source_is_what_was_trained_on_even_if_nothing_validates_it(make_record) -> None:
    stage = StageResult(
        name="task", phase="task", key="0", data={"gtav": "real"}, steps=1, images=1, student_forwards=1, losses={}
    )
    board = one(make_record(sources={}, stages=[stage], data_source="real", model_set="pretrained"))
    assert (board.validated, board.sources) == ((), ("gtav",))
    assert (board.rows[0].source, board.rows[0].gap) == (None, None)


def test_the_first_undistilled_row_without_a_variant_is_compared_with(make_record) -> None:
    board = one(
        make_record(score(50), method="plain", role="undistilled", variant="longer"),
        make_record(score(40), method="plain", role="undistilled"),
        make_record(score(45)),
    )
    assert board.comparison.undistilled == "plain"
    assert board.comparison.to_undistilled["gkd"].value == 5


def test_a_failed_row_is_compared_with_nobody(make_record) -> None:
    board = one(
        make_record(score(40), method="plain", role="undistilled"),
        make_record(error="stopped"),
        make_record(method="kd"),
    )
    assert set(board.comparison.to_undistilled) == {"kd"}


def test_a_failed_undistilled_student_leaves_the_comparison_with_the_best(make_record) -> None:
    board = one(
        make_record(error="stopped", method="plain", role="undistilled"),
        make_record(score(40)),
        make_record(score(50), method="kd"),
    )
    assert (board.comparison.undistilled, board.comparison.best) == (None, "kd")
    assert board.comparison.to_best["gkd"].value == -10


def test_seeds_of_different_domains_are_blank(make_record) -> None:
    row = one(make_record(score(20)), make_record({"bdd100k": 40.0}, seed=1)).rows[0]
    assert (row.targets, row.mean, row.source) == ((None, None), None, None)
    assert "different domains" in row.footnote


def test_a_failed_seed_leaves_its_row_blank(make_record) -> None:
    row = one(make_record(score(20)), make_record(error="no memory\nTraceback", seed=1)).rows[0]
    assert (row.seeds, row.mean, row.footnote) == ((0, 1), None, "seed 1 failed: no memory")


def test_a_failed_record_is_a_row_of_blanks(make_record) -> None:
    row = one(make_record(score(20), method="kd"), make_record(error="no memory\nTraceback")).rows[1]
    assert (row.method, row.targets, row.source, row.parameters) == ("gkd", (None,), None, None)
    assert row.footnote == "failed: no memory"


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
        {"classes": ["road", "building", "water"]},
    ],
    ids=str,
)
def test_what_may_not_be_ranked_together_is_apart(make_record, other: dict) -> None:
    found = boards(map(Entry, (make_record(method="kd"), make_record(**other))))
    assert sorted(methods(board) for board in found) == [["gkd"], ["kd"]]


def test_two_world_versions_are_apart_however_they_are_mixed(make_record) -> None:
    targets = {"acdc-night": 30.0, "acdc-snow": 50.0}
    mixed = [
        make_record(targets, method=m, data_sources={name: "synthetic-2"})
        for m, name in zip("ab", targets, strict=True)
    ]
    assert [methods(board) for board in boards(map(Entry, mixed))] in ([["a"], ["b"]], [["b"], ["a"]])


def test_the_teacher_heads_every_board_of_its_place(make_record) -> None:
    records = [
        make_record(role="teacher"),
        make_record(role="teacher", protocol_id="mini-00000000"),
        make_record(role="teacher", benchmark="c2a"),
        make_record(student="resnet18"),
        make_record(student="resnet50"),
    ]
    found = [(b.protocol_id, b.benchmark, b.pair, methods(b)) for b in boards(map(Entry, records))]
    assert found == [
        ("mini-00000000", "g2c", "dinov2-l", ["teacher"]),
        ("mini-1a2b3c4d", "c2a", "dinov2-l", ["teacher"]),
        ("mini-1a2b3c4d", "g2c", "dinov2-l:resnet18", ["teacher", "gkd"]),
        ("mini-1a2b3c4d", "g2c", "dinov2-l:resnet50", ["teacher", "gkd"]),
    ]


def test_nothing_small_or_drawn_goes_by_a_bare_name(make_record) -> None:
    board = one(make_record())
    assert board.models == ("mini:dinov2-l", "mini:resnet50")
    assert (board.columns, board.validated) == (("synthetic cityscapes-like",), ("synthetic gtav-like",))
    assert board.data_sources == {"synthetic cityscapes-like": "synthetic-1", "synthetic gtav-like": "synthetic-1"}
    assert board.title == "synthetic likeness of GTAV to Cityscapes"


def test_real_things_go_by_their_names(make_record) -> None:
    board = one(make_record(data_source="real", model_set="published"))
    assert (board.models, board.columns, board.validated) == (("dinov2-l", "resnet50"), ("cityscapes",), ("gtav",))
    assert board.title == "GTAV to Cityscapes"


def test_the_conditions_say_what_the_numbers_hold_for(make_record) -> None:
    caption = one(make_record(role="teacher"), make_record()).conditions
    for part in ("mini:dinov2-l", "mini:resnet50", "F2L", "synthetic-1", "mini-1a2b3c4d", "decoder light"):
        assert part in caption


def test_a_run_replaces_the_same_cell_of_the_reference(tmp_path: Path, make_record, write) -> None:
    runs, reference = tmp_path / "runs", tmp_path / "reference"
    write(reference, make_record(score(10), method="kd"))
    write(reference, make_record(score(20)))
    write(runs, make_record(score(30)))
    board = boards(load(runs, reference).entries)[0]
    assert [(row.method, row.mean, row.reference) for row in board.rows] == [("gkd", 30, False), ("kd", 10, True)]


def test_a_row_that_is_partly_reference_says_which_seeds(make_record) -> None:
    entries = [Entry(make_record(seed=seed), reference=seed > 0) for seed in range(3)]
    row = boards(entries)[0].rows[0]
    assert (row.reference, row.footnote) == (False, "seeds 1, 2: reference")


def test_invalid_files_are_reported_and_harm_nothing(tmp_path: Path, make_record, write) -> None:
    write(tmp_path, make_record())
    broken = write(tmp_path, make_record(seed=1))
    broken.write_text("{}", encoding="utf-8")
    loaded = load(tmp_path, None)
    assert [entry.cell.seed for entry in loaded.entries] == [0]
    assert len(loaded.faults) == 1
    assert str(broken) in loaded.faults[0]


@pytest.fixture
def folder(tmp_path: Path, make_record, write) -> Path:
    for pid, name in (("mini-1a2b3c4d", "mini"), ("mini-00000000", "mini"), ("smoke-1a2b3c4d", "smoke")):
        for benchmark in ("g2c", "g2b"):
            for student in ("resnet50", "resnet18"):
                write(tmp_path, make_record(protocol=name, protocol_id=pid, benchmark=benchmark, student=student))
            write(tmp_path, make_record(protocol=name, protocol_id=pid, benchmark=benchmark, role="teacher"))
    return tmp_path


def test_filters_by_protocol(folder: Path) -> None:
    by_name = load(folder, None, protocol="mini").entries
    assert {entry.cell.protocol_id for entry in by_name} == {"mini-1a2b3c4d", "mini-00000000"}
    by_id = load(folder, None, protocol="mini-00000000").entries
    assert {entry.cell.protocol_id for entry in by_id} == {"mini-00000000"}


def test_filters_by_the_track_of_a_protocol(tmp_path: Path, make_record, write) -> None:
    for name in ("mini-12345678", "mini-equal-12345678"):
        write(tmp_path, make_record(protocol="mini", protocol_id=name))
    found = {asked: len(load(tmp_path, None, protocol=asked).entries) for asked in ("mini", "mini-equal")}
    assert found == {"mini": 2, "mini-equal": 1}


def test_filters_by_benchmark_and_pair(folder: Path) -> None:
    found = boards(load(folder, None, benchmarks=["g2b"], pairs=["dinov2-l:resnet18"]).entries)
    assert {(board.benchmark, board.pair) for board in found} == {("g2b", "dinov2-l:resnet18")}
    assert all(methods(board) == ["teacher", "gkd"] for board in found)


def test_a_pair_that_a_benchmark_lacks_gives_no_board_there(folder: Path, make_record, write) -> None:
    write(folder, make_record(student="mit-b0"))
    assert len(boards(load(folder, None, pairs=["dinov2-l:mit-b0"]).entries)) == 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"protocol": "minj"}, "'minj'. Did you mean 'mini'"),
        ({"benchmarks": ["g2c", "g2x"]}, "'g2x'.*Known: g2b, g2c"),
        ({"pairs": ["dinov2-l:resnet5"]}, "Did you mean 'dinov2-l:resnet50'"),
    ],
    ids=str,
)
def test_an_unknown_filter_lists_what_the_records_hold(folder: Path, asked: dict, message: str) -> None:
    with pytest.raises(KdbenchError, match=message):
        load(folder, None, **asked)


def test_no_records_at_all_says_where_and_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(KdbenchError) as caught:
        load(tmp_path / "runs", tmp_path / "reference")
    for part in (str(tmp_path / "runs"), str(tmp_path / "reference"), "kdbench run"):
        assert part in str(caught.value)


def test_a_seed_that_was_run_before_a_knob_existed_is_averaged_with_later_ones(make_record) -> None:
    options = ({"temperature": 2.0}, {"temperature": 2.0, "values": "student"})
    entries = [
        Entry(make_record({"cityscapes": 40.0 + 2 * seed}, seed=seed, options=known))
        for seed, known in enumerate(options)
    ]
    (board,) = boards(entries)
    (row,) = board.rows
    assert row.targets[0] == pytest.approx(41.0)
    assert "options" not in row.footnote


def test_seeds_with_different_knobs_are_not_averaged(make_record) -> None:
    """As a label that was given to two settings would do."""
    entries = [
        Entry(make_record({"cityscapes": 40.0 + seed}, seed=seed, variant="warm", options={"temperature": 2.0 + seed}))
        for seed in (0, 1)
    ]
    (board,) = boards(entries)
    (row,) = board.rows
    assert row.targets == (None,)
    assert "different knobs" in row.footnote


def began_with(make_record, weights: list[str], method: str = "cwd", role: str = "distilled") -> list[Entry]:
    return [
        Entry(make_record(
            {"cityscapes": 40.0 + seed}, seed=seed, method=method, role=role, weights={"dinov2-l": "t", "resnet50": own}
        ))
        for seed, own in enumerate(weights)
    ]  # fmt: skip


def test_a_seed_of_another_student_is_not_averaged_with_the_rest(make_record) -> None:
    (board,) = boards(began_with(make_record, ["new", "new", "old"]))
    (row,) = board.rows
    assert row.targets == (None,)
    assert (
        row.footnote
        == "blank: seed 2 began with other weights of resnet50 than most records of this board; run all with the same"
    )


def test_a_row_of_another_student_is_not_compared_with_the_board(make_record) -> None:
    alone = began_with(make_record, ["old", "old"], "baseline", "undistilled")
    (board,) = boards([*alone, *began_with(make_record, ["new"] * 3)])
    values = {row.method: row.mean for row in board.rows}
    assert values == {"baseline": None, "cwd": pytest.approx(41.0)}


def test_a_record_that_does_not_know_its_weights_stands_with_later_ones(make_record) -> None:
    old = Entry(make_record({"cityscapes": 43.0}, seed=3, method="cwd"))
    (board,) = boards([*began_with(make_record, ["new"] * 3), old])
    assert board.rows[0].mean == pytest.approx(41.5)
