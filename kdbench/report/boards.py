"""Boards: which method did how well on one benchmark with one pair, grouped and averaged from the frame.

Nothing is averaged over what is missing: a row whose seeds failed, differ in their domains, options or weights is blank
and says why.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from kdbench.errors import KdbenchError
from kdbench.metrics import known_mean, mean_of
from kdbench.names import REAL, benchmark_title, domain_name, model_name
from kdbench.records import CellId
from kdbench.report.frame import COSTS, PLACE, read_image_counts, side_file
from kdbench.report.statistics import (
    Comparison,
    Images,
    compare,
    deviation,
    interval_over_images,
    pareto_front,
    resample,
    seeds_of,
)

ROLES = ("teacher", "undistilled", "distilled")
LAST: Final = "last"
SOURCE: Final = "best on the source"
ORACLE: Final = "oracle"
RULES = (LAST, SOURCE, ORACLE)
"""How one of a run's snapshots is selected. Boards use the last; the oracle looks at the targets: an upper bound."""
SETTING = ["protocol_id", "protocol", "decoder", "model_set", "data_source", "label_fraction", "family"]
"""Columns of the frame that all cells of a board share, or its students."""
Methods = dict[str, pd.DataFrame]
"""The cells of every method (label), in the order of their seeds."""
NUMBERS = ["mean", "deviation", "worst", "source", "gap", "accuracy"]


