"""The methods as a document: a page each, from its file, the committed records and the measured costs."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tabulate import tabulate

from kdbench.errors import KdbenchError, describe
from kdbench.method import Method
from kdbench.plugins import MethodPlugin, load_all, load_method, method_names
from kdbench.protocol import MINI
from kdbench.records import read_record, record_files
from kdbench.report.boards import Board, boards
from kdbench.report.frame import Entry, to_frame
from kdbench.report.step_costs import FILE, read_costs
from kdbench.types import PairSpec

TEACHER, STUDENT = "dinov2-b", "deit-s"
"""The stand-ins that extra parameters are counted for."""
PARAGRAPHS = ("Formula", "Deviations", "Compared")
HEAD = f"""# The methods

`kdbench list methods --format markdown` makes this page from the methods' files, from the committed records and from
measured costs. Extra parameters are those of the method's own modules for the stand-ins `{TEACHER}:{STUDENT}`; they are
dropped at deployment unless the page says otherwise. The cost is the share of a training step that distillation takes,
the teacher's forward pass included, on a CPU with the same stand-ins
(`OMP_NUM_THREADS=1 python -m pytest tests/perf/test_methods.py -m slow --benchmark-json results/reference/{FILE}`).
It is that of the first stage that distils. Where that is one without labels (proxy or source), its step has no decoder,
while the student's own step, which it is compared with, has one: such a share is not comparable with the others.
Tables show the mean mIoU of the targets under `{MINI.id}`, in %, as means over the seeds in brackets: scores of small
stand-ins in the built-in synthetic world, which say nothing about the real models and data sets.

Words: the *last map* is an encoder's final feature map after its last norm; the *levels* are the maps that a decoder
may read; a stage is written as name (phase); *companions* are further losses beside which a method's numbers were
published.
"""


def document(reference: Path | None) -> str:
    """The whole page; reference: the folder of committed records, if there is one."""
    entries = list(_entries(reference))
    rows, labels, costs = _rows(boards(to_frame(entries))), _labels(entries), _costs(reference)
    pages, broken = load_all(
        method_names(),
        lambda name: _page(load_method(name), rows.get(name, {}), labels.get(name, {}), costs.get(name)),
    )
    pages |= {name: f"## {name}\n\nBROKEN: {error}\n" for name, error in broken.items()}
    contents = ", ".join(f"[{name}](#{name})" for name in sorted(pages))
    return "\n".join([HEAD, contents + "\n", *(pages[name] for name in sorted(pages))])


def paragraphs(method: type[Method[Any]]) -> dict[str, str]:
    """The labelled paragraphs of a method's docstring, and its first line as `idea`."""
    text = inspect.cleandoc(method.__doc__ or "")
    found = {"idea": text.partition("\n\n")[0].replace("\n", " ")}
    for part in text.split("\n\n")[1:]:
        label, _, rest = part.partition(":")
        if label in PARAGRAPHS:
            found[label] = " ".join(rest.split())
    return found


def stages_of(plugin: MethodPlugin, pair: PairSpec) -> tuple[str, str]:
    """A method's stages and what it reads of the teacher, in words."""
    if plugin.missing:
        return "", f"the extra {plugin.missing}"
    try:
        stages = plugin.method(plugin.method.Config(), pair).stages()
    except Exception as error:
        raise KdbenchError(describe(error)) from error
    read = sorted({part.value for stage in stages for part in stage.parts if part.value.startswith("teacher")})
    return " -> ".join(f"{stage.name} ({stage.phase})" for stage in stages), ", ".join(read) or "no teacher"


def _page(plugin: MethodPlugin, rows: dict[str, dict[str, str]], labels: dict[str, str], cost: float | None) -> str:
    method, pair = plugin.method, _pair()
    said = paragraphs(method)
    stages, needs = stages_of(plugin, pair)
    extra = 0 if plugin.missing else sum(p.numel() for p in method(method.Config(), pair).parameters())
    lines = [f"## {plugin.name}", "", said["idea"], ""]
    if method.paper:
        lines += [f"*{method.paper}*", ""]
    lines += [f"**{label}:** {said[label]}\n" for label in PARAGRAPHS if label in said]
    measured = cost is not None and method.role == "distilled"
    share = f" Distillation takes {100 * (cost or 0):.0f} % of a step." if measured else ""
    lines += [f"Stages: {stages}. Needs: {needs}. Extra parameters: {extra:,}.{share}"]
    lines += ["", *_options(method)]
    if rows:
        names = sorted({benchmark for row in rows.values() for benchmark in row})
        table = [[row, *(values.get(name, "-") for name in names)] for row, values in sorted(rows.items())]
        lines += [tabulate(table, headers=["pair and variant", *names], tablefmt="github", disable_numparse=True), ""]
    if labels:
        lines += [f"Labels: {', '.join(f'`{options}`' for _, options in sorted(labels.items()))}.", ""]
    return "\n".join(lines)


def _options(method: type[Method[Any]]) -> Iterator[str]:
    rows = [
        [f"`{name}`", f"`{field.default}`", _limits(field.annotation), field.description]
        for name, field in method.Config.model_fields.items()
    ]
    if rows:
        yield tabulate(rows, headers=["knob", "default", "values", "source"], tablefmt="github", disable_numparse=True)
        yield ""


def _limits(annotation: object) -> str:
    """A knob's type, or the values that it may take."""
    choices = getattr(annotation, "__args__", None)
    return " or ".join(getattr(c, "__name__", str(c)) for c in choices or (annotation,)).replace("NoneType", "None")


def _pair() -> PairSpec:
    from kdbench.conformance import CLASSES
    from kdbench.models.backbones import build_toy
    from kdbench.models.registry import MODELS

    return PairSpec(build_toy(MODELS[TEACHER]).spec, build_toy(MODELS[STUDENT]).spec, CLASSES)


def _costs(reference: Path | None) -> dict[str, float]:
    """Method -> share of a step, from what pytest-benchmark wrote."""
    path = reference / FILE if reference else None
    return {name: cost.share for name, cost in read_costs(path).items()} if path and path.is_file() else {}


def _labels(entries: Iterable[Entry]) -> dict[str, dict[str, str]]:
    """Method -> label of a variant -> the options that it stands for, as they were passed."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for entry in entries:
        cell, passed = entry.record.spec.resolved, entry.record.spec.passed
        if cell.variant and passed.get("label") == cell.variant:
            options = (*(f"--set {setting}" for setting in passed["settings"]), f"--as {cell.variant}")
            found[cell.method][cell.variant] = " ".join(options)
    return found


def _rows(found: Iterable[Board]) -> dict[str, dict[str, dict[str, str]]]:
    """Method -> pair and variant -> benchmark -> mean and seeds, as boards have them."""
    table: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for board in found:
        for label, row in board.rows[board.rows["mean"].notna()].iterrows():
            method, _, variant = label.rstrip("]").partition("[")
            name = " -> ".join(board.models) + (f" {variant}" if variant else "")
            table[method][name][board.benchmark] = f"{row['mean']:.1f} ({len(row.seeds)})"
    return table


def _entries(reference: Path | None) -> Iterator[Entry]:
    for path in record_files(reference / MINI.id) if reference else ():
        entry = Entry(read_record(path), reference=True)
        if entry.record.spec.resolved.label_fraction == "1":
            yield entry
