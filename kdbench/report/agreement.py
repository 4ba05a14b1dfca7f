"""Agreement with a paper: whether measured boards order the methods as its tables do, as one number.

It says how far a small protocol can be trusted to choose what to run under a large one. Only a shipped protocol without
further choices is compared, with all labels, real images and synthetic ones apart; the teacher's own row never counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd

from kdbench.identity import seed_from
from kdbench.names import REAL
from kdbench.report.boards import Board
from kdbench.report.formats import dumps, frame_to_csv, records
from kdbench.report.published import is_settled
from kdbench.report.tables import Table, number, numbers, words

FEWEST = 3
"""Methods from which on an order means something: of two, any order is right by chance every second time."""
EXACT = 6
"""Methods up to which every relabelling is tried: 720. Of more, as many are drawn."""
FILE = "agreement.json"
"""The committed agreement, beside the committed records."""


@dataclass(frozen=True)
class Agreement:
    """The order of methods here beside a paper's, of one protocol, data source and pair.

    data_source: where the benchmarks' images come from; several worlds are joined by "and". conditions: for captions.
    published, measured: mIoU in percent, methods x benchmarks. by_benchmark: benchmark -> methods (how many both have)
    and tau (Kendall's tau-b; nan of fewer than FEWEST). tau: the mean over the benchmarks that have one, else nan.
    p: the share of all relabellings of the methods, the same one in every benchmark, that give at least this tau
    (one-sided: an order against the paper's is no agreement). recovered: method -> published and measured share of the
    teacher's lead over the student alone, both averaged over the benchmarks.
    """

    protocol_id: str
    data_source: str
    pair: str
    conditions: str
    published: pd.DataFrame
    measured: pd.DataFrame
    by_benchmark: pd.DataFrame
    tau: float
    p: float
    recovered: pd.DataFrame


def agreements(published: pd.DataFrame, boards: Sequence[Board]) -> list[Agreement]:
    """Compare every protocol and pair of the boards with the published numbers of that pair, where there are any.

    A benchmark with boards of two worlds counts with the last of them.
    """
    whole = published[(published.measured_as != "") & ~published.column.str.contains(r"[/+]")]
    groups: dict[tuple[str, bool, str], dict[str, Board]] = {}
    for board in boards:
        if is_settled(board) and board.label_fraction == "1" and {*board.data_sources.values()} == {board.data_source}:
            groups.setdefault((board.protocol_id, board.data_source == REAL, board.pair), {})[board.benchmark] = board
    found = []
    for (_, _, pair), ours in sorted(groups.items(), key=lambda group: group[0]):
        theirs = whole[whole.pair == pair].pivot_table("miou", "measured_as", "column", sort=False)
        benchmarks = [name for name in theirs if name in ours]
        if benchmarks:
            found.append(_agreement(theirs[benchmarks], [ours[name] for name in benchmarks]))
    return found


def _agreement(published: pd.DataFrame, boards: list[Board]) -> Agreement:
    common = replace(boards[0], data_source=" and ".join(sorted({board.data_source for board in boards})))
    measured = pd.DataFrame({board.benchmark: board.rows["mean"] for board in boards}, dtype=float)
    roles = pd.concat([board.rows.role for board in boards]).groupby(level=0).first()
    both = [name for name in measured.index if name in published.index]
    students = [name for name in both if roles[name] != "teacher"]
    theirs, ours = published.loc[students], measured.loc[students]
    taus = _taus(theirs, ours)
    known = (theirs.notna() & ours.notna()).sum()
    tau = float(taus.mean())
    return Agreement(
        common.protocol_id,
        common.data_source,
        common.pair,
        f"{common.conditions}; beside the published numbers",
        theirs,
        ours,
        pd.DataFrame({"methods": known, "tau": taus}).rename_axis("benchmark"),
        tau,
        _p(theirs, ours, tau) if not math.isnan(tau) else math.nan,
        pd.DataFrame({
            "published": _recovered(published.loc[both], roles), "measured": _recovered(measured.loc[both], roles)
        }).rename_axis("method"),
    )  # fmt: skip


def _taus(theirs: pd.DataFrame, ours: pd.DataFrame) -> pd.Series:
    """Return Kendall's tau-b by benchmark over the methods that both have; nan of fewer than FEWEST."""
    from scipy.stats import kendalltau

    def tau(benchmark: str) -> float:
        known = theirs[benchmark].notna() & ours[benchmark].notna()
        if known.sum() < FEWEST:
            return math.nan
        return float(kendalltau(theirs[benchmark][known], ours[benchmark][known]).statistic)

    return pd.Series({benchmark: tau(benchmark) for benchmark in theirs}, dtype=float)


def _p(theirs: pd.DataFrame, ours: pd.DataFrame, tau: float) -> float:
    count = len(ours)
    orders = list(_orders(count))
    pooled = [_taus(theirs, ours.iloc[order].set_axis(ours.index)).mean() for order in orders]
    # The last bits of means in another order are no difference.
    return float(np.mean([value >= tau - 1e-9 for value in pooled]))


def _orders(count: int) -> Iterator[list[int]]:
    """Yield relabellings of `count` methods: all of them, or seeded draws with the given order first."""
    if count <= EXACT:
        yield from map(list, permutations(range(count)))
        return
    rng = np.random.default_rng(seed_from("agreement", count))
    yield list(range(count))
    yield from (rng.permutation(count).tolist() for _ in range(math.factorial(EXACT) - 1))


def _recovered(scores: pd.DataFrame, roles: pd.Series) -> pd.Series:
    """Return the share of the teacher's mean lead over the student alone that each distilled student's mean gains."""
    means = scores.mean(axis=1, skipna=False)
    by_role = {role: means[[name for name in means.index if roles[name] == role]] for role in set(roles)}
    teacher, alone = (by_role.get(role, pd.Series(dtype=float)) for role in ("teacher", "undistilled"))
    distilled = by_role.get("distilled", pd.Series(dtype=float))
    lead = teacher.iloc[0] - alone.iloc[0] if len(teacher) and len(alone) else math.nan
    return (distilled - alone.iloc[0]) / lead if lead > 0 else distilled * math.nan


def agreement_tables(found: Sequence[Agreement]) -> list[Table]:
    """Make two for every protocol and pair: the orders by benchmark, and the gap recovered by method."""
    return [table for agreement in found for table in (_orders_table(agreement), _recovered_table(agreement))]


def _orders_table(agreement: Agreement) -> Table:
    each, methods = agreement.by_benchmark, len(agreement.measured)
    return Table(
        "Agreement with the paper: the order of methods",
        agreement.conditions,
        "Kendall's tau-b over the methods that both have, without the teacher: 1 for the same order, 0 for none, "
        "-1 for the reverse",
        (
            words("benchmark", [*each.index, "mean"]),
            numbers("methods", [*each.methods, methods], str),
            numbers("tau", [*each.tau, agreement.tau], _two),
        ),
        (_pooled(agreement),),
    )


def _pooled(agreement: Agreement) -> str:
    if math.isnan(agreement.tau):
        return f"No tau: no benchmark has {FEWEST} methods with different scores that the paper has too."
    tried = "all" if len(agreement.measured) <= EXACT else "seeded"
    return (
        f"mean: over the benchmarks that have a tau; p = {agreement.p:.3f} (one-sided), the share of {tried} "
        f"{math.factorial(min(len(agreement.measured), EXACT))} relabellings of the methods, the same one in every "
        "benchmark, with at least this mean."
    )


def _recovered_table(agreement: Agreement) -> Table:
    share = 100 * agreement.recovered
    return Table(
        "Agreement with the paper: gap recovered",
        agreement.conditions,
        "in %, the gain over the student alone as a share of the teacher's lead, both means over these benchmarks: "
        + ", ".join(agreement.by_benchmark.index),
        (
            words("method", share.index),
            numbers("published", share.published, number),
            numbers("measured", share.measured, number),
        ),
    )


def _two(value: float) -> str:
    return f"{value:z.2f}"


def to_json(found: Sequence[Agreement]) -> str:
    """Write a list of all agreements; the committed file is this one."""
    return dumps([_plain(agreement) for agreement in found])


def _plain(agreement: Agreement) -> dict[str, Any]:
    return {
        "protocol_id": agreement.protocol_id,
        "data_source": agreement.data_source,
        "pair": agreement.pair,
        "methods": list(agreement.measured.index),
        "tau": None if math.isnan(agreement.tau) else agreement.tau,
        "p": None if math.isnan(agreement.p) else agreement.p,
        "by_benchmark": records(agreement.by_benchmark.reset_index()),
        "recovered": records(agreement.recovered.reset_index()),
        "scores": records(_scores(agreement)),
    }


def _scores(agreement: Agreement) -> pd.DataFrame:
    """Return a row for every benchmark and method: published and measured mIoU in percent."""
    both = {"published": agreement.published, "measured": agreement.measured}
    long = {
        side: table.rename_axis("method").rename_axis("benchmark", axis=1).unstack() for side, table in both.items()
    }
    return pd.DataFrame(long).reset_index()


def to_csv(found: Sequence[Agreement]) -> str:
    """Write a line for every benchmark and method: both scores, the benchmark's tau, the mean with its p, both gaps."""
    return frame_to_csv(pd.concat([_lines(agreement) for agreement in found], ignore_index=True))


def _lines(agreement: Agreement) -> pd.DataFrame:
    lines = _scores(agreement).join(agreement.by_benchmark.tau, on="benchmark")
    lines = lines.assign(mean_tau=agreement.tau, p=agreement.p)
    lines = lines.join(agreement.recovered.add_suffix("_gap_recovered"), on="method")
    for place, name in enumerate(("protocol_id", "data_source", "pair")):
        lines.insert(place, name, getattr(agreement, name))
    return lines


EXPORTS = {"csv": to_csv, "json": to_json}
