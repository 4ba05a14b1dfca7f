"""Figures: every dot, bar, line and cell stands where the records say, and words do not lie on one another."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Text

from kdbench.records import StageResult
from kdbench.report.board import Board, boards
from kdbench.report.curves import Points
from kdbench.report.entries import Entry
from kdbench.report.page import figures, heat, learning, radar
from kdbench.report.page.labels import inches, log_ticks, put_end_labels, put_labels, short
from kdbench.report.page.looks import BEST, SHOWN, leading, looks
from kdbench.report.page.svg import INK, PAPER, STYLE, inline
from kdbench.report.statistics import Interval
from kdbench.report.summary import summaries

SCORES = {"plain": 30.0, "kd": 34.0, "cwd": 28.0}
PASSES = {"plain": 1_000, "kd": 2_000, "cwd": 4_000}


def stage(name: str = "task", passes: int = 1_000, flops: int | None = None, **losses: list[float]) -> StageResult:
    return StageResult(
        name=name, phase="task", key="0", data={"gtav": "synthetic-1"}, steps=10, images=passes,
        student_forwards=passes, flops=flops, losses=losses,
    )  # fmt: skip


@pytest.fixture
def board(make_record) -> Board:
    """Three students and the teacher at five seeds, whose scores scatter by a pattern of their own."""

    def one(method: str, score: float, seed: int, **more: Any) -> Entry:
        scatter = (-1) ** (seed + len(method)) * seed / 2
        stages = [
            stage("source", 500, kd=[8.0, 4.0]),
            stage("task", PASSES.get(method, 700), task=[2.0, 1.0, 0.5]),
            stage("again", 0, task=[0.4]),
        ]
        targets = {"cityscapes": score + scatter}
        return Entry(make_record(targets, method=method, seed=seed, stages=stages, **more))

    roles = {"plain": "undistilled"}
    entries = [one(m, s, seed, role=roles.get(m, "distilled")) for m, s in SCORES.items() for seed in range(5)]
    (found,) = boards([*entries, *(one("teacher", 40.0, seed, role="teacher") for seed in range(5))])
    return found


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_differences_stand_in_order_with_their_intervals(board: Board) -> None:
    axes = figures.differences(board).axes[0]
    found = board.comparison.to_undistilled
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cwd", "kd"]
    dots = {float(line.get_ydata()[0]): float(line.get_xdata()[0]) for line in axes.lines if len(line.get_xdata()) == 1}
    assert dots == {0.0: found["cwd"].value, 1.0: found["kd"].value}
    means = {row.method: row.mean for row in board.rows}
    assert dots[1.0] == pytest.approx(means["kd"] - means["plain"])
    bars = [each.get_segments()[0] for each in axes.collections if isinstance(each, LineCollection)]
    drawn = {float(bar[0][1]): (float(bar[0][0]), float(bar[1][0])) for bar in bars}
    assert drawn == {0.0: tuple(found["cwd"].over_seeds.interval), 1.0: tuple(found["kd"].over_seeds.interval)}
    assert axes.get_xlabel().endswith("plain")
    assert texts(axes).count("5") == 2


def test_intervals_over_images_are_thinner(board: Board) -> None:
    plain = figures.differences(board)
    figure = figures.differences(replace(board, over_images={"kd": Interval(1.0, 7.0)}))
    thick, thin = sorted({each.get_linewidth()[0] for each in figure.axes[0].collections}, reverse=True)
    assert thick > 4 * thin
    (bar,) = [each.get_segments()[0] for each in figure.axes[0].collections if each.get_linewidth()[0] == thin]
    assert bar.tolist() == [[1.0, 1.0], [7.0, 1.0]]
    legends = [[text.get_text() for text in each.legends[0].get_texts()] for each in (plain, figure)]
    assert set(legends[1]) - set(legends[0]) == {"95 % over images"}


def test_a_dot_is_hollow_where_no_verdict_is_given(make_record) -> None:
    entries = [
        Entry(make_record({"cityscapes": s}, method=m, role=r))
        for m, s, r in (("plain", 30.0, "undistilled"), ("kd", 33.0, "distilled"))
    ]
    (dot, zero) = figures.differences(boards(entries)[0]).axes[0].lines
    assert dot.get_markerfacecolor() == PAPER
    assert list(zero.get_xdata()) == [0, 0]


def test_bars_of_means_where_there_is_nobody_to_compare_with(make_record) -> None:
    entries = [Entry(make_record({"cityscapes": value}, method="kd", seed=seed)) for seed, value in ((0, 30), (1, 34))]
    (found,) = boards(entries)
    axes = figures.means(found).axes[0]
    (bar,) = axes.patches
    assert bar.get_width() == pytest.approx(32, abs=0.2)
    low, high = axes.collections[0].get_segments()[0][:, 0]
    assert high - low == pytest.approx(2 * found.rows[0].deviation)


def test_costs_are_image_passes_where_operations_were_not_counted(board: Board) -> None:
    assert figures.measure(board) == "passes"
    axes = figures.costs(board, looks([board])).axes[0]
    held = {row.method: row.mean for row in board.rows}
    dots = sorted((line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if len(line.get_xdata()) == 1)
    assert dots == [(500 + PASSES[name], held[name]) for name in ("plain", "kd", "cwd")]
    front = axes.lines[0]
    assert list(zip(front.get_xdata(), front.get_ydata(), strict=True)) == dots[:2]
    teacher = [line for line in axes.lines if list(line.get_xdata()) == [0, 1]]
    assert [line.get_ydata()[0] for line in teacher] == [held["teacher"]]
    assert set(texts(axes)) == {"teacher", "plain", "kd", "cwd"}
    assert axes.get_xscale() == "log"


def test_costs_are_operations_where_they_were_counted(make_record) -> None:
    entries = [
        Entry(make_record({"cityscapes": 30.0 + k}, method=f"m{k}", stages=[stage(flops=10**12 * (k + 1))]))
        for k in range(3)
    ]
    (found,) = boards(entries)
    assert figures.measure(found) == "flops"
    xs = [line.get_xdata()[0] for line in figures.costs(found, looks([found])).axes[0].lines[1:]]
    assert sorted(xs) == [1e12, 2e12, 3e12]


def test_the_heat_map_shows_differences_and_the_undistilled_students_own(make_record, make_domain) -> None:
    own, theirs = np.diag([80, 40, 0]), np.diag([70, 60, 0])
    own[0, 1], theirs[0, 1] = 20, 10
    own[1, 0], theirs[1, 0] = 60, 40
    entries = [
        Entry(make_record(domains=[make_domain("cityscapes", "target", counts)], method=method, role=role, seed=seed))
        for counts, method, role, seed in (
            (own, "plain", "undistilled", 0), (theirs, "kd", "distilled", 0), (theirs, "cwd", "distilled", 1),
        )
    ]  # fmt: skip
    (found,) = boards(entries)
    upper, lower = heat.heat_map(found).axes
    # By hand: road 80 of 80 + 20 + 60, building 40 of 40 + 60 + 20; 70 of 120 and 60 of 110. No sky anywhere.
    assert texts(upper) == ["50", "33"]
    values = np.ma.filled(lower.collections[0].get_array(), np.nan)
    expected = [100 * 70 / 120 - 50, 100 * 60 / 110 - 100 / 3, np.nan]
    np.testing.assert_allclose(values, [expected, expected])
    assert texts(lower) == ["+8", "+21"] * 2
    assert [label.get_text() for label in lower.get_yticklabels()] == ["cwd *", "kd"]
    assert heat.colour_limit(found) == 22


def test_the_heat_map_shows_iou_without_an_undistilled_student(make_record) -> None:
    (found,) = boards([Entry(make_record({"cityscapes": 40.0}))])
    (axes,) = heat.heat_map(found).axes
    assert texts(axes) == ["40"] * 3


def test_curves_are_those_of_the_rows(board: Board) -> None:
    figure = learning.points(board, looks([board]))
    for axes, name, style in zip(figure.axes, ("targets", "source"), ("-", "--"), strict=True):
        drawn = sorted(tuple(line.get_ydata()) for line in axes.lines)
        assert drawn == sorted(getattr(row.points, name) for row in board.rows)
        assert {line.get_linestyle() for line in axes.lines} == {style}
        assert sorted(texts(axes)) == sorted(row.method for row in board.rows)


def test_a_row_with_fewer_kept_points_ends_where_the_others_do(board: Board) -> None:
    """Its one point is its last, as the others' last is theirs."""
    first, *others = board.rows
    short = replace(first, points=Points(first.points.targets[-1:], first.points.source[-1:]))
    figure = learning.points(replace(board, rows=(short, *others)), looks([board]))
    for axes in figure.axes:
        assert len({line.get_xdata()[-1] for line in axes.lines}) == 1
        assert min(len(line.get_xdata()) for line in axes.lines) == 1


