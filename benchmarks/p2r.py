"""Potsdam in RGB to Potsdam and Vaihingen in infrared, red and green (IRRG)."""

from kdbench.benchmark import ISPRS, PROXY, Benchmark, Domain, InputSize, ProtocolOverrides, RealData

_CROP = {"paper": ProtocolOverrides(InputSize(512, 512))}

BENCHMARK = Benchmark(
    name="p2r",
    title="Potsdam-RGB to IRRG",
    sources=(
        Domain(
            "potsdam-rgb",
            synthetic="potsdam-rgb",
            real=RealData("potsdam", train=("RGB/train",), val=("RGB/val",), overrides=_CROP),
        ),
    ),
    targets=(
        Domain(
            "potsdam-irrg",
            synthetic="potsdam-irrg",
            real=RealData("potsdam", val=("IRRG/val",), overrides=_CROP),
        ),
        Domain(
            "vaihingen-irrg",
            synthetic="vaihingen-irrg",
            real=RealData("vaihingen", val=("val",), overrides=_CROP),
        ),
    ),
    proxy=PROXY,
    labels=ISPRS,
)
