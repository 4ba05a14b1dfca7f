"""What a few seeds can tell: deviations, paired t intervals, Holm's correction, the smallest difference in reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import nctdtrinc, stdtr, stdtrit

LEVEL = 0.05
"""Intervals cover 1 - LEVEL; a corrected p below it is a verdict."""
POWER = 0.8
ENOUGH = 5
"""Paired seeds from which on a verdict is given: below, a t test rests on a deviation that is hardly known."""


class Interval(NamedTuple):
    """From low to high, in the unit of what was measured."""

    low: float
    high: float


class OldPairedT(NamedTuple):
    """A mean difference with its interval over seeds; deviation: of the differences. p: two-sided, not corrected."""

    mean: float
    deviation: float
    interval: Interval
    df: int
    p: float


PairedT = OldPairedT


def deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation (n - 1); None of fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def paired_t(differences: Sequence[float]) -> PairedT | None:
    """Student's t test of paired differences against zero; None of fewer than two.

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
    return PairedT(mean, scatter, Interval(mean - half, mean + half), df, p)


def holm(p: Sequence[float]) -> list[float]:
    """p values, corrected by Holm's step-down procedure (Scand. J. Statist. 6, 1979), in the given order."""
    order = np.argsort(p)
    steps = np.asarray(p, float)[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return list(map(float, corrected))


def over_all_pairs(p: Sequence[float]) -> list[float]:
    """p values of the best of len(p) + 1 against each of the others, corrected by Bonferroni over all of their pairs.

    Which one is the best was found from the same scores, so any pair could have been tested.
    """
    pairs = len(p) * (len(p) + 1) // 2
    return [min(1.0, pairs * each) for each in p]


def pooled(tests: Sequence[PairedT]) -> float:
    """One deviation of the differences for all tests: the root of the mean variance, by degrees of freedom."""
    total = sum(test.df * test.deviation**2 for test in tests)
    return math.sqrt(total / sum(test.df for test in tests))


def resolvable(deviation: float, seeds: int, comparisons: int) -> float:
    """The true difference that a two-sided paired t test finds with probability POWER in Holm's worst case.

    d = nc * deviation / sqrt(seeds). nc: the noncentrality at which the noncentral t of seeds - 1 degrees of freedom
    exceeds, with that probability, the critical value of level LEVEL / comparisons, Holm's first step. The other tail
    is left out: at this power it holds nothing.
    """
    critical = stdtrit(seeds - 1, 1 - LEVEL / comparisons / 2)
    noncentrality = float(nctdtrinc(seeds - 1, 1 - POWER, critical))
    return noncentrality * deviation / math.sqrt(seeds)