def test_losses_stand_one_stage_after_the_other(board: Board) -> None:
    figure = learning.losses(board)
    assert len(figure.axes) == len(board.rows)
    by_title = {axes.get_title(loc="left"): axes for axes in figure.axes}
    kd = {tuple(line.get_xdata()): tuple(line.get_ydata()) for line in by_title["kd"].lines}
    assert kd[(0, 1)] == (8.0, 4.0)
    assert kd[(2, 3, 4)] == (2.0, 1.0, 0.5)
    assert kd[(5,)] == (0.4,)
    assert {"source", "task", "again", "kd"} <= set(texts(by_title["kd"]))


def test_the_radar_scales_every_axis_by_its_own_lowest_and_highest(make_record) -> None:
    table = {"g2a": (30.0, 40.0, 50.0), "g2b": (20.0, 25.0, 60.0), "g2c": (10.0, 12.0, 11.0)}
    entries = [
        Entry(make_record({"cityscapes": value}, method=f"m{k}", benchmark=name))
        for name, values in table.items()
        for k, value in enumerate(values)
    ] + [Entry(make_record({"cityscapes": 99.0}, method="partial", benchmark="g2a"))]
    found = boards(entries)
    (summary,) = summaries(found)
    axes = radar.radar(summary, looks(found)).axes[0]
    polygons = [line for line in axes.lines if line.get_marker() != "None"]
    assert len(polygons) == 3
    held = {board.benchmark: {row.method: row.mean for row in board.rows} for board in found}
    for line in polygons:
        reach = np.array(line.get_ydata())
        assert reach[0] == reach[-1]
    reaches = {tuple(np.round(line.get_ydata()[:-1], 9)) for line in polygons}
    expected = set()
    for method in ("m0", "m1", "m2"):
        shares = []
        for name in table:
            values = [held[name][each] for each in ("m0", "m1", "m2")]
            shares.append(round(0.2 + 0.8 * (held[name][method] - min(values)) / (max(values) - min(values)), 9))
        expected.add(tuple(shares))
    assert reaches == expected
    assert texts(axes)[0] == "g2a\n30.0 to 50.0"


