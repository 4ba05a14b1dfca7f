"""Potsdam in RGB to Potsdam and Vaihingen in infrared, red and green (IRRG)."""

from kdbench.benchmark import ISPRS, PROXY, Benchmark, Domain

BENCHMARK = Benchmark(
    name="p2r",
    title="Potsdam-RGB to IRRG",
    sources=(Domain("potsdam-rgb", synthetic="potsdam-rgb"),),
    targets=(
        Domain("potsdam-irrg", synthetic="potsdam-irrg"),
        Domain("vaihingen-irrg", synthetic="vaihingen-irrg"),
    ),
    proxy=PROXY,
    labels=ISPRS,
)
