"""Draw results with seaborn and matplotlib: the figures of the HTML page.

They take frames of a `kdbench.report.boards.Board`, and the roles of the methods to show, best first.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib import rc_context
from matplotlib.figure import Figure

from kdbench.names import amount
from kdbench.report.statistics import pareto_front

ROLES = {"teacher": "#303030", "undistilled": "#d55e00", "distilled": "#0173b2"}
"""Colours of seaborn's colour-blind palette."""
COSTS = {"train_flops": "floating point operations of the training", "student_forwards": "images through the student"}
BEST = ("#0173b2", "#de8f05", "#029e73", "#cc78bc", "#56b4e9")
"""Colours of the best distilled students where every method has a line."""
LINE = 0.19
"""Inches of a method's line."""
DPI = 110
STYLE: Any = {
    "font.size": 9, "axes.labelsize": 9, "axes.titlesize": 9, "axes.linewidth": 0.6, "axes.grid": True,
    "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False, "grid.alpha": 0.25,
    "legend.frameon": False, "legend.fontsize": 8, "legend.title_fontsize": 8, "text.parse_math": False,
    "svg.fonttype": "none", "svg.hashsalt": "kdbench",
}  # fmt: skip


def to_svg(figure: Figure) -> bytes:
    """Return the figure as a standalone SVG without a background; equal figures give equal bytes."""
    file = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()


@rc_context(STYLE)
def score_dots(scores: Mapping[str, pd.DataFrame], roles: pd.Series[str], baseline: str | None) -> Figure:
    """Draw a line a method and a panel a benchmark: mean and standard deviation over seeds, behind them every seed.

    scores: mean mIoU of the targets, methods x seeds, by benchmark. A vertical line runs through the baseline's mean.
    """
    figure = _figure(2.2 + 1.8 * max(len(scores), 2), 0.8 + LINE * max(len(roles), 3))
    panels = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
    for axes, (benchmark, held) in zip(panels, scores.items(), strict=True):
        shown = held.reindex(roles.index)
        for seed in shown:
            axes.plot(shown[seed], range(len(roles)), ".", color="0.6", markersize=3)
        for role, colour in ROLES.items():
            own, lines = shown[roles == role], np.flatnonzero(roles == role)
            style = {"fmt": "o", "color": colour, "markersize": 4.5, "elinewidth": 1.2, "zorder": 3}
            axes.errorbar(own.mean(axis=1), lines, xerr=own.std(axis=1).fillna(0), **style)
        if baseline in shown.index:
            axes.axvline(shown.loc[baseline].mean(), color=ROLES["undistilled"], linewidth=0.8, alpha=0.6)
        axes.set(xlabel="mIoU of the targets (%)", title=benchmark if len(scores) > 1 else "")
    panels[0].set(yticks=range(len(roles)), yticklabels=map(short, roles.index), ylim=(len(roles) - 0.4, -0.6))
    return figure


@rc_context(STYLE | {"axes.grid": False})
def class_heat_map(iou: pd.DataFrame, baseline: str | None) -> Figure:
    """Draw the baseline's IoU by class and what the other methods have more; without a baseline everybody's IoU.

    iou: in %, methods x classes.
    """
    figure = _figure(2.6 + 0.42 * iou.shape[1], 1.1 + LINE * max(len(iou), 5))
    style: dict[str, Any] = {"cbar": False, "linewidths": 0.5, "rasterized": True, "yticklabels": True}
    if baseline is None or len(iou) == 1:
        panels = [figure.subplots()]
        seaborn.heatmap(iou.rename(short), cmap="cividis", vmin=0, vmax=100, ax=panels[0], **style)
        figure.colorbar(panels[0].collections[0], ax=panels, pad=0.01, label="IoU (%)")
    else:
        own, more = iou.loc[[baseline]], iou.drop(baseline) - iou.loc[baseline]
        limit = max(5.0, np.nanpercentile(more.abs(), 98))
        panels = list(figure.subplots(2, 1, height_ratios=(1, len(more))))
        seaborn.heatmap(own.rename(short), annot=True, fmt=".0f", cmap="Greys", vmax=250, ax=panels[0], **style)
        seaborn.heatmap(more.rename(short), cmap="vlag_r", vmin=-limit, vmax=limit, ax=panels[1], **style)
        figure.colorbar(panels[1].collections[0], ax=panels, pad=0.01, extend="both", label="points")
        panels[1].set_xticks([])
    for axes in panels:
        axes.set(ylabel="")
        axes.tick_params(length=0, labelrotation=0, bottom=False, labelbottom=False, labeltop=True)
    panels[0].set_xticks(np.arange(iou.shape[1]) + 0.5, iou.columns, rotation=40, ha="left", rotation_mode="anchor")
    return figure


def training_costs(rows: pd.DataFrame) -> pd.Series[float]:
    """Return the students' costs by method, as far as they are known; its name is the one of COSTS that most have.

    rows: of a `kdbench.report.boards.Board`.
    """
    students = rows[(rows.role != "teacher") & rows["mean"].notna()]
    costs = students[str(students[list(COSTS)].count().idxmax())].dropna()
    return costs[costs > 0]