def test_the_best_of_a_board_differ_in_colour_and_keep_it_on_the_page(make_record) -> None:
    entries = [Entry(make_record({"cityscapes": 60.0 - k}, method=f"m{k:02}")) for k in range(35)]
    entries += [Entry(make_record({"cityscapes": 20.0}, method="plain", role="undistilled"))]
    (found,) = boards(entries)
    drawn, shown = looks([found]), leading(found.rows, found.comparison)
    assert shown == ["plain", "m00", "m01", "m02", "m03", "m04"]
    assert len(shown) == BEST + 1 < SHOWN
    assert len({drawn[method].colour for method in shown}) == len(shown)
    assert len(set(drawn.values())) == len(drawn) == 36


def test_one_lucky_seed_does_not_stand_out_before_five(make_record) -> None:
    entries = [
        Entry(make_record({"cityscapes": 30.0 - k}, method=f"m{k:02}", seed=seed))
        for k in range(6)
        for seed in range(5)
    ]
    entries += [Entry(make_record({"cityscapes": 60.0}, method=f"lucky{k}")) for k in range(4)]
    (found,) = boards(entries)
    assert leading(found.rows, found.comparison) == ["m00", "m01", "m02", "m03", "m04"]


def test_who_stands_out_on_a_later_board_differs_from_those_beside(make_record) -> None:
    first = [Entry(make_record({"cityscapes": 60.0 - k}, method=f"m{k}")) for k in range(7)]
    first.append(Entry(make_record({"cityscapes": 20.0}, method="plain", role="undistilled")))
    later = [
        Entry(make_record({"cityscapes": 50.0 - k}, method=name, benchmark="g2x")) for k, name in enumerate(("m0", "n"))
    ]
    found = boards([*first, *later])
    drawn = looks(found)
    assert drawn["m0"].colour != drawn["n"].colour
    assert all(drawn[method] == look for method, look in looks(found[:1]).items())


