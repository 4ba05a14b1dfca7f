"""Statistics against scipy's own tests, against Holm's procedure as it is written, and against simulated boards."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from kdbench.report.statistics import LEVEL, POWER, Interval, deviation, holm, paired_t, pooled, resolvable


@pytest.mark.parametrize("seeds", [2, 3, 5, 20])
def test_the_paired_t_is_scipys(seeds: int) -> None:
    ours, theirs = np.random.default_rng(seeds).normal([[21.0], [19.5]], 1.3, (2, seeds))
    expected = stats.ttest_rel(ours, theirs)
    interval = expected.confidence_interval(1 - LEVEL)
    found = paired_t(list(ours - theirs))
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert found.interval == pytest.approx((interval.low, interval.high), rel=1e-6)
    assert (found.df, found.mean) == (seeds - 1, pytest.approx(np.mean(ours - theirs)))
    assert found.deviation == pytest.approx(np.std(ours - theirs, ddof=1))


def test_a_hand_computed_paired_t() -> None:
    """Differences 1, 2, 3: mean 2, deviation 1, standard error 1 / sqrt(3); t(2) at 97.5 % is 4.302653."""
    found = paired_t([1, 2, 3])
    assert found.interval == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), rel=1e-6)


def test_one_seed_is_no_sample() -> None:
    assert paired_t([1.0]) is None
    assert paired_t([]) is None
    assert deviation([1.0]) is None
    assert deviation([1.0, 3.0]) == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize(
    ("differences", "p"), [([0.0] * 5, 1.0), ([0.5] * 5, 0.0), ([4e-15] * 5, 1.0), ([4e-15, 0, 4e-15, 0], 1.0)]
)
def test_differences_that_are_all_the_same(differences: list[float], p: float) -> None:
    """The last bits of a sum in another order are no difference."""
    found = paired_t(differences)
    assert (found.p, found.interval) == (p, Interval(found.mean, found.mean))


def rejected(p: list[float], level: float) -> list[bool]:
    """Holm's procedure: down the sorted p, each against level over the number of hypotheses left, until one stays."""
    found = [False] * len(p)
    left = sorted(range(len(p)), key=lambda index: p[index])
    while left and p[left[0]] <= level / len(left):
        found[left.pop(0)] = True
    return found


@pytest.mark.parametrize("number", [1, 2, 4, 25])
def test_corrected_p_reject_what_holms_procedure_rejects(number: int) -> None:
    p = list(np.random.default_rng(number).beta(0.4, 4, number))
    corrected = holm(p)
    for level in np.linspace(0.0005, 0.9995, 500):
        assert [value <= level for value in corrected] == rejected(p, level)


def test_a_hand_computed_correction() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.6]) == [1, 1]
    assert holm([]) == []


@pytest.mark.parametrize(("seeds", "comparisons"), [(5, 1), (5, 4), (8, 25)])
def test_a_resolvable_difference_is_found_with_the_stated_power(seeds: int, comparisons: int) -> None:
    difference = resolvable(1.3, seeds, comparisons)
    critical = stats.t.ppf(1 - LEVEL / comparisons / 2, seeds - 1)
    power = stats.nct.sf(critical, seeds - 1, difference / 1.3 * math.sqrt(seeds))
    assert power == pytest.approx(POWER, abs=1e-5)
    drawn = np.random.default_rng(0).normal(difference, 1.3, (40_000, seeds))
    p = stats.ttest_1samp(drawn, 0, axis=1).pvalue
    assert np.mean(p < LEVEL / comparisons) == pytest.approx(POWER, abs=0.01)


def test_deviations_are_pooled_by_degrees_of_freedom() -> None:
    """Variances 2 (1 degree of freedom) and 1 (2 degrees): (2 + 2) / 3."""
    assert pooled([paired_t([0, 2]), paired_t([1, 2, 3])]) == pytest.approx(math.sqrt(4 / 3))
