"""What benchmarks share: networks, and what is left in a file: figures, without a machine's name and its clocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kdbench.conformance import CLASSES
from kdbench.engine.parts import Networks
from kdbench.models.backbones import Encoder
from kdbench.models.geometry import Geometry
from kdbench.models.registry import ModelSpec, parse_pair
from kdbench.models.segmentor import Segmentor, build_decoder
from kdbench.plugins import load_method
from kdbench.types import PairSpec


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Keeps the ratios: times in seconds are another machine's business."""
    cpu = output_json["machine_info"].get("cpu", {})
    output_json["machine_info"] = {"cpu": cpu.get("brand_raw", "")}
    output_json.pop("commit_info", None)
    output_json["benchmarks"] = [
        {"name": entry["name"], "extra_info": entry["extra_info"]} for entry in output_json["benchmarks"]
    ]


@pytest.fixture
def build_networks() -> Callable[..., Networks]:
    """A pair's networks by a builder of encoders, with random weights and a method, for a geometry where one is given.

    Of the decoders, which no stage without labels reads, the smallest.
    """

    def build(
        method: str, pair: str, encoder: Callable[[ModelSpec], Encoder], geometry: Geometry | None = None
    ) -> Networks:
        def segmentor(role: ModelSpec) -> Segmentor:
            made = encoder(role)
            if geometry is not None:
                made.adapt(geometry)
            return Segmentor(made, build_decoder("light", made.spec, CLASSES))

        plugin, roles = load_method(method).method, parse_pair(pair)
        models = segmentor(roles.teacher), segmentor(roles.student)
        return Networks(*models, plugin(plugin.Config(), PairSpec(models[0].spec, models[1].spec, CLASSES)))

    return build