@dataclass(frozen=True)
class Board:
    """Methods that may be ranked together. Domains and title are named as displayed; all frames are by method.

    frame: the results that it is made of, the teacher's among them. data_sources: of each domain. sources: what was
    trained on; validated: those of them that were tested on. rows: role, seeds, mean over targets and seeds (percent)
    with its deviation over seeds, worst target, source, gap (source minus mean), accuracy, COSTS, reference, footnote,
    ranked (competes for ranks and marks), rank, gap_recovered and pareto. targets: means over seeds, by target.
    by_seed: method and seed x targets. scores: means over targets, methods x seeds. classes: IoU, means over the
    targets whose labels show the class. over_images: low and high of the differences to the baseline. faults: side
    files that cannot be used for them. notes: what else a reader must know.
    """

    protocol_id: str
    protocol: str
    data_source: str
    benchmark: str
    label_fraction: str
    title: str
    pair: str
    family: str | None
    decoder: str
    model_set: str
    frame: pd.DataFrame
    data_sources: dict[str, str]
    validated: tuple[str, ...]
    sources: tuple[str, ...]
    rows: pd.DataFrame
    targets: pd.DataFrame
    by_seed: pd.DataFrame
    scores: pd.DataFrame
    classes: pd.DataFrame
    comparison: Comparison
    over_images: pd.DataFrame
    faults: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def snapshots(self) -> pd.DataFrame:
        """Return means over seeds, method and role (target, source) x snapshot."""
        return self._over_snapshots[0]

    @property
    def selection(self) -> pd.DataFrame:
        """Return what each of RULES selects, by method and rule: mean, deviation, snapshots (one a seed)."""
        return self._over_snapshots[1]

    @cached_property
    def _over_snapshots(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Average the snapshots when they are first asked for: most boards show the last one alone."""
        return _over_snapshots(self.frame[self.frame.label.isin(self.rows.index[self.rows["mean"].notna()])])

    @property
    def name(self) -> str:
        """How titles of tables begin."""
        return self.benchmark

    @property
    def common(self) -> Board:
        """Itself, as of a summary its first board."""
        return self

    @property
    def models(self) -> tuple[str, ...]:
        """Teacher and student as displayed; the teacher alone where no student was run."""
        return tuple(model_name(name, self.model_set) for name in self.pair.split(":"))

    @property
    def setting(self) -> str:
        """Data source, protocol and decoder."""
        few = "" if self.label_fraction == "1" else f", {self.label_fraction} of the source's labels"
        return f"data source {self.data_source}, protocol {self.protocol_id}, decoder {self.decoder}{few}"

    @property
    def conditions(self) -> str:
        """The pair and the setting."""
        return " -> ".join(self.models) + (f" ({self.family})" if self.family else "") + f"; {self.setting}"


def boards(frame: pd.DataFrame) -> list[Board]:
    """Make one board for every place and pair, in their order; a teacher heads the boards of all its students."""
    groups: dict[tuple[Any, ...], dict[str, pd.DataFrame]] = defaultdict(dict)
    for (*place, pair), rows in frame.groupby([*PLACE, "pair"], sort=False) if len(frame) else ():
        groups[tuple(place)][pair] = rows
    return [board for place in sorted(groups) for board in _boards(place[PLACE.index("teacher")], groups[place])]


def _boards(teacher: str, pairs: dict[str, pd.DataFrame]) -> Iterator[Board]:
    own = [pairs[teacher]] if teacher in pairs else []
    for pair in sorted(pairs.keys() - {teacher}) or [teacher]:
        yield _board(pair, pd.concat([*own, pairs[pair]] if pair != teacher else own, ignore_index=True))


def _board(pair: str, frame: pd.DataFrame) -> Board:
    cell, measured = frame.iloc[-1], frame[frame.domain.notna()]
    setting = cell[SETTING].to_dict()
    cells = frame.drop_duplicates("cell").sort_values(["label", "seed"])
    methods = dict(list(cells.groupby("label")))
    targets, sources = _domains(measured, "target"), _domains(measured, "source")
    served = dict(zip(measured.domain, measured.domain_source, strict=True))
    shown = {name: domain_name(name, source) for name, source in served.items()}
    reasons = _blank(methods, frame)
    last = _last(measured, cells, [*targets, *sources], {label for label, why in reasons.items() if why})
    by_seed = last["miou"][targets].astype(float)
    scores = _scores(by_seed)
    rows, means = _rows(methods, cells, last, targets, sources)
    rows["footnote"] = _footnotes(methods, reasons)
    order = _order(rows)
    rows, scores = rows.loc[order].rename_axis("method"), scores.loc[order].rename_axis("method")
    rows, comparison = _compared(rows, scores)
    over_images, faults = _over_images(comparison, measured[measured["last"]], methods)
    return Board(
        **setting | {"family": None if pd.isna(cell.family) else cell.family},
        benchmark=cell.benchmark,
        title=benchmark_title(cell.title, cell.data_source),
        pair=pair,
        frame=frame,
        data_sources={shown[name]: source for name, source in served.items()},
        validated=tuple(shown[name] for name in sources),
        sources=_trained(cells) or tuple(shown[name] for name in sources),
        rows=rows.assign(pareto=order.isin(pareto_front(rows["mean"].where(rows.ranked), rows.train_flops))),
        targets=means.loc[order].rename(columns=shown),
        by_seed=by_seed.rename(columns=shown).rename_axis(["method", "seed"]),
        scores=scores,
        classes=_classes(methods, last["labelled_iou"][targets], cell.classes).loc[order],
        comparison=comparison,
        over_images=over_images,
        faults=faults,
        notes=tuple(_engines(methods)),
    )  # fmt: skip


def _domains(measured: pd.DataFrame, role: str) -> list[str]:
    return list(measured.domain[measured.domain_role == role].unique())


def _last(measured: pd.DataFrame, cells: pd.DataFrame, domains: list[str], blank: set[str]) -> dict[str, pd.DataFrame]:
    """Spread what the last snapshots measured, (label, seed) x domain by measure; blank methods are missing."""
    known = measured[measured["last"] & ~measured.label.isin(blank)]
    rows = pd.MultiIndex.from_frame(cells[["label", "seed"]])
    index, measures = ["label", "seed", "domain"], ["miou", "accuracy", "labelled_iou"]
    wide = known.set_index(index)[measures].unstack("domain").reindex(rows)
    columns = {measure: pd.MultiIndex.from_product([[measure], domains]) for measure in measures}
    return {measure: wide.reindex(columns=each).droplevel(0, axis=1) for measure, each in columns.items()}


def _scores(by_seed: pd.DataFrame) -> pd.DataFrame:
    """Average the targets: methods x seeds; a method that lacks one of them for a seed has no score at all."""
    means = pd.Series(map(mean_of, by_seed.to_numpy()), by_seed.index, dtype=float)
    lacking = means.isna().groupby("label").transform("any")
    return means.mask(lacking).unstack("seed")


def _by_method(methods: Methods, values: pd.DataFrame) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each method's rows of a frame whose rows are all methods' seeds in order."""
    start = 0
    for label, held in methods.items():
        yield label, values.to_numpy()[start : start + len(held)]
        start += len(held)


def _rows(
    methods: Methods, cells: pd.DataFrame, last: dict[str, pd.DataFrame], targets: list[str], sources: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Average over seeds: what Board.rows says, as far as one method alone has it, and the targets' means."""
    tested, right = last["miou"].astype(float), last["accuracy"][targets].astype(float)
    accuracy = {label: mean_of(values.ravel()) for label, values in _by_method(methods, right)}
    source = {label: mean_of(values.ravel()) for label, values in _by_method(methods, tested[sources])}
    costs = {label: list(map(mean_of, values.T)) for label, values in _by_method(methods, cells[COSTS])}
    rows, means = {}, {}
    for label, values in _by_method(methods, tested[targets]):
        held, scores, means[label] = methods[label], list(map(mean_of, values)), list(map(mean_of, values.T))
        mean, parameters = mean_of(scores), set(held.parameters.dropna())
        rows[label] = {
            "role": held.role.iloc[0],
            "seeds": tuple(held.seed),
            "mean": mean,
            "deviation": None if mean is None else deviation(scores),  # type: ignore[arg-type]
            "worst": None if mean is None else min(means[label]),  # type: ignore[type-var]
            "source": source[label],
            "gap": None if mean is None or source[label] is None else source[label] - mean,  # type: ignore[operator]
            "accuracy": accuracy[label],
            "reference": bool(held.reference.all()),
            **{name: None if mean is None else cost for name, cost in zip(COSTS, costs[label], strict=True)},
            "parameters": parameters.pop() if len(parameters) == 1 else None,
        }
    return (
        pd.DataFrame.from_dict(rows, orient="index").astype(dict.fromkeys([*NUMBERS, *COSTS], float)),
        pd.DataFrame.from_dict(means, orient="index", columns=targets, dtype=float),
    )


def _classes(methods: Methods, labelled: pd.DataFrame, classes: tuple[str, ...]) -> pd.DataFrame:
    """Average over the targets that show a class, which are the same for every seed, then over seeds."""
    rows = {}
    for label, values in _by_method(methods, labelled):
        known = values.size and not pd.isna(values).any()
        iou = known_mean(np.array(values.tolist()), axis=1).mean(0) if known else [np.nan] * len(classes)
        rows[label] = iou
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(classes), dtype=float)


def _order(rows: pd.DataFrame) -> pd.Index:
    """Order methods: the teacher, undistilled and distilled students, each by mean; those without one last."""
    keys = zip(rows.role.map(ROLES.index), rows["mean"].isna(), -rows["mean"].fillna(0), rows.index, strict=True)
    return pd.Index([label for *_, label in sorted(keys)], name="method")


def _compared(rows: pd.DataFrame, scores: pd.DataFrame) -> tuple[pd.DataFrame, Comparison]:
    """Compare the students; add to the rows who competes (has the seeds of the ranking), ranks and gaps recovered.

    The baseline is the first undistilled row; one without a variant goes before all.
    """
    known, teachers = scores.notna().any(axis=1), rows.role == "teacher"
    alone, teacher = rows.index[(rows.role == "undistilled") & known], rows.index[teachers & known]
    found = compare(
        scores[known & ~teachers],
        min(alone, key=lambda method: "[" in method, default=None),
        scores.loc[teacher[0]] if len(teacher) else pd.Series(dtype=float),
    )
    alike = np.array([seeds == found.seeds for seeds in seeds_of(scores)], bool) & bool(found.seeds)
    return rows.assign(
        ranked=~teachers & alike,
        rank=found.ranks.reindex(rows.index),
        gap_recovered=found.gap_recovered.reindex(rows.index),
    ), found


def _trained(cells: pd.DataFrame) -> tuple[str, ...]:
    """Name the domains of a last stage, which trains on the source images, labelled or not."""
    return next((tuple(domain_name(*each) for each in data.items()) for data in cells.trained_on if data), ())


def _blank(methods: Methods, frame: pd.DataFrame) -> dict[str, list[str]]:
    """Say for each method why its seeds cannot be averaged: over what is left a mean would be of something else."""
    domains: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for label, seed, domain in zip(frame.label, frame.seed, frame.domain, strict=True):
        domains[label][seed].add(domain)
    began: dict[str, list[str]] = defaultdict(list)
    for held in methods.values():
        for weights in held.weights:
            for model, digest in weights.items():
                began[model].append(digest)
    usual = {model: Counter(sorted(weights)).most_common(1)[0][0] for model, weights in began.items()}
    return {
        label: [*_failed(held), *_differing(held, list(domains[label].values())), *_other_weights(held, usual)]
        for label, held in methods.items()
    }


def _failed(seeds: pd.DataFrame) -> Iterator[str]:
    for seed, status, error in zip(seeds.seed, seeds.status, seeds.error, strict=True):
        if status == "failed":
            reason = ((error or "").strip().splitlines() or ["no reason recorded"])[0]
            yield f"{f'seed {seed} ' if len(seeds) > 1 else ''}failed: {reason}"


def _differing(seeds: pd.DataFrame, domains: list[set[str]]) -> Iterator[str]:
    if any(tested != domains[0] for tested in domains) and not (seeds.status == "failed").any():
        yield "blank: its seeds were tested on different domains"
    # An option that a record does not know is younger than it.
    known: dict[str, Any] = {}
    if any(known.setdefault(name, value) != value for options in seeds.options for name, value in options.items()):
        yield "blank: its seeds were run with different options"


def _other_weights(seeds: pd.DataFrame, usual: dict[str, str]) -> Iterator[str]:
    for model, digest in usual.items():
        began = zip(seeds.seed, seeds.weights, strict=True)
        found = [str(seed) for seed, weights in began if weights.get(model, digest) != digest]
        if found:
            yield (
                f"blank: seed{'s' * (len(found) > 1)} {', '.join(found)} began with other weights of {model} than most "
                "records of this board; run all with the same"
            )


def _footnotes(methods: Methods, reasons: dict[str, list[str]]) -> pd.Series:
    """Join what a reader must know of each method."""
    notes = {}
    for label, held in methods.items():
        committed = [str(seed) for seed in held.seed[held.reference]]
        partly = f"seed{'s' * (len(committed) > 1)} {', '.join(committed)}: reference"
        also = [partly] if 0 < len(committed) < len(held) else []
        also += [f"{stage}: shipped" for stages in held.shipped for stage in stages]
        notes[label] = "; ".join(dict.fromkeys((*filter(None, held.footnote), *reasons[label], *also)))
    return pd.Series(notes, dtype=object)


def _engines(methods: Methods) -> Iterator[str]:
    """Tell which version of the engine ran whom, where known ones differ."""
    made: dict[str, list[str]] = defaultdict(list)
    for label, held in methods.items():
        for version in held.engine_version.dropna().unique():
            made[version].append(label)
    if len(made) > 1:
        each = "; ".join(f"{version}: {', '.join(made[version])}" for version in sorted(made))
        yield f"Made with different versions of the engine: {each}."


def _over_snapshots(measured: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Average every snapshot over seeds, and the snapshots that each of RULES selects, by method."""
    wide = measured.pivot(index=["label", "seed", "snapshot"], columns="domain", values="miou")
    curves = {
        role: wide.reindex(columns=_domains(measured, role)).mean(axis=1, skipna=False).to_numpy()
        for role in ("target", "source")
    }
    runs: dict[str, list[dict[str, np.ndarray | None]]] = defaultdict(list)
    for (label, _), places in wide.groupby(["label", "seed"]).indices.items():
        runs[label].append({role: _complete(values[places]) for role, values in curves.items()})
    means, chosen = {}, {}
    for label, seeds in runs.items():
        for role in curves:
            known = [curve for run in seeds if (curve := run[role]) is not None]
            if len(known) == len(seeds) and len({len(run) for run in known}) == 1:
                means[label, role] = dict(enumerate(np.mean(known, axis=0), 1))
        picked = [select_snapshots(run["target"], run["source"]) for run in seeds]
        for rule in RULES:
            if all(rule in each for each in picked):
                places, scores = zip(*(each[rule] for each in picked), strict=True)
                chosen[label, rule] = (sum(scores) / len(scores), deviation(scores), places)
    names = ["mean", "deviation", "snapshots"]
    return (
        pd.DataFrame(list(means.values()), _pairs(means, "role"), dtype=float),
        pd.DataFrame(list(chosen.values()), _pairs(chosen, "rule"), names),
    )


def _pairs(of: dict[tuple[str, str], Any], name: str) -> pd.MultiIndex:
    return pd.MultiIndex.from_arrays([[method for method, _ in of], [each for _, each in of]], names=["method", name])


def _complete(values: np.ndarray) -> np.ndarray | None:
    return values if np.isfinite(values).all() else None


def select_snapshots(targets: np.ndarray | None, sources: np.ndarray | None) -> dict[str, tuple[int, float]]:
    """Apply RULES to one run's mean mIoU at each snapshot: which it selects, from 1, and the score on the targets."""
    if targets is None:
        return {}
    curves: dict[str, np.ndarray | None] = {LAST: np.arange(len(targets))}
    if len(targets) > 1:  # of a single snapshot there is nothing to choose
        curves |= {SOURCE: sources, ORACLE: targets}
    # Of equal snapshots the latest.
    places = {rule: len(curve) - int(np.argmax(curve[::-1])) for rule, curve in curves.items() if curve is not None}
    return {rule: (place, float(targets[place - 1])) for rule, place in places.items()}


def _over_images(found: Comparison, last: pd.DataFrame, methods: Methods) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Bootstrap all differences to the baseline over images, and say what is wrong with side files."""
    targets = last.loc[last.domain_role == "target", ["cell", "domain", "hits"]]
    faults: list[str] = []

    def drawn(method: str) -> dict[int, Images]:
        held = zip(methods[method].seed, methods[method].cell, methods[method].path, strict=True)
        return {seed: _drawn(path, targets, cell, faults) for seed, cell, path in held}

    intervals = {}
    theirs = drawn(found.baseline) if found.baseline and methods[found.baseline].path.notna().any() else {}
    for method, seeds in found.to_baseline.seeds.items() if theirs else ():
        ours = drawn(str(method))
        intervals[method] = interval_over_images([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
    known = {method: interval for method, interval in intervals.items() if interval}
    return pd.DataFrame.from_dict(known, orient="index", columns=["low", "high"], dtype=float), tuple(faults)


def _drawn(path: Path | None, targets: pd.DataFrame, cell: CellId, faults: list[str]) -> Images:
    if not isinstance(path, Path) or not side_file(path).is_file():
        return None
    try:
        counts = read_image_counts(path, targets[targets.cell == cell])
    except KdbenchError as error:
        faults.append(str(error))
        return None
    if any(len(each) < 2 for each in counts.values()):
        return None
    return {domain: resample(each, domain) for domain, each in counts.items()}


@dataclass(frozen=True)
class Summary:
    """One pair over several benchmarks. All frames are by method.

    Benchmarks with the same source domain come from one training: a method that trains well on it does so on all of
    them. So they are averaged first, and each source counts once.

    benchmarks: by source as displayed. rows: role, seeds (those that all its benchmarks have), mean and deviation,
    mean_rank, reference, ranked, rank and gap_recovered; missing where a benchmark is. sources: means by source.
    scores: means over sources, methods x seeds.
    """

    boards: tuple[Board, ...]
    benchmarks: dict[str, tuple[str, ...]]
    rows: pd.DataFrame
    sources: pd.DataFrame
    scores: pd.DataFrame
    comparison: Comparison

    @property
    def name(self) -> str:
        """How titles of tables begin."""
        return f"{len(self.boards)} benchmarks"

    @property
    def benchmark(self) -> str:
        """All of them."""
        return " ".join(board.benchmark for board in self.boards)

    @property
    def common(self) -> Board:
        """The first board, for what all have in common; its data source names every version that they used."""
        return replace(self.boards[0], data_source=" and ".join(sorted({board.data_source for board in self.boards})))


def summaries(found: Iterable[Board]) -> list[Summary]:
    """Make one for every protocol id and pair with several benchmarks, real ones apart from synthetic ones.

    A benchmark with domains from another data source than its own is left out; of one that was run with several
    versions of the synthetic source the last counts.
    """
    groups: dict[tuple[object, ...], dict[str, Board]] = defaultdict(dict)
    for board in found:
        if set(board.data_sources.values()) == {board.data_source} and ":" in board.pair:
            key = (board.protocol_id, board.data_source == REAL, board.label_fraction, board.pair)
            groups[key][board.benchmark] = board
    return [_summary(list(group.values())) for group in groups.values() if len(group) > 1]


def _summary(found: Sequence[Board]) -> Summary:
    by_source: dict[str, list[Board]] = defaultdict(list)
    for board in found:
        by_source[", ".join(board.sources)].append(board)
    roles = {method: role for board in found for method, role in board.rows.role.items()}
    seeds = sorted(set().union(*(board.scores.columns for board in found)))
    held = {board.benchmark: board.scores.reindex(index=list(roles), columns=seeds) for board in found}
    each = {source: _mean([held[board.benchmark] for board in group]) for source, group in by_source.items()}
    # A method's seeds are those that all benchmarks have on which it has any.
    shared = np.logical_and.reduce([known.notna().T | known.isna().all(axis=1) for known in held.values()]).T
    sources = pd.DataFrame(
        {source: [mean_of(row[there]) for row, there in zip(means.to_numpy(), shared, strict=True)]
         for source, means in each.items()}, list(roles), dtype=float,
    )  # fmt: skip
    scores = _mean(list(each.values()))
    every = [row[np.isfinite(row)] for row in scores.to_numpy()]
    ranks = [_mean([board.rows["rank"].reindex(list(roles)) for board in group]) for group in by_source.values()]
    rows = pd.DataFrame({
        "role": roles,
        "seeds": pd.Series(seeds_of(scores), list(roles)),
        "mean": pd.Series([mean_of(values) for values in every], list(roles), dtype=float),
        "deviation": pd.Series([deviation(values) for values in every], list(roles), dtype=float),
        "mean_rank": _mean(ranks),
        "reference": pd.concat([board.rows.reference for board in found]).groupby(level=0).all(),
    })  # fmt: skip
    order = _order(rows)
    rows, comparison = _compared(rows.loc[order].rename_axis("method"), scores.loc[order])
    return Summary(
        boards=tuple(found),
        benchmarks={name: tuple(board.benchmark for board in group) for name, group in by_source.items()},
        rows=rows,
        sources=sources.loc[order],
        scores=scores.loc[order],
        comparison=comparison,
    )


def _mean(parts: Sequence[Any]) -> Any:
    """Average frames of one shape; missing where one of them is."""
    return sum(parts[1:], parts[0]) / len(parts)
