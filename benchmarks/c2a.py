"""Cityscapes to ACDC: night, snow, fog and rain."""

from kdbench.benchmark import CITYSCAPES, PROXY, Benchmark, Domain

CONDITIONS = ("night", "snow", "fog", "rain")
BENCHMARK = Benchmark(
    name="c2a",
    title="Cityscapes to ACDC",
    sources=(Domain("cityscapes", synthetic="cityscapes"),),
    targets=tuple(Domain(f"acdc-{condition}", synthetic=f"acdc-{condition}") for condition in CONDITIONS),
    proxy=PROXY,
    labels=CITYSCAPES,
)