def overlapping(axes: Any) -> list[tuple[str, str]]:
    """Pairs of texts whose letters lie on one another, by matplotlib's own measure."""
    axes.figure.draw_without_rendering()
    found = [(text.get_text(), Text.get_window_extent(text).padded(-0.5)) for text in axes.texts]
    return [(a, b) for i, (a, box) in enumerate(found) for b, other in found[i + 1 :] if box.overlaps(other)]


@pytest.mark.parametrize("seed", range(3))
def test_labels_of_many_points_do_not_lie_on_one_another(seed: int) -> None:
    draw = np.random.default_rng(seed)
    points = {f"method-{k:02}": (float(draw.choice([1, 2, 2.1, 3])), float(draw.normal(25, 2))) for k in range(35)}
    with rc_context(STYLE):
        figure = Figure(figsize=(5.2, 6.6))
        axes = figure.add_axes((0.1, 0.1, 0.85, 0.85))
        axes.set(xlim=(0, 4), ylim=(18, 32))
        put_labels(axes, points)
        assert len(axes.texts) >= 30
        assert not overlapping(axes)


def test_labels_at_ends_keep_their_order_and_their_distance() -> None:
    ends = {"a": (1.0, 10.0), "b": (1.0, 10.1), "c": (1.0, 9.95), "far": (1.0, 2.0)}
    with rc_context(STYLE):
        figure = Figure(figsize=(4, 3))
        axes = figure.add_axes((0.1, 0.1, 0.6, 0.8))
        axes.set(xlim=(0, 1), ylim=(0, 12))
        put_end_labels(axes, ends, size=8)
        heights = {
            text.get_text(): axes.transData.transform(ends[text.get_text()])[1] + text.xyann[1] for text in axes.texts
        }
    assert sorted(heights, key=heights.get) == ["far", "c", "a", "b"]
    assert heights["a"] - heights["c"] == pytest.approx(1.2 * 8)
    assert heights["b"] - heights["a"] == pytest.approx(1.2 * 8)
    assert heights["far"] == pytest.approx(axes.transData.transform((1, 2))[1])


def test_ticks_of_a_logarithmic_axis() -> None:
    assert log_ticks(0.9, 12, 9) == [1, 2, 5, 10]
    assert log_ticks(0.9, 12, 2) == [1, 5]
    assert log_ticks(3, 4, 4) == []


def test_long_names_keep_both_ends() -> None:
    name = "method[temperature=4,weight=0.5,layers=3]"
    assert short("method") == "method"
    assert short(name).startswith("method[tem")
    assert short(name).endswith("layers=3]")
    assert len(short(name)) == 28
    assert inches([name]) == inches([short(name)]) > inches(["method"])


def drawing(text: str = "0.0012345") -> Figure:
    with rc_context(STYLE):
        figure = Figure(figsize=(2, 1))
        axes = figure.add_axes((0.2, 0.2, 0.7, 0.7))
        axes.plot([0, 1], [0, 1], "o-", color=PAPER)
        axes.set_title(text)
    return figure


def test_svg_is_inked_by_the_page_and_keeps_to_itself() -> None:
    text = inline(drawing(), "b0-x", 'what "it" shows')
    assert INK not in text
    assert PAPER not in text
    assert "currentColor" in text
    assert "var(--paper)" in text
    assert "http" not in text
    assert "<style" not in text
    assert "font-family" not in text
    assert 'aria-label="what &quot;it&quot; shows"' in text
    ids = re.findall(r' id="([^"]*)"', text)
    used = re.findall(r'(?:href="|url\()#([^")]*)', text)
    assert set(ids) == set(used)
    assert all(name.startswith("b0-x-") for name in ids)
    assert ids


def test_svg_shortens_coordinates_but_no_words() -> None:
    text = inline(drawing(), "a", "")
    assert ">0.0012345<" in text
    assert not re.search(r'[ "]-?\d+\.\d{3,}[^<]*"', text)


def test_svg_escapes_words_and_takes_no_formulas() -> None:
    text = inline(drawing("<script>$a$ & b"), "a", "<script>")
    assert "&lt;script&gt;$a$ &amp; b" in text
    assert "<script" not in text


def test_the_same_figure_gives_the_same_bytes() -> None:
    assert inline(drawing(), "a", "x") == inline(drawing(), "a", "x")
