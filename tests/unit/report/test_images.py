"""The bootstrap over images against scipy's, and side files that are damaged or belong to another record."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from kdbench.errors import KdbenchError
from kdbench.metrics import hits, miou
from kdbench.records import SIDE_FILE
from kdbench.report.board import boards
from kdbench.report.entries import Entry, load
from kdbench.report.images import RESAMPLES, interval, read_targets, resample


def matrices(seed: int, right: float, images: int = 30, classes: int = 3) -> np.ndarray:
    """Confusion matrices (N, K, K) of images whose labels are a function of the image alone."""
    labels = np.random.default_rng(0).integers(20, 200, (images, classes))
    dice = np.random.default_rng(seed)
    share = np.clip(dice.normal(right, 0.1, (images, classes)), 0, 1)
    hit = np.round(labels * share).astype(np.int64)
    diagonal = np.eye(classes, dtype=np.int64)
    return hit[..., None] * diagonal + (labels - hit)[..., None] * np.roll(diagonal, 1, axis=1)


def written(folder: Path, make_record, make_domain, write, counts: dict[str, np.ndarray], **cell) -> Path:
    """A record of targets with its side file."""
    domains = [make_domain(name, "target", each.sum(0)) for name, each in counts.items()]
    path = write(folder, make_record(domains=domains, benchmark="c2a", **cell))
    np.savez_compressed(path.with_name(path.stem + SIDE_FILE), **{name: hits(each) for name, each in counts.items()})
    return path


def test_a_resample_is_the_miou_of_images_drawn_with_replacement() -> None:
    counts = hits(matrices(1, 0.6))
    found = resample(counts, "city").miou
    assert found.shape == (RESAMPLES,)
    assert found.mean() == pytest.approx(miou(counts.sum(0)), abs=0.3)
    expected = stats.bootstrap(
        (np.arange(len(counts)),), lambda index: miou(counts[index].sum(0)), vectorized=False, n_resamples=4000,
        method="percentile", rng=1,
    )  # fmt: skip
    assert np.quantile(found, (0.025, 0.975)) == pytest.approx(tuple(expected.confidence_interval), abs=0.35)
    assert found.std(ddof=1) == pytest.approx(expected.standard_error, rel=0.1)


def test_the_interval_of_a_difference_is_scipys_paired_bootstrap() -> None:
    """Two seeds of two models on two targets; the images of a target are the same for all."""
    ours = [{name: matrices(seed, 0.65, n) for name, n in (("a", 30), ("b", 40))} for seed in (1, 2)]
    theirs = [{name: matrices(seed, 0.6, n) for name, n in (("a", 30), ("b", 40))} for seed in (3, 4)]

    def drawn(models: list[dict[str, np.ndarray]]) -> list:
        return [{name: resample(hits(each), name) for name, each in model.items()} for model in models]

    def difference(first: np.ndarray, second: np.ndarray) -> float:
        def mean(models: list[dict[str, np.ndarray]]) -> float:
            index = {"a": first, "b": second}
            return np.mean([miou(hits(m[name])[index[name]].sum(0)) for m in models for name in index])

        return mean(ours) - mean(theirs)

    expected = stats.bootstrap(
        (np.arange(30), np.arange(40)), difference, vectorized=False, n_resamples=1500, method="percentile", rng=0
    )
    found, (low, high) = interval(drawn(ours), drawn(theirs)), expected.confidence_interval
    assert found == pytest.approx((low, high), abs=0.1)
    assert found.high - found.low == pytest.approx(high - low, rel=0.1)


def test_equal_models_differ_by_nothing_on_any_draw() -> None:
    drawn = [{"a": resample(hits(matrices(1, 0.6)), "a")}]
    assert interval(drawn, drawn) == (0, 0)


def test_draws_differ_between_domains_and_repeat() -> None:
    counts = hits(matrices(1, 0.6))
    assert np.array_equal(resample(counts, "a").miou, resample(counts, "a").miou)
    assert not np.array_equal(resample(counts, "a").miou, resample(counts, "b").miou)


def test_models_that_saw_other_images_are_not_paired() -> None:
    counts = hits(matrices(1, 0.6))
    ours, theirs = [{"a": resample(counts, "a")}], [{"a": resample(counts[::-1], "a")}]
    assert interval(ours, theirs) is None
    assert interval(ours, [None]) is None
    assert interval([], []) is None


def test_a_board_has_the_interval_where_all_side_files_are(tmp_path: Path, make_record, make_domain, write) -> None:
    for seed in (0, 1):
        for method, role, right in (("plain", "undistilled", 0.5), ("gkd", "distilled", 0.7), ("kd", "distilled", 0.6)):
            counts = {"acdc-night": matrices(seed, right)}
            written(tmp_path, make_record, make_domain, write, counts, method=method, role=role, seed=seed)
    next(tmp_path.rglob(f"kd-s1{SIDE_FILE}")).unlink()
    (board,) = boards(load(tmp_path, None).entries)
    assert set(board.over_images) == {"gkd"}
    low, high = board.over_images["gkd"]
    assert low < board.comparison.to_undistilled["gkd"].value < high
    assert board.faults == ()


def test_records_alone_have_no_interval(make_record) -> None:
    records = (make_record(method="plain", role="undistilled"), make_record())
    (board,) = boards(map(Entry, records))
    assert board.over_images == {}


def test_a_single_image_has_no_interval(tmp_path: Path, make_record, make_domain, write) -> None:
    path = written(tmp_path, make_record, make_domain, write, {"acdc-night": matrices(0, 0.5, images=1)})
    assert read_targets(path, load(tmp_path, None).entries[0].record) is None


@pytest.mark.parametrize("fault", ["cut off", "overwritten", "no archive", "of another record", "without a target"])
def test_a_damaged_side_file_is_named_and_harms_no_board(
    tmp_path: Path, make_record, make_domain, write, fault: str
) -> None:
    counts = {"acdc-night": matrices(0, 0.5), "acdc-snow": matrices(1, 0.5)}
    written(tmp_path, make_record, make_domain, write, counts, method="plain", role="undistilled")
    path = written(tmp_path, make_record, make_domain, write, counts)
    side = path.with_name(path.stem + SIDE_FILE)
    whole = side.read_bytes()
    if fault == "cut off":
        side.write_bytes(whole[: len(whole) // 2])
    elif fault == "overwritten":
        side.write_bytes(whole[:80] + b"\xff" * 40 + whole[120:])
    elif fault == "no archive":
        side.write_text("{}")
    else:
        kept = ("acdc-night",) if fault == "without a target" else counts
        np.savez_compressed(side, **{name: hits(matrices(9, 0.4)) for name in kept})
    (entry,) = [entry for entry in load(tmp_path, None).entries if entry.path == path]
    with pytest.raises(KdbenchError, match=rf"gkd-s0{SIDE_FILE}.*--fresh"):
        read_targets(path, entry.record)
    (board,) = boards(load(tmp_path, None).entries)
    assert board.over_images == {}
    assert len(board.faults) == 1
    assert str(side) in board.faults[0]
