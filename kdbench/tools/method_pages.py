"""The methods as a document: a section each, from its file, the committed records and the measured costs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic.fields import FieldInfo
from tabulate import tabulate

from kdbench.errors import KdbenchError, describe
from kdbench.method import Method
from kdbench.names import model_name
from kdbench.plugins import MethodPlugin, load_all, load_method, method_names
from kdbench.protocol import MINI
from kdbench.records import read_record
from kdbench.report.frame import read
from kdbench.report.step_costs import FILE, read_costs
from kdbench.types import PairSpec

TEACHER, STUDENT = "dinov2-b", "deit-s"
"""The toy models that extra parameters are counted for."""
SECTIONS = ("Formula", "Deviations", "Compared")
HEAD = f"""# The methods

Made by `kdbench list methods --format markdown` from the methods' files, the committed records and measured costs.

**Letters.** $s$ and $t$ mark student and teacher, $B$ images, $K$ classes, $C$ channels, $h \\times w$ or $N$
positions; $\\mathrm{{KL}}(p \\Vert q) = \\sum_k p_k \\log (p_k / q_k)$, mse is a mean squared error over all elements.
No gradient flows into the teacher. Each loss stands beside the task loss, unless the section says otherwise.

**Words.** The *last map* is an encoder's final feature map after its last norm; the *levels* are the maps that a
decoder may read. A stage is written as name (phase). `preset=published` adds the auxiliary losses that a method's
published numbers were obtained with.

**Numbers.** Extra parameters are those of the method's own modules for the toy models `{TEACHER}:{STUDENT}`; they are
dropped at deployment unless the section says otherwise. The cost is the share of a training step that distillation
takes, the teacher's forward pass included, on a CPU with the same toy models
(`OMP_NUM_THREADS=1 python -m pytest tests/perf/test_methods.py -m slow --benchmark-json results/reference/{FILE}`).
It is that of the first stage that distils. Where that stage has no labels (proxy or source), its step has no decoder,
while the student's own step, which it is compared with, has one: such a share is not comparable with the others.
Scores are the mean mIoU of the targets under `{MINI.id}`, in %, as means over the seeds in brackets: scores of toy
models in the built-in synthetic world, which say nothing about the real models and data sets.
"""


def document(reference: Path | None) -> str:
    """Return the whole page; reference: the folder of committed records, if there is one."""
    frame = read(None, reference / MINI.id if reference else None).frame
    path = reference / FILE if reference else None
    costs = read_costs(path) if path and path.is_file() else {}
    pages, broken = load_all(method_names(), lambda name: _page(load_method(name), frame, costs.get(name)))
    pages |= {name: f"## {name}\n\nBROKEN: {error}\n" for name, error in broken.items()}
    contents = ", ".join(f"[{name}](#{name})" for name in sorted(pages))
    return "\n".join([HEAD, contents + "\n", *(pages[name] for name in sorted(pages))])


def sections(method: type[Method[Any]]) -> dict[str, str]:
    """Return the labelled sections of a method's docstring, and its first line as `idea`."""
    text = inspect.getdoc(method) or ""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):\s*", text, flags=re.MULTILINE)
    return {"idea": text.partition("\n")[0]} | {
        label: rest.strip() for label, rest in zip(parts[1::2], parts[2::2], strict=True)
    }


def stages_of(plugin: MethodPlugin, pair: PairSpec) -> tuple[str, str]:
    """Return a method's stages and what it reads of the teacher, in words."""
    if plugin.missing:
        return "", f"the extra {plugin.missing}"
    try:
        stages = plugin.method(plugin.method.Config(), pair).stages()
    except Exception as error:
        raise KdbenchError(describe(error)) from error
    read = sorted({part.value for stage in stages for part in stage.parts if part.value.startswith("teacher")})
    return " -> ".join(f"{stage.name} ({stage.phase})" for stage in stages), ", ".join(read) or "no teacher"


def _page(plugin: MethodPlugin, frame: pd.DataFrame, cost: float | None) -> str:
    method, pair = plugin.method, _pair()
    said = sections(method)
    stages, needs = stages_of(plugin, pair)
    extra = 0 if plugin.missing else sum(p.numel() for p in method(method.Config(), pair).parameters())
    lines = [f"## {plugin.name}", "", said["idea"], ""]
    if method.paper:
        lines += [f"*{method.paper}*", ""]
    lines += [f"**{label}:** {said[label]}\n" for label in SECTIONS if label in said]
    share = (
        f" Distillation takes {100 * cost:.0f} % of a step."
        if cost is not None and method.role != "undistilled"
        else ""
    )
    lines += [f"Stages: {stages}. Needs: {needs}. Extra parameters: {extra:,}.{share}", ""]
    options = [
        [f"`{name}`", f"`{field.default}`", _values(field), field.description]
        for name, field in method.Config.model_fields.items()
    ]
    if options:
        lines += [_table(options, ["option", "default", "values", "what it is"]), ""]
    mine = frame[(frame.method == plugin.name) & (frame.label_fraction == "1")] if len(frame) else frame
    if len(mine):
        lines += [_table(*_scores(mine)), ""]
    labels = sorted(set(_labels(mine)))
    if labels:
        lines += [f"Labels: {', '.join(f'`{options}`' for options in labels)}.", ""]
    return "\n".join(lines)


def _table(rows: Sequence[Sequence[str | None]], headers: list[str]) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def _values(field: FieldInfo) -> str:
    """An option's type with its limits, or the values that it may take."""
    choices = getattr(field.annotation, "__args__", None) or (field.annotation,)
    names = " or ".join(getattr(c, "__name__", str(c)) for c in choices).replace("NoneType", "None")
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    limits = [f"{sign} {getattr(m, name)}" for m in field.metadata for name, sign in signs.items() if hasattr(m, name)]
    return ", ".join((names, *limits))


def _pair() -> PairSpec:
    from kdbench.conformance import CLASSES
    from kdbench.models.backbones import build_toy
    from kdbench.models.registry import MODELS

    return PairSpec(build_toy(MODELS[TEACHER]).spec, build_toy(MODELS[STUDENT]).spec, CLASSES)


def _labels(frame: pd.DataFrame) -> Iterator[str]:
    """The options that the label of each variant stands for, as they were passed."""
    for cell, path in frame[["cell", "path"]].drop_duplicates("path").itertuples(index=False):
        passed = read_record(path).spec.passed
        if cell.variant and passed.get("label") == cell.variant:
            yield " ".join((*(f"--set {setting}" for setting in passed["settings"]), f"--as {cell.variant}"))


def _scores(frame: pd.DataFrame) -> tuple[list[list[str]], list[str]]:
    """Rows of pair and variant, columns of benchmarks: the targets' mean mIoU over seeds, and how many seeds."""
    targets = frame[frame["last"] & (frame.domain_role == "target")]
    by_seed = targets.groupby(["teacher", "student", "model_set", "variant", "benchmark", "seed"])["miou"].mean()
    table = by_seed.groupby(level=[0, 1, 2, 3, 4]).agg(["mean", "size"])
    table = (table["mean"].map("{:.1f}".format) + table["size"].map(" ({})".format)).unstack("benchmark").fillna("-")
    rows = []
    for place, values in zip(table.index, table.to_numpy(), strict=True):
        teacher, student, models, variant = place
        names = f"{model_name(teacher, models)} -> {model_name(student, models)}"
        rows.append([f"{names} {variant}".strip(), *values])
    return sorted(rows), ["pair and variant", *map(str, table.columns)]
