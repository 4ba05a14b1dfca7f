"""A benchmark that would train on a target is refused where it is written."""

from __future__ import annotations

from typing import Any

import pytest

from kdbench.benchmark import CITYSCAPES, PROXY, Benchmark, Domain, LabelSpace, RealData
from kdbench.errors import KdbenchError
from kdbench.plugins import benchmark_names, load_benchmark

SOURCE, TARGET = Domain("a", synthetic="gtav"), Domain("b", synthetic="cityscapes")


def make(**fields: Any) -> Benchmark:
    defaults: dict[str, Any] = {"sources": (SOURCE,), "targets": (TARGET,), "proxy": PROXY, "labels": CITYSCAPES}
    return Benchmark("x", "X", **(defaults | fields))


def camvid(name: str, **parts: tuple[str, ...]) -> Domain:
    return Domain(name, real=RealData("camvid", **parts))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"targets": (Domain("b", synthetic="gtav"),)}, "target 'b' shares images with what is trained on"),
        ({"proxy": Domain("p", synthetic="cityscapes")}, "target 'b' shares images with what is trained on"),
        ({"targets": (TARGET, Domain("a", synthetic="bdd100k"))}, "domain 'a' stands there twice"),
        ({"labels": LabelSpace("l", ("one", "two"), ((0, 0, 0),))}, "another number of colours"),
        (
            {"sources": (camvid("a", train=("x", "y")),), "targets": (camvid("b", val=("y",)),)},
            "target 'b' shares images",
        ),
        (
            {"sources": (camvid("a", train=("x",)),), "targets": (camvid("b", val=("x/val",)),)},
            "target 'b' shares images",
        ),
        (
            {"sources": (camvid("a", train=("x/train",)),), "targets": (camvid("b", val=("x",)),)},
            "target 'b' shares images",
        ),
    ],
)
def test_what_would_train_on_a_target_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(KdbenchError, match=message):
        make(**fields)


def test_one_data_set_may_serve_source_and_target_in_different_parts() -> None:
    make(sources=(camvid("a", train=("x",), val=("z",)),), targets=(camvid("b", val=("y",)),))
    make(sources=(camvid("a", train=("x/train",)),), targets=(camvid("b", val=("x/train2", "x/val")),))


def test_the_shipped_benchmarks_are_sound_and_the_source_stands_last() -> None:
    shipped = {name: [domain.name for domain in load_benchmark(name).evaluated()] for name in benchmark_names()}
    assert shipped["g2c"] == ["cityscapes", "gtav"]
    assert shipped["c2a"] == ["acdc-night", "acdc-snow", "acdc-fog", "acdc-rain", "cityscapes"]
    assert shipped["p2r"] == ["potsdam-irrg", "vaihingen-irrg", "potsdam-rgb"]
