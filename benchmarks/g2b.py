"""GTAV to BDD100K."""

from kdbench.benchmark import CITYSCAPES, PROXY, Benchmark, Domain

BENCHMARK = Benchmark(
    name="g2b",
    title="GTAV to BDD100K",
    sources=(Domain("gtav", synthetic="gtav"),),
    targets=(Domain("bdd100k", synthetic="bdd100k"),),
    proxy=PROXY,
    labels=CITYSCAPES,
)
