"""Potsdam in RGB to Potsdam and Vaihingen in infrared, red and green (IRRG)."""

from kdbench.benchmark import ISPRS, PROXY, Benchmark, Domain, InputSize, RealData, Terms

_CROP = {"paper": Terms(InputSize(512, 512))}

BENCHMARK = Benchmark(
    name="p2r",
    title="Potsdam-RGB to IRRG",
    sources=(
        Domain(
            "potsdam-rgb",
            synthetic="potsdam-rgb",
            real=RealData("potsdam", train=("RGB/train",), val=("RGB/val",), under=_CROP),
        ),
    ),
    targets=(
        Domain(
            "potsdam-irrg",
            synthetic="potsdam-irrg",
            real=RealData("potsdam", val=("IRRG/val",), under=_CROP),
        ),
        Domain(
            "vaihingen-irrg",
            synthetic="vaihingen-irrg",
            real=RealData("vaihingen", val=("val",), under=_CROP),
        ),
    ),
    proxy=PROXY,
    labels=ISPRS,
)
