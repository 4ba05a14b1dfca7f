"""`kdbench list`: methods, benchmarks, pairs, models, protocols, data sets and synthetic domains as tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tabulate import tabulate

from kdbench.plugins import benchmark_names, load_all, load_benchmark, load_method, method_names

Rows = list[dict[str, str]]
WIDE = ("stages", "options", "levels from blocks", "normalised as", "toy model (mini)", "read inside", "from")
"""Columns that a terminal is too narrow for; JSON and markdown have them."""


def listing(what: str) -> Rows:
    """Return the rows of one list."""
    return LISTS[what]()


def render(rows: Rows, format_: str) -> str:
    """Render rows as a table for a terminal, markdown or JSON."""
    if format_ == "json":
        return json.dumps(rows, indent=2, ensure_ascii=False)
    if format_ == "markdown":
        return tabulate(rows, headers="keys", tablefmt="github")
    short = [{key: value for key, value in row.items() if key not in WIDE} for row in rows]
    return tabulate(short, headers="keys", tablefmt="simple", maxcolwidths=[36] * (len(short[0]) if short else 0))


def _methods() -> Rows:
    loaded, broken = load_all(method_names(), _method_row)
    rows: Rows = list(loaded.values())
    for name, error in broken.items():
        rows.append({"name": name, "idea": f"BROKEN: {error}"})
    return rows


def _method_row(name: str) -> dict[str, str]:
    from kdbench.conformance import sample_pair
    from kdbench.tools.method_pages import sections, stages_of

    plugin = load_method(name)
    method = plugin.method
    stages, needs = stages_of(plugin, sample_pair())
    return {
        "name": name,
        "idea": sections(method)["idea"],
        "paper": method.paper,
        "stages": stages,
        "needs": needs,
        "options": "; ".join(
            f"{name} = {field.default} ({field.description})" for name, field in method.Config.model_fields.items()
        ),
    }


def _benchmarks() -> Rows:
    loaded, broken = load_all(benchmark_names(), load_benchmark)
    rows = [
        {
            "name": name,
            "title": benchmark.title,
            "sources": ", ".join(domain.name for domain in benchmark.sources),
            "targets": ", ".join(domain.name for domain in benchmark.targets),
            "classes": f"{len(benchmark.labels)} ({benchmark.labels.name})",
            "data_sources": _data_sources(benchmark),
        }
        for name, benchmark in loaded.items()
    ]
    for name, error in broken.items():
        rows.append({"name": name, "title": f"BROKEN: {error}"})
    return rows


def _data_sources(benchmark: Any) -> str:
    domains = list(benchmark.evaluated())
    served = {"synthetic": all(d.synthetic for d in domains), "real": all(d.real for d in domains)}
    return ", ".join(name for name, served_by in served.items() if served_by)


def _pairs() -> Rows:
    from kdbench.models.registry import NAMED_PAIRS, PAPER_PAIRS, parse_pair

    rows = []
    for name in NAMED_PAIRS:
        pair = parse_pair(name)
        origin = "GKD's paper" if name in PAPER_PAIRS else "kdbench's extension (GKD-CNN)"
        rows.append({"pair": name, "family": pair.family, "origin": origin})
    return rows


def _models() -> Rows:
    from kdbench.models.backbones import describe_network
    from kdbench.models.registry import MODELS, REGISTERED, model_names

    rows = [
        {
            "name": spec.name,
            "family": spec.family,
            **describe_network(spec),
            "toy model (mini)": ", ".join(f"{key} {value}" for key, value in spec.toy.items()),
        }
        for spec in MODELS.values()
    ]
    # What a package announces is not loaded for a list: its family is known once it was used.
    registered = [name for name in dict.fromkeys(model_names()) if name not in MODELS]
    for name in registered:
        family = REGISTERED[name].family if name in REGISTERED else ""
        rows.append({"name": name, "family": family, "network": "registered"})
    return rows


def _protocols() -> Rows:
    from kdbench.protocol import PROTOCOLS

    return [
        {
            "name": protocol.name,
            "id": protocol.id,
            "summary": protocol.summary,
            "image": "{} x {}".format(*protocol.image_size),
            "steps": ", ".join(
                f"{phase} {recipe.steps or f'{recipe.epochs} epochs'}" for phase, recipe in protocol.recipes.items()
            ),
        }
        for protocol in PROTOCOLS.values()
    ]


def _domains() -> Rows:
    from kdbench.synthetic import DOMAINS, causes, describe

    rows = []
    for name, ranges in describe().items():
        row = {"domain": name, "data_source": DOMAINS[name].world}
        for cause, fields in causes(name).items():
            row[cause] = ", ".join(f"{field} {_span(ranges[field])}" for field in fields if field in ranges) or "-"
        rows.append(row)
    return rows


def _span(span: tuple[float, float]) -> str:
    low, high = (f"{value:.4g}" for value in span)
    return low if low == high else f"{low} to {high}"


def _datasets() -> Rows:
    from kdbench.data.datasets import ADAPTERS

    return [
        {
            "name": adapter.name,
            "what": adapter.title,
            "folder under --data-root": " or ".join(adapter.folders),
            "parts": ", ".join(f"{part} {count}" for part, count in adapter.counts.items()),
            "read inside": ", ".join(adapter.archives),
            "label maps": ", ".join(adapter.layouts[0].tables),
            "terms": adapter.licence,
            "from": adapter.home,
        }
        for adapter in ADAPTERS.values()
    ]


LISTS: dict[str, Callable[[], Rows]] = {
    "methods": _methods,
    "benchmarks": _benchmarks,
    "pairs": _pairs,
    "models": _models,
    "protocols": _protocols,
    "datasets": _datasets,
    "domains": _domains,
}
