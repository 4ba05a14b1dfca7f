"""GTAV to Cityscapes."""

from kdbench.benchmark import CITYSCAPES, PROXY, Benchmark, Domain, InputSize, ProtocolOverrides, RealData

# All of GTAV trains, as in GKD and Rein, so none is left to test the source on.
_GTAV = RealData("gtav", train=("all",))

BENCHMARK = Benchmark(
    name="g2c",
    title="GTAV to Cityscapes",
    sources=(Domain("gtav", synthetic="gtav", real=_GTAV),),
    targets=(
        Domain(
            "cityscapes",
            synthetic="cityscapes",
            real=RealData("cityscapes", val=("val",), overrides={"paper": ProtocolOverrides(InputSize(512, 1024))}),
        ),
    ),
    proxy=PROXY,
    labels=CITYSCAPES,
)
