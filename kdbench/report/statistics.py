"""Statistics of paired scores: t tests, corrections, verdicts, ranks and the bootstrap over images.

Scores are frames of methods x seeds: mIoU in percent, nan where a seed was not run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import nctdtrinc, stdtr, stdtrit

from kdbench.identity import seed_from
from kdbench.metrics import mious

LEVEL = 0.05
"""Intervals cover 1 - LEVEL; a corrected p below it is a verdict."""
POWER = 0.8
ENOUGH = 5
"""Paired seeds from which on a verdict is given: below, a t test rests on a deviation that is hardly known."""
RESAMPLES = 1000
"""Draws of the bootstrap over images."""

Correction = Callable[[Sequence[float]], list[float]]
"""p values of a family, corrected for their number."""
Verdict = Literal["better", "worse", "tie", "not resolvable"]
DIFFERENCE = ["value", "seeds", "deviation", "low", "high", "df", "p", "verdict"]
"""Columns of a frame of differences."""


class PairedT(NamedTuple):
    """A test of paired differences: their mean and deviation, the interval of the mean, a two-sided p."""

    mean: float
    deviation: float
    low: float
    high: float
    df: int
    p: float


def deviation(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation (n - 1); None of fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def paired_t(differences: Sequence[float] | np.ndarray) -> PairedT | None:
    """Test paired differences against zero with Student's t; None of fewer than two.

    Differences that are all the same leave no doubt: their p is 0, or 1 where they are zero.
    """
    if len(differences) < 2:
        return None
    # The last bits of sums in another order are no difference, however often they recur.
    known = np.round(differences, 9)
    df, mean, scatter = len(known) - 1, float(known.mean()), float(known.std(ddof=1))
    error = scatter / math.sqrt(len(known))
    half = float(stdtrit(df, 1 - LEVEL / 2)) * error
    p = 2 * float(stdtr(df, -abs(mean) / error)) if error else float(mean == 0)
    return PairedT(mean, scatter, mean - half, mean + half, df, p)


def holm(p: Sequence[float]) -> list[float]:
    """Correct p values by Holm's step-down procedure (Scand. J. Statist. 6, 1979), in the given order."""
    order = np.argsort(p)
    steps = np.asarray(p, float)[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return list(map(float, corrected))


def bonferroni_pairs(p: Sequence[float]) -> list[float]:
    """Correct p values of the best of len(p) + 1 methods against each of the others by Bonferroni over all pairs.

    Which one is the best was found from the same scores, so any pair could have been tested.
    """
    pairs = len(p) * (len(p) + 1) // 2
    return [min(1.0, pairs * each) for each in p]


def pooled_deviation(deviations: Sequence[float], df: Sequence[int]) -> float:
    """Return the root of the mean variance, weighted by degrees of freedom."""
    total = sum(free * each**2 for each, free in zip(deviations, df, strict=True))
    return math.sqrt(total / sum(df))


def detectable_difference(deviation: float, seeds: int, comparisons: int) -> float:
    """Return the true difference that a two-sided paired t test finds with probability POWER in Holm's worst case.

    d = nc * deviation / sqrt(seeds). nc: the noncentrality at which the noncentral t of seeds - 1 degrees of freedom
    exceeds, with that probability, the critical value of level LEVEL / comparisons, Holm's first step. The other tail
    is left out: at this power it holds nothing.
    """
    critical = stdtrit(seeds - 1, 1 - LEVEL / comparisons / 2)
    noncentrality = float(nctdtrinc(seeds - 1, 1 - POWER, critical))
    return noncentrality * deviation / math.sqrt(seeds)


def verdict(value: float, p: float, seeds: int) -> Verdict:
    """Judge a difference by its corrected p. A tie is a difference that was not found, not one that was excluded."""
    if np.isnan(p) or seeds < ENOUGH:
        return "not resolvable"
    if p >= LEVEL:
        return "tie"
    return "better" if value > 0 else "worse"


def judge(paired: pd.DataFrame, correct: Correction = holm) -> pd.DataFrame:
    """Test differences (rows x seeds, nan where unpaired) against zero; a row without any is left out.

    Returns:
        DIFFERENCE by row: the mean, its seeds, and of several seeds the test; p is corrected over all rows.
    """
    rows = {}
    for name, seeds, values in zip(paired.index, seeds_of(paired), paired.to_numpy(float), strict=True):
        if seeds:
            known = values[np.isfinite(values)]
            test = paired_t(known) or PairedT(math.nan, math.nan, math.nan, math.nan, 0, math.nan)
            rows[name] = (sum(known) / len(known), seeds, *test[1:])
    p = np.array([row[-1] for row in rows.values()], float)
    enough = np.array([len(row[1]) >= ENOUGH for row in rows.values()], bool)
    # Differences that no verdict can be given of are a family apart, or a row begun would weaken all that are complete.
    for family in (enough & np.isfinite(p), ~enough & np.isfinite(p)):
        p[family] = correct(list(p[family]))
    judged = [verdict(row[0], each, len(row[1])) for row, each in zip(rows.values(), p, strict=True)]
    found = pd.DataFrame.from_dict(rows, orient="index", columns=DIFFERENCE[:-1])
    return found.assign(p=p, verdict=pd.Series(judged, found.index, dtype=object))


class MinimumDetectable(NamedTuple):
    """The smallest difference to the baseline that so many paired seeds and comparisons resolve."""

    difference: float
    seeds: int
    comparisons: int


@dataclass(frozen=True)
class Comparison:
    """How the students of a board compare.

    seeds: those that the ranking takes (usual_seeds). baseline: the undistilled student; best: the best of those with
    these seeds. to_baseline, to_best: differences (DIFFERENCE by method); to_best lacks the baseline, so that no pair
    is tested twice. ranks: of the students with these seeds, if they are ENOUGH. gap_recovered: share in percent of the
    teacher's advantage over the baseline. minimum: with ENOUGH seeds if the board has fewer.
    """

    seeds: tuple[int, ...]
    baseline: str | None
    best: str | None
    to_baseline: pd.DataFrame
    to_best: pd.DataFrame
    ranks: pd.Series
    gap_recovered: pd.Series
    minimum: MinimumDetectable | None


def compare(scores: pd.DataFrame, baseline: str | None, teacher: pd.Series) -> Comparison:
    """Compare students.

    Args:
        scores: students x seeds in the order of the board; a student without a complete score is left out.
        baseline: the undistilled student's row, if there is one.
        teacher: its scores by seed; empty without one.
    """
    scores = scores.dropna(how="all")
    baseline = baseline if baseline in scores.index else None
    seeds = usual_seeds(scores)
    means = {
        name: sum(values[np.isfinite(values)]) / len(seeds)
        for name, held, values in zip(scores.index, seeds_of(scores), scores.to_numpy(), strict=True)
        if held == seeds
    }
    order = sorted(means, key=lambda name: -means[name])
    best = order[0] if order else None
    none = judge(scores.iloc[:0])
    to_baseline = differences(scores, baseline) if baseline else none
    return Comparison(
        seeds=seeds,
        baseline=baseline,
        best=best,
        to_baseline=to_baseline,
        to_best=_to_first(scores, best, baseline) if best and best != baseline else none,
        ranks=_ranks(scores.loc[order], baseline, to_baseline) if len(seeds) >= ENOUGH else pd.Series(dtype=int),
        gap_recovered=_gap_recovered(scores, baseline, teacher) if baseline else pd.Series(dtype=float),
        minimum=_minimum(to_baseline),
    )


def seeds_of(scores: pd.DataFrame) -> list[tuple[int, ...]]:
    """Return the seeds that each row has a score of."""
    return [tuple(scores.columns[there]) for there in scores.notna().to_numpy()]


def usual_seeds(scores: pd.DataFrame) -> tuple[int, ...]:
    """Return the seeds that several rows share, preferring sets of ENOUGH or more; of such sets the most common."""
    sets = Counter(seeds_of(scores))
    return max(
        sets, key=lambda seeds: (sets[seeds] > 1, min(len(seeds), ENOUGH), sets[seeds], len(seeds), seeds), default=()
    )


def differences(scores: pd.DataFrame, to: str, correct: Correction = holm) -> pd.DataFrame:
    """Judge every other row minus one, paired by seed."""
    return judge(scores.drop(index=to) - scores.loc[to], correct)


def _to_first(scores: pd.DataFrame, first: str, baseline: str | None) -> pd.DataFrame:
    """Judge all but the baseline, which is compared in the other direction, against the best."""
    others = scores if baseline is None or baseline == first else scores.drop(index=baseline, errors="ignore")
    return differences(others, first, bonferroni_pairs)


def _ranks(ordered: pd.DataFrame, baseline: str | None, to_baseline: pd.DataFrame) -> pd.Series:
    """Rank the best and all that are not found worse than it alike; then the same among those that are."""
    ranks: dict[str, int] = {}
    while len(ordered):
        first = ordered.index[0]
        to_first = _to_first(ordered, first, baseline)
        worse = set(to_first.index[to_first.verdict == "worse"])
        if baseline in ordered.index and first != baseline and to_baseline.verdict[first] == "better":
            worse.add(baseline)
        ranks |= dict.fromkeys((name for name in ordered.index if name not in worse), len(ranks) + 1)
        ordered = ordered[ordered.index.isin(worse)]
    return pd.Series(ranks, dtype=int)


def _gap_recovered(scores: pd.DataFrame, baseline: str, teacher: pd.Series) -> pd.Series:
    """Over the seeds that student, baseline and teacher have; nothing where the teacher is not ahead on them."""
    gained = scores.drop(index=baseline) - scores.loc[baseline]
    advantage = (teacher.reindex(scores.columns) - scores.loc[baseline]).to_numpy()
    found = {}
    for name, row in zip(gained.index, gained.to_numpy(), strict=True):
        known = np.isfinite(row) & np.isfinite(advantage)
        test = paired_t(advantage[known])
        # A share of an advantage that may be none means nothing: with several seeds its interval lies above zero.
        if test.low > 0 if test else sum(advantage[known]) > 0:
            found[name] = 100 * sum(row[known]) / sum(advantage[known])
    return pd.Series(found, dtype=float)


def _minimum(found: pd.DataFrame) -> MinimumDetectable | None:
    tests = found[found.p.notna()]
    enough = tests[tests.df + 1 >= ENOUGH]
    tests = enough if len(enough) else tests
    if tests.empty:
        return None
    seeds = max(ENOUGH, Counter(tests.df + 1).most_common(1)[0][0])
    scatter = pooled_deviation(list(tests.deviation), list(tests.df))
    return MinimumDetectable(detectable_difference(scatter, seeds, len(tests)), seeds, len(tests))


def pareto_front(score: pd.Series, cost: pd.Series) -> set[str]:
    """Return the rows that no other beats at once in score (more) and cost (less); a row without one of them is out."""
    there = [(name, s, c) for name, s, c in zip(score.index, score, cost, strict=True) if s == s and c == c]
    return {name for name, s, c in there if not any(a >= s and b <= c and (a, b) != (s, c) for _, a, b in there)}


class Resampled(NamedTuple):
    """mIoU (RESAMPLES,) in percent of one model on one domain; labels (N, K): labelled pixels by image and class."""

    miou: np.ndarray
    labels: np.ndarray


def resample(counts: np.ndarray, domain: str) -> Resampled:
    """Score images drawn with replacement, from hits (N, 3, K) of N images.

    The draws are a function of the domain and N alone: all models are scored on the same draws, which pairs them.
    """
    times = _times(domain, len(counts))
    return Resampled(mious(np.tensordot(times, counts, axes=1)), counts[:, 0] + counts[:, 2])


@lru_cache(maxsize=8)
def _times(domain: str, images: int) -> np.ndarray:
    """Draw how often each image counts (RESAMPLES, N)."""
    generator = np.random.default_rng(seed_from("bootstrap", domain, images))
    return generator.multinomial(images, np.full(images, 1 / images), size=RESAMPLES).astype(float)


Images = dict[str, Resampled] | None
"""One model's targets by name; None where they are not known image by image."""


def interval_over_images(ours: Sequence[Images], theirs: Sequence[Images]) -> tuple[float, float] | None:
    """Bootstrap the difference in mean mIoU of the targets, averaged over models (percentiles; Efron, Ann. Stat. 1979).

    ours, theirs: one a seed, paired. It holds for these trained models: other images, not other trainings. None where
    counts are missing or two models were tested on different images.
    """
    gaps = []
    for one, other in zip(ours, theirs, strict=True):
        if not one or not other or not _same_images(one, other):
            return None
        gaps.append(np.mean([one[name].miou - other[name].miou for name in one], axis=0))
    if not gaps:
        return None
    low, high = np.nanquantile(np.mean(gaps, axis=0), (LEVEL / 2, 1 - LEVEL / 2))
    return float(low), float(high)


def _same_images(one: dict[str, Resampled], other: dict[str, Resampled]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name].labels, other[name].labels) for name in one)
