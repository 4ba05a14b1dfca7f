"""How the students of a board compare: paired differences, verdicts, ranks with ties, what was out of reach."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from kdbench.report.old_statistics import ENOUGH, LEVEL, PairedT, holm, over_all_pairs, paired_t, pooled, resolvable

Scores = Mapping[int, float]
"""A student's score by seed, nothing missing."""
Correction = Callable[[Sequence[float]], list[float]]
"""p values of a family, corrected for their number."""
Verdict = Literal["better", "worse", "tie", "not resolvable"]


@dataclass(frozen=True)
class Difference:
    """A student minus another over the seeds that both have. p: corrected for the number of students compared; with
    the interval None of a single seed."""

    value: float
    seeds: tuple[int, ...]
    over_seeds: PairedT | None
    p: float | None

    @property
    def verdict(self) -> Verdict:
        """Only from ENOUGH paired seeds on. A tie is a difference that was not found, not one that was excluded."""
        if self.p is None or len(self.seeds) < ENOUGH:
            return "not resolvable"
        if self.p >= LEVEL:
            return "tie"
        return "better" if self.value > 0 else "worse"


class Reach(NamedTuple):
    """The smallest difference to the undistilled student that so many paired seeds and comparisons resolve."""

    difference: float
    seeds: int
    comparisons: int


@dataclass(frozen=True)
class OldComparison:
    """A board's findings, by method.

    seeds: those that the ranking takes (usual_seeds). undistilled, best: whom the differences are taken to; the best
    has these seeds. to_best: of the others; without the undistilled student, so that no pair is tested twice. ranks: of
    the students that have these seeds, where they are ENOUGH. retention: share in percent of the teacher's advantage
    over the undistilled student. reach: with ENOUGH seeds where the board has fewer.
    """

    seeds: tuple[int, ...]
    undistilled: str | None
    best: str | None
    to_undistilled: Mapping[str, Difference]
    to_best: Mapping[str, Difference]
    ranks: Mapping[str, int]
    retention: Mapping[str, float]
    reach: Reach | None


Comparison = OldComparison


def compare(students: Mapping[str, Scores], undistilled: str | None, teacher: Scores) -> Comparison:
    """The findings over students with complete scores; one that `students` lacks is compared with nobody."""
    seeds = usual_seeds(list(students.values()))
    alike = {name: scores for name, scores in students.items() if tuple(sorted(scores)) == seeds}
    order = sorted(alike, key=lambda name: -_mean(alike[name]))
    best = order[0] if order else None
    reference = students.get(undistilled) if undistilled else None
    to_undistilled = differences(students, undistilled) if undistilled and reference else {}
    return Comparison(
        seeds=seeds,
        undistilled=undistilled if reference else None,
        best=best,
        to_undistilled=to_undistilled,
        to_best=_to_first(students, best, undistilled) if best and best != undistilled else {},
        ranks=_ranks(order, alike, undistilled, to_undistilled) if len(seeds) >= ENOUGH else {},
        retention=_retention(students, reference, teacher) if reference else {},
        reach=_reach(to_undistilled),
    )


def usual_seeds(rows: Sequence[Scores]) -> tuple[int, ...]:
    """The seeds that several rows share, as many as a rank needs if there are; of such sets the most common one."""
    sets = Counter(tuple(sorted(scores)) for scores in rows)
    return max(
        sets, key=lambda seeds: (sets[seeds] > 1, min(len(seeds), ENOUGH), sets[seeds], len(seeds), seeds), default=()
    )


def differences(students: Mapping[str, Scores], to: str, correct: Correction = holm) -> dict[str, Difference]:
    """Every other student minus one, paired by seed; without those that share no seed with it."""
    return judged({name: _paired(scores, students[to]) for name, scores in students.items() if name != to}, correct)


def judged(paired: Mapping[str, Scores], correct: Correction = holm) -> dict[str, Difference]:
    """Differences by method and seed, with their tests; without methods that have none. correct: of a family's p."""
    found = {name: each for name, each in paired.items() if each}
    tests = {name: test for name, each in found.items() if (test := paired_t(list(each.values())))}
    corrected: dict[str, float] = {}
    # Differences that no verdict can be given of are a family apart, or a row begun would weaken all that are complete.
    for enough in (True, False):
        family = [name for name in tests if (len(found[name]) >= ENOUGH) == enough]
        corrected |= dict(zip(family, correct([tests[name].p for name in family]), strict=True))
    return {
        name: Difference(_mean(each), tuple(each), tests.get(name), corrected.get(name)) for name, each in found.items()
    }


def _paired(ours: Scores, theirs: Scores) -> dict[int, float]:
    return {seed: ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())}


def _mean(scores: Scores) -> float:
    return sum(scores.values()) / len(scores)


def _to_first(students: Mapping[str, Scores], first: str, undistilled: str | None) -> dict[str, Difference]:
    """The differences to the best student of all but the undistilled one; it is compared in the other direction."""
    others = {name: scores for name, scores in students.items() if name != undistilled or name == first}
    return differences(others, first, over_all_pairs)


def _ranks(
    order: list[str],
    students: Mapping[str, Scores],
    undistilled: str | None,
    to_undistilled: Mapping[str, Difference],
) -> dict[str, int]:
    """The best and all that are not found worse than it share a rank; then the same among those that are."""
    ranks: dict[str, int] = {}
    while order:
        first = order[0]
        to_first = _to_first({name: students[name] for name in order}, first, undistilled)
        worse = {name for name, difference in to_first.items() if difference.verdict == "worse"}
        if undistilled in order and first != undistilled and to_undistilled[first].verdict == "better":
            worse.add(undistilled)
        ranks |= dict.fromkeys((name for name in order if name not in worse), len(ranks) + 1)
        order = [name for name in order if name in worse]
    return ranks


def _retention(students: Mapping[str, Scores], undistilled: Scores, teacher: Scores) -> dict[str, float]:
    """Over the seeds that all three have; nothing where the teacher is not ahead on them."""
    found = {}
    for name, scores in students.items():
        seeds = scores.keys() & undistilled.keys() & teacher.keys()
        advantage = _paired({seed: teacher[seed] for seed in seeds}, undistilled)
        if scores is not undistilled and _ahead(advantage):
            gained = _paired({seed: scores[seed] for seed in seeds}, undistilled)
            found[name] = 100 * sum(gained.values()) / sum(advantage.values())
    return found


def _ahead(advantage: Scores) -> bool:
    """A share of an advantage that may be none means nothing: with several seeds its interval lies above zero."""
    test = paired_t(list(advantage.values()))
    return test.interval.low > 0 if test else sum(advantage.values()) > 0


def _reach(found: Mapping[str, Difference]) -> Reach | None:
    tests = [difference.over_seeds for difference in found.values() if difference.over_seeds]
    tests = [test for test in tests if test.df + 1 >= ENOUGH] or tests
    if not tests:
        return None
    usual = Counter(test.df + 1 for test in tests).most_common(1)[0][0]
    seeds = max(ENOUGH, usual)
    return Reach(resolvable(pooled(tests), seeds, len(tests)), seeds, len(tests))
