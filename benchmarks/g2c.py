"""GTAV to Cityscapes."""

from kdbench.benchmark import CITYSCAPES, PROXY, Benchmark, Domain

BENCHMARK = Benchmark(
    name="g2c",
    title="GTAV to Cityscapes",
    sources=(Domain("gtav", synthetic="gtav"),),
    targets=(Domain("cityscapes", synthetic="cityscapes"),),
    proxy=PROXY,
    labels=CITYSCAPES,
)