@rc_context(STYLE)
def cost_scatter(rows: pd.DataFrame, costs: pd.Series[float]) -> Figure:
    """Draw mean scores against training costs, with names and a line for the Pareto front of those that are ranked.

    rows: of a `kdbench.report.boards.Board`. costs: of `training_costs`. The teacher is a dashed line.
    """
    figure = _figure(5.6, 4.2)
    axes, shown = figure.subplots(), rows.loc[costs.index]
    seaborn.scatterplot(x=costs, y=shown["mean"], hue=shown.role, palette=ROLES, s=28, zorder=3, legend=False, ax=axes)
    front = costs[costs.index.isin(pareto_front(shown["mean"].where(shown.ranked), costs))].sort_values()
    axes.step(front, shown["mean"][front.index], where="post", color="0.3", linewidth=0.8)
    for label in front.index.union(shown.index[shown.role == "undistilled"]):
        spot = (costs[label], shown["mean"][label])
        axes.annotate(short(label), spot, (-5, 3), textcoords="offset points", ha="right", fontsize=8)
    for score in rows["mean"][rows.role == "teacher"].dropna():
        axes.axhline(score, color=ROLES["teacher"], linewidth=0.8, linestyle="--", label="teacher")
        axes.legend(loc="lower left")
    axes.set(xlabel=f"{COSTS[str(costs.name)]} (logarithmic)", ylabel="mIoU of the targets (%)", xscale="log")
    ticks = _log_ticks(costs.min(), costs.max())
    unit = "FLOP" if costs.name == "train_flops" else ""
    axes.set_xticks(ticks, [amount(tick, unit) for tick in ticks])
    axes.minorticks_off()
    axes.margins(x=0.15)
    return figure


@rc_context(STYLE)
def snapshot_curves(snapshots: pd.DataFrame, roles: pd.Series[str]) -> Figure:
    """Draw mean mIoU of targets and sources over the snapshots of the last stage.

    The teacher, undistilled students and the BEST others have colours, all others are grey.

    snapshots: method and role (target, source) x snapshot. roles: of the methods, best first.
    """
    colours = roles[roles != "distilled"].map(ROLES).to_dict()
    colours |= dict(zip(roles.index[roles == "distilled"], BEST, strict=False))
    figure = _figure(9.6, 3.4)
    panels = figure.subplots(1, 2)
    for axes, role in zip(panels, ("target", "source"), strict=True):
        means = snapshots[snapshots.index.get_level_values("role") == role].droplevel("role").T
        axes.plot(means[means.columns.difference(list(colours))], color="0.8", linewidth=0.7)
        for label, colour in colours.items():
            if label in means:
                axes.plot(means[label], "o-", color=colour, label=short(label), markersize=4, linewidth=1.3)
        axes.set(title=f"{role}s", xlabel="snapshot of the last stage", ylabel="mIoU (%)", xticks=means.index)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    return figure


@rc_context(STYLE | {"font.size": 7, "axes.titlesize": 8, "legend.fontsize": 6})
def loss_curves(losses: pd.DataFrame, order: Sequence[str]) -> Figure:
    """Draw a panel a method: means over seeds of each term over tenths of the stages, one stage after the other.

    losses: of `kdbench.report.frame.loss_frame`. The axis is logarithmic: what is zero or below is not shown.
    """
    shown = [label for label in order if label in set(losses.label)]
    down = -(-len(shown) // 4)
    figure = Figure(figsize=(10.4, 0.3 + 1.7 * down), dpi=DPI)
    panels = figure.subplots(down, 4, squeeze=False).flatten()
    figure.subplots_adjust(0.05, 0.12 / down, 0.91, 1 - 0.2 / down, 0.7, 0.35)
    for axes in panels[len(shown) :]:
        axes.remove()
    for axes, label in zip(panels, shown, strict=False):
        held = losses[losses.label == label]
        stages = list(dict.fromkeys(held.stage))
        place = held.stage.map(stages.index) * 10 + held.tenth
        means = held.assign(place=place).groupby(["place", "term"], sort=False).value.mean().unstack("term")
        means = means.reindex(range(1, 10 * len(stages) + 1))
        axes.plot(means.where(means > 0), linewidth=1.2, label=list(means))
        for index, stage in enumerate(stages):
            axes.axvline(10 * index + 0.5, color="0.6", linewidth=0.5)
            axes.annotate(stage, (10 * index + 1, 0), (0, -2), ("data", "axes fraction"), "offset points", va="top")
        axes.set(title=short(label), yscale="log", xticks=[], xlim=(0.5, 10 * len(stages) + 0.5))
        ticks = _log_ticks(*axes.get_ylim())
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), borderpad=0, handlelength=1)
    return figure


def _log_ticks(low: float, high: float) -> list[float]:
    """Return up to four numbers of two digits from low to high, evenly spaced on a logarithmic axis."""
    return sorted({float(f"{value:.2g}") for value in np.geomspace(low, high, 4)})


def short(label: str) -> str:
    """Return at most 30 characters of a label: its beginning and its end, where variants differ."""
    return label if len(label) <= 30 else f"{label[:15]}…{label[-14:]}"


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")
