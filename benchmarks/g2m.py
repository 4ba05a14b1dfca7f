"""GTAV to Mapillary Vistas."""

from kdbench.benchmark import CITYSCAPES, PROXY, Benchmark, Domain

BENCHMARK = Benchmark(
    name="g2m",
    title="GTAV to Mapillary Vistas",
    sources=(Domain("gtav", synthetic="gtav"),),
    targets=(Domain("mapillary", synthetic="mapillary"),),
    proxy=PROXY,
    labels=CITYSCAPES,
)
